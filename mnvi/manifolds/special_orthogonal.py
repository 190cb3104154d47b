"""The special orthogonal group."""

import torch
from torch import Tensor
from torch.types import Device

from ..linalg.polar import polar_factor
from ..linalg.solve import slogdet
from ._unitary_group import UnitaryGroup


class SpecialOrthogonal(UnitaryGroup):
    """The rotations: real x of shape (n, n) with xᵀx = I and det x = 1.

    ``project`` gives the nearest rotation, with the direction of the smallest singular value turned round where
    the nearest orthogonal matrix has determinant −1.

    Args:
        retraction: ``"qr"``, ``"polar"``, ``"cayley"`` or ``"exp"``, as for :class:`Stiefel`.

    Example:
        >>> manifold = SpecialOrthogonal(retraction="exp")
        >>> x = manifold.random(3, 3)
        >>> angle = manifold.dist(x, y) / 2**0.5
    """

    def project(self, x: Tensor) -> Tensor:
        return polar_factor(x, x.new_ones(x.shape[:-2]))

    def residual(self, x: Tensor) -> Tensor:
        """‖xᵀx − I‖ + |det x − 1|."""
        sign, log_size = slogdet(x)
        return super().residual(x) + (sign * log_size.exp() - 1).abs()

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """A rotation from the uniform (Haar) distribution."""
        x = super().random(*shape, generator=generator, dtype=dtype, device=device)
        sign = slogdet(x)[0][..., None, None]
        return torch.cat([x[..., :1] * sign, x[..., 1:]], -1)
