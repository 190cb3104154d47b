"""The Cayley retraction: a Cayley transform of x, by a solve with a p×p matrix."""

import torch
from torch import Tensor

from ..._torch.tracing import all_within
from ...linalg.cayley import LIMIT, times_cayley
from ...linalg.elementary import identity, skew
from ...linalg.polar import corrected
from ...linalg.shapes import is_square
from ...linalg.solve import inverse
from ._span import combine, in_frame, span
from .base import Retraction


class Cayley(Retraction):
    """(I − ½W)⁻¹(I + ½W)x, Wx = v; of order 2 under the canonical metric and on groups, 1 under the Euclidean one.

    W = Pvxᴴ − xvᴴP with P = I − ½xxᴴ has rank 2p, so Woodbury's identity gives a 2p×2p system. In the basis [x, w],
    w = v − xA and A = xᴴv, half of it solves itself, and what is left is p×p: (2x + w)(I − ½A + ¼wᴴw)⁻¹ − x. The 3p×3p
    system that the Euclidean metric has in 'RGD-E-C' (Likhosherstov et al., 2021, arXiv:2004.08675) is not needed, as v
    is tangent already.

    Sources: Wen & Yin, 'A feasible method for optimization with orthogonality constraints' (2013),
    doi:10.1007/s10107-012-0584-1; for the p×p form, on the symplectic Stiefel manifold, Bendokat & Zimmermann (2021),
    arXiv:2108.12447.
    """

    def order(self, metric: str) -> float:
        return 1 if metric == "euclidean" else 2

    def retract(self, x: Tensor, v: Tensor, metric: str) -> Tensor:
        if is_square(x.shape):
            return corrected(times_cayley(x, skew(x.mH @ v)))
        both, gram, a, s = span(x, v)
        if not all_within(s, LIMIT, traced=True):
            return in_frame(x, v, times_cayley)
        eye = identity(a)
        b = inverse(eye - a / 2 + (s + a @ a) / 4)  # wᴴw = vᴴv + A²
        return combine(both, gram, torch.cat([(2 * eye - a) @ b - eye, b], -2))

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x times the Cayley transform of ``a``, which leaves x's own rounding errors as they are."""
        return times_cayley(x, a)
