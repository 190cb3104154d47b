"""Lengths whose derivative at 0 is 0, where they have none: that of a point to itself, of a step not taken.

Zero is the subgradient that makes the derivative of the squared length right, so that nothing is added under a root.
Of the second derivatives at 0 that holds no longer: take those of a square that was not rooted.
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
