"""Bayesian deep learning with matrix-normal weight posteriors in PyTorch."""

from . import (
    covariance,
    distributions,
    likelihoods,
    linalg,
    manifolds,
    optim,
    parametrizations,
    posteriors,
    priors,
    rnn,
    sparsity,
)
from .convert import to_bayesian, to_deterministic
from .layers import MNConv1d, MNConv2d, MNConv3d, MNConvTranspose1d, MNConvTranspose2d, MNConvTranspose3d, MNLinear
from .learning_rates import parameter_groups
from .module import Module, Sequential, frozen_sample, kl, sampling
from .objective import ELBO, KLWarmup
from .parametrizations import constrain
from .predictive import Prediction, predict

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "KLWarmup",
    "MNConv1d",
    "MNConv2d",
    "MNConv3d",
    "MNConvTranspose1d",
    "MNConvTranspose2d",
    "MNConvTranspose3d",
    "MNLinear",
    "Module",
    "Prediction",
    "Sequential",
    "constrain",
    "covariance",
    "distributions",
    "frozen_sample",
    "kl",
    "likelihoods",
    "linalg",
    "manifolds",
    "optim",
    "parameter_groups",
    "parametrizations",
    "posteriors",
    "predict",
    "priors",
    "rnn",
    "sampling",
    "sparsity",
    "to_bayesian",
    "to_deterministic",
]
