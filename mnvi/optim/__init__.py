"""Torch optimisers for parameters on manifolds and for matrix-normal posteriors; averages of models on manifolds."""

from .averaged_model import AveragedModel
from .coordinate_descent import CoordinateDescent
from .natural_gradient import NaturalGradient, other_parameters
from .riemannian_adam import RiemannianAdam
from .riemannian_sgd import RiemannianSGD

__all__ = [
    "AveragedModel",
    "CoordinateDescent",
    "NaturalGradient",
    "RiemannianAdam",
    "RiemannianSGD",
    "other_parameters",
]
