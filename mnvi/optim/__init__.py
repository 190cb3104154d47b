"""Torch optimisers for parameters on manifolds and for matrix-normal posteriors; averages of models on manifolds."""

from .averaged_model import AveragedModel
from .base import RiemannianOptimizer
from .coordinate_descent import CoordinateDescent
from .natural_gradient import NaturalGradient, other_parameters
from .parameter_groups import parameter_groups
from .riemannian_adam import RiemannianAdam
from .riemannian_sgd import RiemannianSGD

__all__ = [
    "AveragedModel",
    "CoordinateDescent",
    "NaturalGradient",
    "RiemannianAdam",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "other_parameters",
    "parameter_groups",
]
