"""The Stiefel manifold: matrices with orthonormal columns."""

import torch
from torch import Tensor
from torch.types import Device

from .._checks import one_of
from ..linalg import orthonormal
from ..linalg.elementary import real_inner
from ..linalg.polar import polar_factor
from ..linalg.shapes import Size, check_thin
from .base import Manifold
from .retractions import RETRACTIONS

METRICS = ("canonical", "euclidean")


class Stiefel(Manifold[Tensor]):
    """The x of shape (n, p), n ≥ p, with xᴴx = I; v is tangent where xᴴv is skew-Hermitian. Real or complex.

    Args:
        metric: ``"canonical"``, ⟨u, v⟩ = Re tr uᴴ(I − ½xxᴴ)v, which counts every degree of freedom once, or
            ``"euclidean"``, Re tr uᴴv, that of the surrounding space, which counts those of xᴴv twice.
        retraction: how :meth:`retract` takes a step, a row of :data:`mnvi.manifolds.retractions.RETRACTIONS`; each
            takes a tangent vector and costs O(np² + p³).
            ``"qr"``: the Q of x + v, by far the fastest, of order 1.
            ``"cayley"``: a Cayley transform by a p×p solve, of order 2 under the canonical metric, else 1.
            ``"polar"``: the nearest point to x + v, of order 2 under the Euclidean metric, else 1.
            ``"exp"``: the geodesic itself.

    Raises:
        ValueError: for any other metric or retraction.

    ``exp`` is known in closed form under both metrics; ``log`` and ``dist`` are not.
    Sources: Edelman, Arias & Smith (1998), 'The Geometry of Algorithms with Orthogonality Constraints', section 2,
    arXiv:physics/9806030; Wen & Yin (2013), 'A feasible method for optimization with orthogonality constraints',
    doi:10.1007/s10107-012-0584-1.

    Example:
        >>> manifold = Stiefel()
        >>> x = manifold.random(64, 16)
        >>> x = manifold.retract(x, -0.1 * manifold.rgrad(x, gradient))
    """

    constant_norm = True

    def __init__(self, metric: str = "canonical", retraction: str = "qr") -> None:
        self.metric = one_of("metric", metric, METRICS)
        self.retraction = one_of("retraction", retraction, tuple(RETRACTIONS))

    @property
    def order(self) -> float:  # type: ignore[override]
        return RETRACTIONS[self.retraction].order(self.metric)

    def check_shape(self, *shapes: Size) -> None:
        check_thin(shapes, f"a point of {self}")

    def project(self, x: Tensor) -> Tensor:
        return polar_factor(x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return orthonormal.tangent(x, v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if self.metric == "euclidean":
            return real_inner(u, v)
        a = x.mH @ u
        return real_inner(u, v) - real_inner(a, a if v is u else x.mH @ v) / 2

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        """Under the canonical metric g − x gᴴ x, under the Euclidean one the tangent part of the gradient g."""
        if self.metric == "euclidean":
            return self.tangent(x, euclidean_grad)
        return (x @ -(euclidean_grad.mH @ x)).add_(euclidean_grad)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return RETRACTIONS[self.retraction].retract(x, v, self.metric)

    def residual(self, x: Tensor) -> Tensor:
        return orthonormal.residual(x)

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """A point from the uniform distribution."""
        self.check_shape(shape)
        return orthonormal.random(*shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return RETRACTIONS["exp"].retract(x, v, self.metric)
