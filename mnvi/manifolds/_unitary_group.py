"""Groups of orthogonal or unitary matrices: their metric, steps, geodesics and distances."""

import torch
from torch import Tensor
from torch.types import Device

from .._checks import one_of
from .._torch.dtypes import REAL
from ..linalg import orthonormal
from ..linalg.elementary import real_inner, skew
from ..linalg.logarithm import logarithm
from ..linalg.polar import polar_factor
from ._matrix_group import MatrixGroup
from .retractions import RETRACTIONS

METRIC = "bi-invariant"


class UnitaryGroup(MatrixGroup):
    """Square x of shape (n, n) with xᴴx = I; v = xA is tangent for skew-Hermitian A, and ⟨u, v⟩ = Re tr uᴴv.

    The metric is invariant under products from both sides, so geodesics are x·exp(tA). The retractions are
    the rows of :data:`mnvi.manifolds.retractions.RETRACTIONS`.

    Transport is the left translation yxᴴv. It keeps lengths, where the projection would shorten a momentum at every
    step, and costs the same two products.

    Source: Edelman, Arias & Smith (1998), 'The Geometry of Algorithms with Orthogonality Constraints', section 2.2,
    arXiv:physics/9806030.
    """

    constant_norm = True
    dtypes = REAL

    def __init__(self, retraction: str = "qr") -> None:
        self.retraction = one_of("retraction", retraction, tuple(RETRACTIONS))

    @property
    def order(self) -> float:  # type: ignore[override]
        return RETRACTIONS[self.retraction].order(METRIC)

    def algebra(self, a: Tensor) -> Tensor:
        return skew(a)

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x·φ(a) for a skew-Hermitian ``a``; ``"cayley"`` and ``"exp"`` leave x's own rounding errors as they are."""
        return RETRACTIONS[self.retraction].translate(x, a)

    def left_divide(self, x: Tensor, v: Tensor) -> Tensor:
        return x.mH @ v

    def project(self, x: Tensor) -> Tensor:
        return polar_factor(x)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(u, v)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return RETRACTIONS[self.retraction].retract(x, v, METRIC)

    def residual(self, x: Tensor) -> Tensor:
        return orthonormal.residual(x)

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """A point from the uniform (Haar) distribution."""
        self.check_shape(shape)
        default = torch.get_default_dtype()
        dtype = (default if default in self.dtypes else default.to_complex()) if dtype is None else dtype
        self.check_dtype(dtype)
        return orthonormal.random(*shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return RETRACTIONS["exp"].retract(x, v, METRIC)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """x·log(xᴴy) by the principal logarithm; differentiable, also at equal angles and at y = x.

        At a distance δ of the largest angle from π it is right to about eps/δ.

        Raises:
            ValueError: if an angle between the points is π up to √eps, where two geodesics are shortest.
        """
        return x @ logarithm(x.mH @ y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The root of the sum of the squared angles of xᴴy, to rounding for all angles from 0 to π."""
        # 2 sin and 2 cos of half of each angle: sorted against each other they pair up, and neither loses small values.
        sines, cosines = torch.linalg.svdvals(y - x), torch.linalg.svdvals(y + x).flip(-1)
        return torch.linalg.vector_norm(2 * torch.atan2(sines, cosines), dim=-1)
