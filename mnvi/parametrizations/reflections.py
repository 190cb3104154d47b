"""Products of Householder reflections H(v) = I − 2vvᵀ/vᵀv: their vectors, and how to find those of a given matrix."""

from typing import Any

import torch
from torch import Tensor

from ..checks import positive_int
from ..differentiation import differentiable_once
from ..manifolds import Manifold, Orthogonal
from ..manifolds.base import REAL, Size
from ..manifolds.branching import refuse_nonfinite, within
from ..manifolds.polar import polar_factor
from ..manifolds.skew_hermitian import identity
from .base import Originals, Parametrization, check_determinant, check_square
from .compact_wy import right_factor
from .group import draw_skew


class ReflectionProduct(Parametrization):
    """Q = H(v₁)···H(v_L), of determinant (−1)^L, for any v₁, …, v_L: the rows of the unconstrained tensor (..., L, n).

    The length of a row counts for nothing, so weight decay leaves Q as it is; a row that is exactly zero stands for the
    first unit vector, with a gradient of zero. With L < n these are the matrices with rank(Q − I) at most L.
    """

    dtypes = REAL

    def __init__(self, reflections: int, *, init: str = "haar") -> None:
        super().__init__(init)
        self.reflections = positive_int("reflections", reflections)

    @property
    def determinant(self) -> int:
        return -1 if self.reflections % 2 else 1

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")
        if size[-1] < self.reflections:
            raise ValueError(f"{self} needs a weight of at least {self.reflections} rows, got {tuple(size)}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Orthogonal()

    def coordinates(self, matrix: Tensor) -> Originals:
        parity = "odd" if self.determinant == 1 else "even"
        check_determinant(matrix, self.determinant, f"{self}", f"it takes an {parity} number of reflections")
        v, rest = decompose(matrix, self.reflections)
        eye, eps = identity(matrix), torch.finfo(matrix.dtype).eps
        tolerance = 2 * self.manifold(matrix.dtype).residual(matrix).max() + 10 * len(eye) * eps
        if rest.max() > tolerance:
            needed = int(torch.linalg.matrix_rank(matrix - eye, atol=tolerance).max())
            raise ValueError(f"{self} does not reach a matrix that takes {needed} reflections")
        return v

    def draw(self, size: Size, *, generator: torch.Generator | None = None, dtype=None, device=None) -> Originals:
        n, count = size[-1], self.reflections
        if self.init == "haar":
            x = torch.randn(*size[:-2], count, n, generator=generator, dtype=dtype, device=device)
            return unit_rows(x) if count < n else haar_vectors(x)
        k = draw_skew(self.init, size, generator)
        k[..., count - count % 2 :, :] = 0  # every block takes two reflections
        start = torch.linalg.matrix_exp(k)
        start[..., -1] *= self.determinant  # no block reaches the last column where the number of reflections is odd
        return decompose(start, count)[0].to(device, dtype or torch.get_default_dtype())

    def nearest(self, matrix: Tensor) -> Tensor:
        """The nearest orthogonal matrix; for L = n the nearest of those with the determinant (−1)^n."""
        if self.reflections < matrix.shape[-1]:
            return super().nearest(matrix)
        return polar_factor(matrix, matrix.new_full(matrix.shape[:-2], self.determinant))

    def factors(self, *originals: Tensor) -> tuple[Tensor, ...]:
        return self.thin(*originals) if self.reflections < originals[0].shape[-1] else super().factors(*originals)

    def thin(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        """U and P, both (L, n), where Q = I − UᵀP."""
        u = unit_rows(originals[0])
        return u, right_factor(u, u.shape[-1])

    def extra_repr(self) -> str:
        return f"reflections={self.reflections}, {super().extra_repr()}"


def unit_rows(v: Tensor) -> Tensor:
    """v/‖v‖ for every row of (..., L, n), of any length; the first unit vector for a zero row. Differentiable once.

    Raises:
        ValueError: there is NaN or infinity among them, outside traced graphs.
    """
    return _UnitRows.apply(v)  # type: ignore[return-value]


def mirror(q: Tensor, axis: Tensor) -> Tensor:
    """q − e, whose reflection exchanges the unit vectors q and e, ``axis`` of the standard basis; 0 for q = e.

    It is without cancellation where q is near e, and its part along e makes up for rounding in the length of q.
    """
    along = (q * axis).sum(-1, keepdim=True)
    across = q - along * axis
    opposite = across.square().sum(-1, keepdim=True)
    return across + axis * torch.where(along > 0, -opposite / (1 + along), along - 1)


def haar_vectors(x: Tensor) -> Tensor:
    """Vectors (..., p, n), p ≤ n, of reflections whose product has p first columns from the uniform distribution.

    For p = n that is the distribution on the orthogonal matrices of determinant (−1)^n.

    Args:
        x: independent standard normal numbers of that shape.

    Source: Stewart, 'The efficient generation of random orthogonal matrices' (1980).
    """
    p, n = x.shape[-2:]
    axes = torch.eye(p, n, dtype=x.dtype, device=x.device)
    q = unit_rows(x.triu())
    if p == n:
        q[..., -1, :] = -axes[-1]
    return unit_rows(mirror(q, axes))


def decompose(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (..., count, n) whose reflections multiply to an orthogonal matrix, and the worst column's error.

    Each reflection takes the column that is farthest from its place there, which lowers rank(Q − I) by one and undoes
    none of the others; when all are in place, the rest are equal pairs. So the error is zero, up to rounding, where
    rank(Q − I) ≤ count and det Q = (−1)^count.
    Source: the proof of the theorem of Cartan and Dieudonné, with pivots.
    """
    eye = identity(matrix)
    error, found = matrix - eye, []
    floor = torch.finfo(matrix.dtype).eps ** 2
    for step in range(count):
        sizes = error.square().sum(-2, keepdim=True)
        largest, pivot = sizes.max(-1, keepdim=True)
        axis = eye[pivot[..., 0, 0]]
        column = error.gather(-1, pivot.expand(*error.shape[:-1], 1))[..., 0]
        v = torch.where(largest[..., 0] > floor, mirror(column + axis, axis), eye[step])
        u = v / v.norm(dim=-1, keepdim=True)
        product = u[..., None, :] @ error + u[..., None, :]
        error -= 2 * u[..., None] * product
        found.append(u)
    return torch.stack(found, -2), error.square().sum(-2).amax(-1).sqrt()


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        tiny = torch.finfo(v.dtype).tiny ** 0.5
        if not within(length, 1 / tiny, traced=False) or not within(1 / length, 1 / tiny, traced=False):
            return _UnitRows._of_any_length(ctx, v)
        u = v / length
        ctx.save_for_backward(u, length)
        return u

    @staticmethod
    def _of_any_length(ctx: Any, v: Tensor) -> Tensor:
        largest = v.abs().amax(-1, keepdim=True)
        refuse_nonfinite("the vectors of reflections", largest)
        zero = largest == 0
        u = v / largest.masked_fill(zero, 1)
        u[..., :1] += zero
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        ctx.save_for_backward(u.div_(length), (length * largest).masked_fill(zero, torch.inf))
        return u

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        u, length = ctx.saved_tensors
        along = (grad * u.conj()).real if u.is_complex() else grad * u
        across = torch.addcmul(grad, u, along.sum(-1, keepdim=True).to(u.dtype), value=-1)
        # Of rows shorter than the root of the smallest number it is a bounded multiple of the gradient.
        return across.div_(length.clamp(min=torch.finfo(u.dtype).tiny ** 0.5))
