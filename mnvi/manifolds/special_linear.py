"""The special linear group."""

import torch
from torch import Tensor
from torch.types import Device

from ..linalg.elementary import identity
from ..linalg.solve import slogdet
from ._linear_group import LinearGroup


class SpecialLinear(LinearGroup):
    """The real x of shape (n, n) with det x = 1; v = xA is tangent for A of trace 0.

    Its metric is that of :class:`GeneralLinear`, whose geodesics stay in it. Steps keep the determinant to rounding;
    what builds up over many of them, ``project`` takes away.

    Args:
        retraction: ``"lie"``, x·exp(x⁻¹v), of order 1, or ``"exp"``, the geodesic, at the cost of a second exponential.

    Raises:
        ValueError: for any other retraction.

    Source: Andruchow, Larotonda, Recht & Varela (2014), 'The left invariant metric in the general linear group',
    arXiv:1109.0520.

    Example:
        >>> manifold = SpecialLinear()
        >>> x = manifold.project(torch.randn(8, 8))
        >>> y = manifold.exp(x, manifold.tangent(x, v))
    """

    def algebra(self, a: Tensor) -> Tensor:
        return a - a.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * identity(a)

    def project(self, x: Tensor) -> Tensor:
        """x·|det x|^(−1/n), of a negative determinant with the direction of the smallest singular value turned round.

        Raises:
            ValueError: if x is not finite, or singular.
        """
        log_size = slogdet(x)[1][..., None, None]
        return super().project(x) * (-log_size / x.shape[-1]).exp()

    def residual(self, x: Tensor) -> Tensor:
        """|det x − 1|."""
        sign, log_size = slogdet(x)
        return (sign * log_size.exp() - 1).abs()

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """A rotation from the uniform distribution times I + G Gᵀ/n, G standard normal, scaled to determinant 1."""
        return self.project(super().random(*shape, generator=generator, dtype=dtype, device=device))
