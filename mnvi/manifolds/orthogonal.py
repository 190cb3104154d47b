"""The orthogonal group."""

import torch
from torch import Tensor

from ..linalg.solve import slogdet
from ._unitary_group import UnitaryGroup


class Orthogonal(UnitaryGroup):
    """The real x of shape (n, n) with xᵀx = I, in two components: rotations (det x = 1) and the others (det x = −1).

    Retractions and geodesics stay in the component of x.

    Args:
        retraction: ``"qr"``, ``"polar"``, ``"cayley"`` or ``"exp"``, as for :class:`Stiefel`.

    Example:
        >>> manifold = Orthogonal(retraction="cayley")
        >>> x = manifold.random(8, 8)
        >>> y = manifold.exp(x, manifold.tangent(x, v))
    """

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The root of the sum of the squared angles of xᵀy; infinite between the two components."""
        apart = slogdet(x.mT @ y)[0] < 0
        return super().dist(x, y).masked_fill(apart, torch.inf)
