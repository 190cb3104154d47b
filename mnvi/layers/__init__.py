"""Bayesian layers: torch's layers with a posterior over their weight. A new one is a file, and a row of kinds.py."""

from .base import BayesianLayer, bayesian_layers
from .conv import MNConv1d, MNConv2d, MNConv3d, MNConvTranspose1d, MNConvTranspose2d, MNConvTranspose3d
from .linear import MNLinear
from .transposed_linear import MNTransposedLinear

__all__ = [
    "BayesianLayer",
    "MNConv1d",
    "MNConv2d",
    "MNConv3d",
    "MNConvTranspose1d",
    "MNConvTranspose2d",
    "MNConvTranspose3d",
    "MNLinear",
    "MNTransposedLinear",
    "bayesian_layers",
]
