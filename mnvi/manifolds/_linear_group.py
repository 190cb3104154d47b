"""Groups of real matrices with positive determinant: their metric, geodesics, and steps that cannot leave them."""

import math

import torch
from torch import Tensor
from torch.types import Device

from .._checks import one_of
from .._torch.dtypes import REAL
from .._torch.tracing import all_within, refuse_nonfinite
from ..linalg.definite import largest, replace
from ..linalg.exponential import exponential, times_exponential
from ..linalg.solve import slogdet, solve
from ._matrix_group import MatrixGroup
from .spd import SPD
from .special_orthogonal import SpecialOrthogonal

ORDER = {"lie": 1, "exp": math.inf}


class LinearGroup(MatrixGroup):
    """Real x of shape (n, n), det x > 0, with the left-invariant metric ⟨u, v⟩ = tr (x⁻¹u)ᵀ(x⁻¹v).

    With A = x⁻¹v, the curve x·exp(tA) of the group's own exponential is not a geodesic unless A is normal. It keeps
    to one to first order only: the geodesic is x·exp(tAᵀ)·exp(t(A − Aᵀ)), defined for all t.

    ``tangent``, ``inner``, ``retract`` and ``transport`` solve with x, so they lose as many digits as its condition
    number has. They raise ValueError where x is singular, where it or a vector is not finite, and where a step is so
    long that exp(A) overflows or leaves nothing but a singular matrix.

    Sources: Lezcano-Casado (2019), 'Trivializations for Gradient-Based Optimization on Manifolds', section 6.2,
    arXiv:1909.09501; Andruchow, Larotonda, Recht & Varela (2014), 'The left invariant metric in the general linear
    group', arXiv:1109.0520.
    """

    dtypes = REAL

    def __init__(self, retraction: str = "lie") -> None:
        self.retraction = one_of("retraction", retraction, tuple(ORDER))

    @property
    def order(self) -> float:  # type: ignore[override]
        return ORDER[self.retraction]

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        return _times_exponential(x, a) if self.retraction == "lie" else _geodesic(x, a)

    def left_divide(self, x: Tensor, v: Tensor) -> Tensor:
        a = solve(x, v)
        # Of a matrix that is singular to rounding the solution is too long by 1/eps, if it is finite at all.
        excess = largest(a) * torch.finfo(a.dtype).eps * largest(x) - largest(v)
        if all_within(excess.clamp(min=0), 0, traced=True):
            return a
        refuse_nonfinite("a point", x)
        refuse_nonfinite("a tangent vector", v)
        raise ValueError(f"a point of {self} must be invertible, got a matrix singular in {x.dtype}")

    def project(self, x: Tensor) -> Tensor:
        """``x`` itself where det x > 0; else with the direction of its smallest singular value turned round.

        Raises:
            ValueError: if x is not finite, or singular.
        """
        refuse_nonfinite("a matrix to project", x)
        sign = slogdet(x)[0]
        if (sign == 0).any():
            raise ValueError(f"a matrix to project onto {self} must be invertible, got one of determinant 0")
        return replace(x, sign < 0, _turned, x)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return _invertible(super().retract(x, v))

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """A rotation from the uniform distribution times I + G Gᵀ/n, G standard normal."""
        self.check_shape(shape)
        self.check_dtype(dtype)
        rotation, stretch = (
            manifold.random(*shape, generator=generator, dtype=dtype, device=device)
            for manifold in (SpecialOrthogonal(), SPD())
        )
        return rotation @ stretch

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a point; also where it is singular to the precision of its dtype."""
        super().check(x)
        values = torch.linalg.svdvals(x)
        ratio = values[..., -1] / values[..., 0]
        if (ratio < max(x.shape[-1], 10) * torch.finfo(x.dtype).eps).any():
            raise ValueError(f"not a point of {self}: σ_min/σ_max is {ratio.min().item():.2g}, singular in {x.dtype}")

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The geodesic x·exp(Aᵀ)·exp(A − Aᵀ), A = x⁻¹v."""
        return _invertible(_geodesic(x, self.algebra(self.left_divide(x, v))))


def _times_exponential(x: Tensor, a: Tensor) -> Tensor:
    y = x @ exponential(a, "an element of the Lie algebra")
    if not all_within(y, torch.finfo(y.dtype).max, traced=True):
        size = a.detach().abs().max().item()
        raise ValueError(f"the step is too long: exp(A) overflows {y.dtype}, with entries of A up to {size:.2g}")
    return y


def _geodesic(x: Tensor, a: Tensor) -> Tensor:
    return times_exponential(_times_exponential(x, a.mT), a - a.mT)


def _invertible(y: Tensor) -> Tensor:
    """``y``, or ValueError where a step has ended so near a singular matrix that the sign of det y is lost."""
    if not all_within(1 - slogdet(y.detach())[0], 0, traced=True):
        raise ValueError(
            f"the step ends where the determinant is not positive in {y.dtype}: it is too long, or began off the group"
        )
    return y


def _turned(x: Tensor) -> Tensor:
    """``x`` with the sign of its smallest singular value changed."""
    u, values, vh = torch.linalg.svd(x)
    return x - 2 * values[..., -1:, None] * (u[..., -1:] @ vh[..., -1:, :])
