"""Norms with the derivative 0 at 0, where a norm has none: the distance of a point from itself, a step of no length.

Of the subgradients there, 0 is the one that makes the derivative of the squared norm right. So no small number need be
added under the root. The second derivatives at 0 are not right: take those of a square that was not rooted.
"""

import torch
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    """The Frobenius norm over the last two dimensions, the length of vectors and numbers."""
    return torch.linalg.matrix_norm(torch.atleast_2d(x))


def hypot(a: Tensor, b: Tensor) -> Tensor:
    """√(a² + b²), without overflow or underflow on the way."""
    zero = (a == 0) & (b == 0)
    return torch.hypot(a.masked_fill(zero, 1), b).masked_fill(zero, 0)
