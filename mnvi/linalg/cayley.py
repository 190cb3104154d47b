"""The Cayley transform, from skew-Hermitian to unitary matrices."""

from torch import Tensor

from .._torch.tracing import all_within
from .elementary import identity
from .polar import polar_factor
from .solve import solve

LIMIT = 10.0  # largest entry up to which the textbook formula is accurate enough for one correction to mend


def times_cayley(x: Tensor, a: Tensor) -> Tensor:
    """x·(I − ½a)⁻¹(I + ½a) for a skew-Hermitian ``a``, shape (..., n, n), and ``x``, shape (..., m, n).

    The Cayley transform is the square of the polar factor of I + ½a, which is how it is found where a is so large that
    a solve would lose the identity beside it. Raises ValueError if a is not finite.
    """
    eye = identity(a)
    if all_within(a, LIMIT, traced=True):
        return 2 * solve(eye - a / 2, x, left=False) - x
    half = polar_factor(eye + a / 2)
    return x @ half @ half
