"""The exponential: the geodesic itself."""

import math

import torch
from torch import Tensor

from ..._torch.tracing import all_within
from ...linalg.cayley import LIMIT
from ...linalg.elementary import identity, skew
from ...linalg.exponential import exponential, times_exponential
from ...linalg.polar import corrected
from ...linalg.shapes import is_square
from ._span import blocks, combine, in_frame, span
from .base import Retraction

BETA = {"canonical": 0.5, "euclidean": 1.0, "bi-invariant": 0.5}  # of square x the geodesic is the same for every β


class Exponential(Retraction):
    """The geodesic from x with velocity v at time 1; see :func:`geodesic`."""

    def order(self, metric: str) -> float:
        return math.inf

    def retract(self, x: Tensor, v: Tensor, metric: str) -> Tensor:
        return geodesic(x, v, BETA[metric])

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x·exp(a), which leaves x's own rounding errors as they are."""
        return times_exponential(x, a)


def geodesic(x: Tensor, v: Tensor, beta: float = 0.5) -> Tensor:
    """The geodesic from x with velocity v at time 1, under the metric Re tr uᴴ(I − (1 − β)xxᴴ)v.

    β = ½ is the canonical metric, β = 1 the Euclidean one. In the basis [x, w], w = v − xA and A = xᴴv, the geodesic is
    [x, w]·exp([[2βA, −wᴴw], [I, 0]])·[I; 0]·exp((1 − 2β)A), whatever the rank of w; in an orthonormal basis [x, Q],
    w = QR, the generator is [[2βA, −Rᴴ], [R, 0]].

    Sources: Edelman, Arias & Smith, 'The Geometry of Algorithms with Orthogonality Constraints' (1998), sections 2.2
    and 2.4, arXiv:physics/9806030; Zimmermann & Hüper (2022), whose α is 1/(2β) − 1, arXiv:2103.12046.
    """
    if is_square(x.shape):
        return corrected(x @ exponential(skew(x.mH @ v), "a tangent vector", skew_hermitian=True))
    both, gram, a, s = span(x, v)
    if not all_within(s, LIMIT, traced=True):
        return in_frame(x, v, times_exponential, beta)
    p, eye = x.shape[-1], identity(a)
    generator = blocks(2 * beta * a, -(s + a @ a), eye.expand_as(a), torch.zeros_like(a))
    columns = exponential(generator, "a tangent vector")[..., :p]
    along, across = columns[..., :p, :], columns[..., p:, :]
    coefficients = torch.cat([along - a @ across, across], -2)
    if beta != 0.5:
        coefficients = times_exponential(coefficients, (1 - 2 * beta) * a)
    return combine(both, gram, coefficients)
