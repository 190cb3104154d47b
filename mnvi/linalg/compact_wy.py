"""The compact WY form of a product of reflections, H(u₁)···H(u_L) = I − Uᵀ S⁻¹ U, with its derivative written by hand.

H(u) = I − 2uuᵀ reflects along the unit vector u. The rows of U, shape (..., L, n), are those vectors, and
S = ½I + striu(U Uᵀ), striu the part above the diagonal. The gradient of a row of U is orthogonal to it: what would
change its length is left out. All functions are differentiable once; in transforms of torch.func, which cannot choose
by the numbers, they are made of torch's own operations and differentiable to any order.

S and S⁻¹ are upper triangular. Products with them are made in blocks of rows, each from the columns on where it is not
zero, which saves nearly half of the work.

Source: Likhosherstov et al., 'CWY parametrization: a solution for parallelized optimization of orthogonal and
Stiefel matrices' (2021), theorems 2 and 3, arXiv:2004.08675.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._torch.once_differentiable import differentiable_once
from .._torch.tracing import all_within, plain_operations
from .elementary import identity
from .polar import corrected
from .solve import solve_triangular

BLOCK = 128  # rows of a block: few enough to skip most of the zeros, enough for a fast product


def first_columns(u: Tensor, p: int) -> Tensor:
    """The first p columns of the product, shape (..., n, p), in O(Lnp) work."""
    if plain_operations():
        return corrected(torch.eye(u.shape[-1], p, dtype=u.dtype, device=u.device) - u.mT @ _plain_factor(u, p))
    return _Columns.apply(u, p)  # type: ignore[return-value]


def right_factor(u: Tensor, p: int) -> Tensor:
    """The first p columns of S⁻¹U, shape (..., L, p): the product's are [I; 0] − Uᵀ of them."""
    return _plain_factor(u, p) if plain_operations() else _RightFactor.apply(u, p)  # type: ignore[return-value]


def _plain_factor(u: Tensor, p: int) -> Tensor:
    return solve_triangular((u @ u.mT).triu(1) + identity(u.mT) / 2, u[..., :p], upper=True)


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, p: int) -> Tensor:  # type: ignore[override]
        s, nearly_parallel = _triangle(u)
        factor = _solve(s, u[..., :p])
        q = (u.mT @ factor).neg_()
        q.diagonal(dim1=-2, dim2=-1).add_(1)
        if nearly_parallel:
            q = corrected(q)
        ctx.save_for_backward(u, s, factor, q)
        return q

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        u, s, factor, q = ctx.saved_tensors
        if q.shape[-1] == q.shape[-2] and 3 * u.shape[-2] > 2 * u.shape[-1]:
            # Of a square Q only the skew part of Qᵀ·grad counts, which saves a product and a solve.
            a = q.mT @ grad
            found = factor @ (a - a.mT)
            for i, rows in _row_blocks(found):
                _add_product_(rows, (rows @ factor[..., i:, :].mT).triu_(1), u[..., i:, :], -1)
            return found, None
        found = factor @ grad.mT
        solved = _solve_transposed(s, u @ grad)
        return _add_through_triangle_(found, solved, factor, u).neg_(), None


class _RightFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, p: int) -> Tensor:  # type: ignore[override]
        s, _ = _triangle(u)
        factor = _solve(s, u[..., :p])
        ctx.save_for_backward(u, s, factor)
        return factor

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        u, s, factor = ctx.saved_tensors
        return _add_through_triangle_(torch.zeros_like(u), _solve_transposed(s, grad), factor, u), None


def _triangle(u: Tensor) -> tuple[Tensor, bool]:
    """S, with anything below its diagonal; and whether many of the vectors may be nearly parallel.

    With the errors Δ of U Uᵀ and of the solve, QᵀQ is I + PᵀΔP, P = S⁻¹U. Entries of Δ have a rounding's size and rows
    of P are short, but where k vectors are nearly parallel so are k rows of P, and their share in PᵀΔP grows up to k²
    times; how far depends on the order in which a machine sums. Then U Uᵀ is far from what random vectors give.
    """
    count, n = u.shape[-2:]
    s = _gram(u, n)
    size = torch.linalg.matrix_norm(s) / (count + count**2 / n) ** 0.5
    nearly_parallel = not all_within(size, 2.0, traced=False)
    if nearly_parallel:
        s = _gram(u, max(8, n // 8))  # sums of few terms round less
    s.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    return s, nearly_parallel


def _gram(u: Tensor, terms: int) -> Tensor:
    """U Uᵀ on and above the diagonal, in sums of so many terms."""
    s = u.new_zeros(*u.shape[:-1], u.shape[-2])
    for part in u.split(terms, -1):
        for i, rows in _row_blocks(s):
            _add_product_(rows[..., i:], part[..., i : i + BLOCK, :], part[..., i:, :].mT, 1)
    return s


def _solve(s: Tensor, b: Tensor) -> Tensor:
    """S⁻¹b, from the right and transposed, which is how LAPACK needs no copies."""
    return solve_triangular(s.mT, b.mT, upper=False, left=False).mT


def _solve_transposed(s: Tensor, b: Tensor) -> Tensor:
    return solve_triangular(s, b.mT, upper=True, left=False).mT


def _add_through_triangle_(found: Tensor, solved: Tensor, factor: Tensor, u: Tensor) -> Tensor:
    """The gradient of U through ``factor`` = S⁻¹U, added to ``found`` in place.

    ``solved`` is S⁻ᵀ times the gradient of ``factor``. It is the gradient of U as the right-hand side of the solve. The
    gradient of S is −W, W = striu(solved·factorᵀ), which goes on to U by S = ½I + striu(U Uᵀ).
    """
    found[..., : solved.shape[-1]] += solved
    for i, rows in _row_blocks(found):
        w = (solved[..., i : i + BLOCK, :] @ factor[..., i:, :].mT).triu_(1)
        _add_product_(rows, w, u[..., i:, :], -1)
        _add_product_(found[..., i:, :], w.mT, u[..., i : i + BLOCK, :], -1)
    return found


def _add_product_(out: Tensor, a: Tensor, b: Tensor, sign: int) -> None:
    """out + sign·ab, in place; without the product's own memory where there is no batch."""
    if out.dim() == 2:
        out.addmm_(a, b, alpha=sign)
    else:
        out.add_(a @ b, alpha=sign)


def _row_blocks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of x (..., L, n): the number of the first row, and the block, a view that can be written to."""
    return ((i, x[..., i : i + BLOCK, :]) for i in range(0, x.shape[-2], BLOCK))
