"""The Cayley parametrization, plain and scaled."""

import math

import torch
from torch import Tensor
from torch.types import Device

from .._torch.tracing import all_within
from ..linalg.cayley import LIMIT, times_cayley
from ..linalg.elementary import identity, skew
from ..linalg.shapes import Size
from ..linalg.solve import solve
from ._skew_parametrization import SkewParametrization
from .base import Originals


class Cayley(SkewParametrization):
    """Q = (I + A)⁻¹(I − A), A skew-symmetric: every rotation without an angle of π; of a complex weight, in U(n).

    Towards an angle of π the entries of A grow without bound, and rounding with them: a weight that is assigned comes
    back up to √eps there, or is refused.

    Args:
        init: ``"cayley"`` (default), ``"henaff"``, ``"haar"`` or ``"identity"``.

    Raises:
        ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square; when a
            weight is assigned, it is not orthogonal, or −1 is among its eigenvalues.

    Source: Helfrich, Willmott & Ye, 'Orthogonal recurrent neural networks with scaled Cayley transform' (2018),
    arXiv:1707.09520, equation 1.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", Cayley())
    """

    def __init__(self, *, init: str = "cayley") -> None:
        super().__init__(init)

    def phi(self, a: Tensor) -> Tensor:
        return times_cayley(identity(a).expand_as(a), -2 * a)

    def inverse(self, q: Tensor) -> Tensor:
        eye = identity(q)
        a = solve(eye + q, eye - q, left=False)
        error = float(torch.linalg.matrix_norm(a + a.mH).amax() / (1 + torch.linalg.matrix_norm(a).amax()))
        if not error < torch.finfo(q.dtype).eps ** 0.5:
            raise ValueError(f"{self} does not reach a matrix with an eigenvalue of -1")
        return skew(a)

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        a = self.skew(originals[0]).conj()
        if not all_within(a, LIMIT / 2, traced=True):
            return super().rows(x, *originals)
        turned = self.scaled(x.reshape(-1, a.shape[-1]), *originals)
        return solve(identity(a) - a, turned + turned @ a, left=False).reshape(x.shape)


class ScaledCayley(Cayley):
    """Q = (I + A)⁻¹(I − A)·D with a diagonal D: fixed signs for a real weight, trained phases for a complex one.

    For every orthogonal matrix there are signs for which it is reached with all entries of A within ±1. As a recurrent
    kernel this is scoRNN; with a complex weight, where D = diag(exp(iθ)), it is scuRNN, which needs no choice of signs.

    Args:
        negative_ones: how many entries of D are −1, from 0 to n (default: half of them); of a real weight.
        init: ``"cayley"`` (default), ``"henaff"``, ``"haar"`` or ``"identity"``, of A; phases start uniform on (0, 2π).

    Raises:
        ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square or has fewer rows
            than ``negative_ones``; when a weight is assigned, it is not orthogonal, or −1 is among the eigenvalues of
            Q·D.

    Sources: Helfrich, Willmott & Ye (2018), arXiv:1707.09520, equation 2; Maduranga, Helfrich & Ye, 'Complex unitary
    recurrent neural networks using scaled Cayley transform' (2019), arXiv:1811.04142, section 3.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", ScaledCayley(negative_ones=32))
    """

    def __init__(self, negative_ones: int | None = None, *, init: str = "cayley") -> None:
        super().__init__(init=init)
        if negative_ones is not None and (type(negative_ones) is not int or negative_ones < 0):
            raise ValueError(f"negative_ones must be an int of at least 0, or None, got {negative_ones!r}")
        self.negative_ones = negative_ones

    def check_shape(self, size: Size) -> None:
        super().check_shape(size)
        if self.negative_ones is not None and self.negative_ones > size[-1]:
            raise ValueError(f"{self} needs a weight of at least {self.negative_ones} rows, got {tuple(size)}")

    def check_complex(self) -> None:
        if self.negative_ones is not None:
            raise ValueError(
                f"{self} is for a real weight; of a complex one D has phases, and negative_ones must be None"
            )

    def negative_signs(self, n: int) -> int:
        return n // 2 if self.negative_ones is None else self.negative_ones

    def diagonal(self, *originals: Tensor) -> Tensor:
        return torch.polar(torch.ones_like(originals[1]), originals[1]) if self.complex else self.signs

    def coordinates(self, matrix: Tensor) -> Originals:
        found = super().coordinates(matrix)
        return (*found, matrix.real.new_zeros(matrix.shape[:-1])) if self.complex else found

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        drawn = super().draw(size, generator=generator, dtype=dtype, device=device)
        if not self.complex:
            return drawn
        source = None if generator is None else generator.device
        phases = 2 * math.pi * torch.rand(size[:-1], generator=generator, dtype=torch.float64, device=source)
        return *drawn, phases.to(drawn[0])

    def extra_repr(self) -> str:
        return f"negative_ones={self.negative_ones}, {super().extra_repr()}"
