"""Products of Householder reflections H(v) = I − 2vvᵀ/vᵀv: the base class of :class:`Householder` and :class:`CWY`."""

import torch
from torch import Tensor
from torch.types import Device

from .._checks import positive_int
from .._torch.dtypes import REAL
from ..linalg.compact_wy import right_factor
from ..linalg.elementary import identity
from ..linalg.exponential import exponential
from ..linalg.polar import polar_factor
from ..linalg.reflections import decompose, haar_vectors, unit_rows
from ..linalg.shapes import Size
from ..manifolds import Orthogonal
from ..manifolds.base import Manifold
from ._initial_skew import draw_skew
from .base import Originals, Parametrization, check_determinant, check_square


class ReflectionProduct(Parametrization):
    """Q = H(v₁)···H(v_L), of determinant (−1)^L, for any v₁, …, v_L: the rows of the unconstrained tensor (..., L, n).

    The length of a row counts for nothing, so weight decay leaves Q as it is; a row that is exactly zero stands for the
    first unit vector, with a gradient of zero. With L < n these are the matrices with rank(Q − I) at most L.
    """

    dtypes = REAL

    def __init__(self, reflections: int | None = None, *, init: str = "haar") -> None:
        super().__init__(init)
        self._reflections = None if reflections is None else positive_int("reflections", reflections)

    @property
    def reflections(self) -> int | None:
        """L; None where it is to be n, before there is a weight."""
        return self.layout.size[-1] if self._reflections is None and self.layout else self._reflections

    @property
    def determinant(self) -> int:
        return -1 if self._count % 2 else 1

    @property
    def _count(self) -> int:
        if self.reflections is None:
            raise ValueError(f"{self} takes its number of reflections from a weight: use mnvi.constrain")
        return self.reflections

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")
        if self._reflections is not None and size[-1] < self._reflections:
            raise ValueError(f"{self} needs a weight of at least {self.reflections} rows, got {tuple(size)}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Orthogonal()

    def coordinates(self, matrix: Tensor) -> Originals:
        parity = "odd" if self.determinant == 1 else "even"
        check_determinant(matrix, self.determinant, f"{self}", f"it takes an {parity} number of reflections")
        v, rest = decompose(matrix, self._count)
        eye, eps = identity(matrix), torch.finfo(matrix.dtype).eps
        tolerance = 2 * self.manifold(matrix.dtype).residual(matrix).max() + 10 * len(eye) * eps
        if rest.max() > tolerance:
            needed = int(torch.linalg.matrix_rank(matrix - eye, atol=tolerance).max())
            raise ValueError(f"{self} does not reach a matrix that takes {needed} reflections")
        return v

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        n, count = size[-1], self._count
        if self.init == "haar":
            x = torch.randn(*size[:-2], count, n, generator=generator, dtype=dtype, device=device)
            return unit_rows(x) if count < n else haar_vectors(x)
        k = draw_skew(self.init, size, generator)
        k[..., count - count % 2 :, :] = 0  # every block takes two reflections
        start = exponential(k)
        start[..., -1] *= self.determinant  # no block reaches the last column where the number of reflections is odd
        return decompose(start, count)[0].to(device, dtype or torch.get_default_dtype())

    def nearest(self, matrix: Tensor) -> Tensor:
        """The nearest orthogonal matrix; for L = n the nearest of those with the determinant (−1)^n."""
        if self._count < matrix.shape[-1]:
            return super().nearest(matrix)
        return polar_factor(matrix, matrix.new_full(matrix.shape[:-2], self.determinant))

    def factors(self, *originals: Tensor) -> tuple[Tensor, ...]:
        return self.thin(*originals) if self._count < originals[0].shape[-1] else super().factors(*originals)

    def thin(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        """U and P, both (L, n), where Q = I − UᵀP."""
        u = unit_rows(originals[0])
        return u, right_factor(u, u.shape[-1])

    def extra_repr(self) -> str:
        return f"reflections={self.reflections}, {super().extra_repr()}"
