"""Torch optimisers for parameters on manifolds and for matrix-normal posteriors."""

from .riemannian_adam import RiemannianAdam
from .riemannian_sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianSGD"]
