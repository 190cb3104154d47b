"""The polar retraction: the nearest point to x + v."""

from torch import Tensor

from ..._torch.tracing import all_within
from ...linalg.polar import polar_factor
from ...linalg.shapes import is_square
from ...linalg.solve import slogdet
from .base import Retraction

LIMIT = 10.0  # largest entry of v up to which x + v has the sign of x's determinant, whatever the rounding


class Polar(Retraction):
    """(x + v)(I + vᴴv)^-½, the nearest point to x + v; of order 2 under the Euclidean metric and on groups, else 1.

    Source: Absil, Mahony & Sepulchre (2008), example 4.1.3, doi:10.1515/9781400830244.
    """

    def order(self, metric: str) -> float:
        return 1 if metric == "canonical" else 2

    def retract(self, x: Tensor, v: Tensor, metric: str) -> Tensor:
        y = x + v
        if is_square(x.shape) and not x.is_complex() and not all_within(v, LIMIT, traced=False):
            return polar_factor(y, slogdet(x)[0])  # beside a very large v the sign of x's determinant is lost
        return polar_factor(y)
