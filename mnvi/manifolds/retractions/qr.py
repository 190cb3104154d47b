"""The QR retraction: the Q of x + v."""

import torch
from torch import Tensor

from ..._torch.tracing import all_within, refuse_nonfinite
from ...linalg.orthonormal import signed_qr
from ...linalg.shapes import is_square
from ...linalg.solve import slogdet, solve_triangular
from .base import Retraction

LIMIT = 10.0  # largest entry of the Gram matrix of x + v up to which its Cholesky factor is accurate enough


class QR(Retraction):
    """The Q of x + v = QR with a positive diagonal of R; by far the fastest, of order 1 under every metric.

    By Cholesky's factor of the Gram matrix (x+v)ᴴ(x+v), which is I + vᴴv and so has no eigenvalue below 1; a long step
    (a column of x + v longer than √10) is left to Householder's reflections.
    Source: Absil, Mahony & Sepulchre (2008), example 4.1.3, doi:10.1515/9781400830244.
    """

    def order(self, metric: str) -> float:
        return 1

    def retract(self, x: Tensor, v: Tensor, metric: str) -> Tensor:
        y = x + v
        gram = y.mH @ y
        if all_within(gram, LIMIT, traced=False):
            return solve_triangular(torch.linalg.cholesky_ex(gram).L.mH, y, upper=True, left=False)
        refuse_nonfinite("a tangent vector", v)
        q, diagonal = signed_qr(y)
        return _same_determinant(x, q, diagonal) if is_square(x.shape) and not x.is_complex() else q


def _same_determinant(x: Tensor, q: Tensor, diagonal: Tensor) -> Tensor:
    """``q`` with the determinant of ``x``: a v so large that x is lost beside it may leave a column of either sign."""
    sign = slogdet(x.mT @ q)[0][..., None]
    weakest = diagonal.abs().argmin(-1, keepdim=True)
    return q * torch.ones_like(diagonal).scatter(-1, weakest, sign)[..., None, :]
