"""What the groups of square unitary matrices share."""

import math

import torch
from torch import Tensor

from .._checks import one_of
from .._torch.dtypes import REAL
from ..linalg import orthonormal
from ..linalg.cayley import times_cayley
from ..linalg.elementary import real_inner, skew
from ..linalg.exponential import times_exponential
from ..linalg.logarithm import logarithm
from ..linalg.polar import polar_factor
from ._matrix_group import MatrixGroup

ORDER = {"qr": 1, "polar": 2, "cayley": 2, "exp": math.inf}
TRANSLATIONS = {"cayley": times_cayley, "exp": times_exponential}


class UnitaryGroup(MatrixGroup):
    """Square x of shape (n, n) with xᴴx = I; v = xA is tangent for skew-Hermitian A, and ⟨u, v⟩ = Re tr uᴴv.

    The metric is invariant under products from both sides, so geodesics are x·exp(tA). The retractions are those of
    :class:`Stiefel`; their orders are 1 for ``"qr"``, 2 for ``"polar"`` and ``"cayley"``, ∞ for ``"exp"``.

    Transport is the left translation yxᴴv. It keeps lengths, where the projection would shorten a momentum at every
    step, and costs the same two products.

    Source: Edelman, Arias & Smith (1998), 'The Geometry of Algorithms with Orthogonality Constraints', section 2.2.
    """

    constant_norm = True
    dtypes = REAL

    def __init__(self, retraction: str = "qr") -> None:
        self.retraction = one_of("retraction", retraction, tuple(ORDER))

    @property
    def order(self) -> float:  # type: ignore[override]
        return ORDER[self.retraction]

    def algebra(self, a: Tensor) -> Tensor:
        return skew(a)

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x·φ(a) for a skew-Hermitian ``a``; ``"cayley"`` and ``"exp"`` leave x's own rounding errors as they are."""
        times = TRANSLATIONS.get(self.retraction)
        return self.retract(x, x @ a) if times is None else times(x, a)

    def left_divide(self, x: Tensor, v: Tensor) -> Tensor:
        return x.mH @ v

    def project(self, x: Tensor) -> Tensor:
        return polar_factor(x)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(u, v)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.exp(x, v) if self.retraction == "exp" else orthonormal.RETRACTIONS[self.retraction](x, v)

    def residual(self, x: Tensor) -> Tensor:
        return orthonormal.residual(x)

    def random(self, *shape: int, generator: torch.Generator | None = None, dtype=None, device=None) -> Tensor:
        """A point from the uniform (Haar) distribution."""
        self.check_shape(shape)
        default = torch.get_default_dtype()
        dtype = (default if default in self.dtypes else default.to_complex()) if dtype is None else dtype
        self.check_dtype(dtype)
        return orthonormal.random(*shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return orthonormal.geodesic(x, v)

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
