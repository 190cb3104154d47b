"""Solves, inverses and determinants that are right for batches.

Torch's batched LU factorisation runs its threads in a LAPACK that is not safe for it: on a CPU, from n of about 150 on,
``torch.linalg.solve``, ``inv``, ``det`` and ``slogdet`` return wrong numbers, raise or hang (pytorch issue 142815; its
QR, Cholesky and triangular solves are right, and so is the LU of a single matrix, with all its threads). So a batch on
a CPU is solved by QR where the matrices are small, and by the LU of one after the other where they are not.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.linalg import solve_triangular

from .._torch.tracing import in_transform, jit_tracing
from .elementary import identity
from .shapes import check_square

__all__ = ["inverse", "inverse_diagonal", "slogdet", "solve", "solve_triangular"]

SMALL = 32  # rows up to which a batched QR takes less time than a loop of LUs


def solve(a: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    """The x with a x = b, or with x a = b where not ``left``; differentiable to any order.

    Args:
        a: shape (..., n, n).
        b: shape (..., n, k), or (..., k, n) where not ``left``; the batches broadcast.

    Returns:
        x, of the shape of b. Where a is singular there are infinite, NaN or very large numbers in it, and no error.
    """
    check_square(a.shape, "the matrix of a solve")
    if not left:
        return solve(a.mT, b.mT).mT
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    if torch.compiler.is_compiling() or jit_tracing() or (not batch and not in_transform()):
        return _solve(a, b)
    return _Solve.apply(a, b)  # type: ignore[return-value]


def inverse(a: Tensor) -> Tensor:
    """The inverse of matrices of shape (..., n, n); where one is singular, as in :func:`solve`."""
    return solve(a, identity(a))


def inverse_diagonal(tril: Tensor) -> Tensor:
    """The diagonal of (L Lᵀ)⁻¹ for a lower Cholesky factor L, shape (..., n) for (..., n, n)."""
    eye = torch.eye(tril.shape[-1], device=tril.device, dtype=tril.dtype)
    return solve_triangular(tril, eye, upper=False).square().sum(-2)


def slogdet(a: Tensor) -> tuple[Tensor, Tensor]:
    """The sign (of a complex matrix, the phase) and the logarithm of the size of the determinant, both of shape (...).

    The logarithm is differentiable, the sign a constant. Of a singular matrix they are 0 and −∞ or, in a batch, those
    of a matrix within rounding.
    """
    check_square(a.shape, "the matrix of a determinant")
    if a.dim() == 2 and (torch.compiler.is_compiling() or not in_transform()):
        sign, size = torch.linalg.slogdet(a)
        return sign.detach(), size
    if torch.compiler.is_compiling():  # which cannot differentiate geqrf
        signs, sizes = zip(*map(torch.linalg.slogdet, a.flatten(0, -3)), strict=True)
        return torch.stack(signs).detach().view(a.shape[:-2]), torch.stack(sizes).view(a.shape[:-2])
    return _SLogDet.apply(a)  # type: ignore[return-value]


class _Solve(Function):
    """a, b ↦ a⁻¹b of the same batch."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return _solve(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        a, x = ctx.saved_tensors
        of_b = solve(a.mH, grad)
        return -of_b @ x.mH, of_b

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None) -> Tensor:  # type: ignore[override]
        a, x = ctx.saved_tensors
        change = torch.zeros_like(x) if b_tangent is None else b_tangent
        return solve(a, change if a_tangent is None else change - a_tangent @ x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        a, b = (
            each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip((a, b), in_dims, strict=True)
        )
        return solve(a, b), 0


class _SLogDet(Function):
    """a ↦ the sign and the logarithm of the size of its determinant."""

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return _slogdet(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return inverse(a).mH * grad[..., None, None]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return None, solve(a, tangent).diagonal(dim1=-2, dim2=-1).sum(-1).real

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return slogdet(a.movedim(in_dims[0], 0)), (0, 0)


def _solve(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() == 2 or a.device.type != "cpu":
        return torch.linalg.solve_ex(a, b).result
    if a.shape[-1] <= SMALL:
        q, r = torch.linalg.qr(a)
        return solve_triangular(r, q.mH @ b, upper=True)
    flat = zip(a.flatten(0, -3), b.flatten(0, -3), strict=True)
    solutions = [torch.linalg.solve_ex(each, of_each).result for each, of_each in flat]
    return torch.stack(solutions).view(b.shape) if solutions else b.new_zeros(b.shape)


def _slogdet(a: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() == 2 or a.device.type != "cpu":
        sign, size = torch.linalg.slogdet(a)
        return sign, size
    r, tau = torch.geqrf(a)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    # The reflection I − τvvᴴ has determinant −τ/τ̄, or is I where τ = 0.
    turns = torch.where(tau == 0, 1, -tau / tau.conj())
    return (turns * diagonal.sgn()).prod(-1), diagonal.abs().log().sum(-1)
