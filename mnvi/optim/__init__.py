"""Torch optimisers for parameters on manifolds and for matrix-normal posteriors."""

from .natural_gradient import NaturalGradient, other_parameters
from .riemannian_adam import RiemannianAdam
from .riemannian_sgd import RiemannianSGD

__all__ = ["NaturalGradient", "RiemannianAdam", "RiemannianSGD", "other_parameters"]
