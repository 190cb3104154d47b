"""The unitary group."""

from .._torch.dtypes import COMPLEX
from ._unitary_group import UnitaryGroup


class Unitary(UnitaryGroup):
    """The complex x of shape (n, n) with xᴴx = I.

    Args:
        retraction: ``"qr"``, ``"polar"``, ``"cayley"`` or ``"exp"``, as for :class:`Stiefel`.

    Example:
        >>> manifold = Unitary()
        >>> x = manifold.random(4, 4)
        >>> v = manifold.log(x, manifold.random(4, 4))
    """

    dtypes = COMPLEX
