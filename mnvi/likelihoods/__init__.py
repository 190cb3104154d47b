"""Observation models, one file each: the loss for training, and what ``predict`` makes of the draws."""

from typing import TYPE_CHECKING

from .._deprecation import moved, renamed
from .base import Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .gaussian import Gaussian
from .heteroscedastic_gaussian import HeteroscedasticGaussian
from .poisson import Poisson
from .prediction import Prediction
from .standardized import Standardized
from .student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Poisson",
    "Prediction",
    "Standardized",
    "StudentT",
]

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Standardised": "Standardized"})

moved(f"{__name__}.standardised", Standardised=Standardized)
