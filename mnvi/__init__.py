"""Bayesian deep learning with matrix-normal weight posteriors, and optimisation on manifolds, in PyTorch."""

from importlib import metadata as _metadata

from . import (
    covariance,
    distributions,
    layers,
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
from .covariance import Factor
from .fit import History, fit
from .layers import (
    BayesianLayer,
    MNConv1d,
    MNConv2d,
    MNConv3d,
    MNConvTranspose1d,
    MNConvTranspose2d,
    MNConvTranspose3d,
    MNLinear,
    MNTransposedLinear,
    bayesian_layers,
)
from .likelihoods import Prediction
from .manifolds import Manifold, Point
from .module import Module, Sequential, frozen_sample, kl, sampling
from .objective import ELBO, KLWarmup
from .optim import other_parameters, parameter_groups
from .parametrizations import constrain
from .posteriors import Posterior
from .predictive import predict
from .priors import Prior

try:
    __version__ = _metadata.version("mnvi")
except _metadata.PackageNotFoundError:  # a copy of the sources that is not installed
    __version__ = "unknown"

__all__ = [
    "ELBO",
    "BayesianLayer",
    "Factor",
    "History",
    "KLWarmup",
    "MNConv1d",
    "MNConv2d",
    "MNConv3d",
    "MNConvTranspose1d",
    "MNConvTranspose2d",
    "MNConvTranspose3d",
    "MNLinear",
    "MNTransposedLinear",
    "Manifold",
    "Module",
    "Point",
    "Posterior",
    "Prediction",
    "Prior",
    "Sequential",
    "bayesian_layers",
    "constrain",
    "covariance",
    "distributions",
    "fit",
    "frozen_sample",
    "kl",
    "layers",
    "likelihoods",
    "linalg",
    "manifolds",
    "optim",
    "other_parameters",
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
