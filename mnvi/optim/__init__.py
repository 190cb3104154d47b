"""Torch optimisers for parameters on manifolds and for matrix-normal posteriors."""

from .coordinate_descent import CoordinateDescent
from .natural_gradient import NaturalGradient, other_parameters
from .riemannian_adam import RiemannianAdam
from .riemannian_sgd import RiemannianSGD

__all__ = ["CoordinateDescent", "NaturalGradient", "RiemannianAdam", "RiemannianSGD", "other_parameters"]
