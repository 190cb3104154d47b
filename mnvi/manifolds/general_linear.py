"""The general linear group."""

import math

import torch
from torch import Tensor

from ..linalg.solve import slogdet
from ._linear_group import LinearGroup


class GeneralLinear(LinearGroup):
    """The real x of shape (n, n) with det x > 0, the part of the general linear group that holds the identity.

    Its metric is ⟨u, v⟩ = tr (x⁻¹u)ᵀ(x⁻¹v); every array is tangent.

    Args:
        retraction: ``"lie"``, x·exp(x⁻¹v), of order 1, or ``"exp"``, the geodesic, at the cost of a second exponential.

    Raises:
        ValueError: for any other retraction.

    Source: Andruchow, Larotonda, Recht & Varela (2014), 'The left invariant metric in the general linear group',
    arXiv:1109.0520.

    Example:
        >>> manifold = GeneralLinear()
        >>> x = manifold.random(8, 8)
        >>> x = manifold.retract(x, -0.1 * manifold.rgrad(x, gradient))
    """

    def algebra(self, a: Tensor) -> Tensor:
        return a

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def residual(self, x: Tensor) -> Tensor:
        """0 where det x > 0, 1 where it is 0, 2 where it is negative, NaN where an entry is not finite."""
        finite = x.isfinite().all(-1).all(-1)
        return torch.where(finite, 1 - slogdet(x)[0], math.nan)
