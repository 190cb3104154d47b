"""Observation models, one file each: the loss for training, and what ``predict`` makes of the draws."""

from .base import Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .gaussian import Gaussian
from .heteroscedastic_gaussian import HeteroscedasticGaussian
from .poisson import Poisson
from .prediction import Prediction
from .standardised import Standardised
from .student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Poisson",
    "Prediction",
    "Standardised",
    "StudentT",
]
