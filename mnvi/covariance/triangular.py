"""Products with B = diag(d) + L, L strictly lower-triangular, whose gradient keeps L strictly lower-triangular.

The parameter L is stored as a full (n, n) matrix with zeros on and above the diagonal. Masking it in every forward pass
would copy it; here only the gradient is cut, so L never leaves the strictly lower-triangular matrices.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _LowerProduct(Function):
    """x, L, d ↦ x (diag(d) + L) for rows x, shape (N, n)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor, diagonal: Tensor) -> Tensor:
        return torch.addmm(x * diagonal, x, lower)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, lower, diagonal = ctx.saved_tensors
        grad_x = _LowerTransposedProduct.apply(grad, lower, diagonal) if ctx.needs_input_grad[0] else None
        return grad_x, (x.mT @ grad).tril_(-1), (x * grad).sum(0)


class _LowerTransposedProduct(Function):
    """x, L, d ↦ x (diag(d) + L)ᵀ for rows x, shape (N, n)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor, diagonal: Tensor) -> Tensor:
        return torch.addmm(x * diagonal, x, lower.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, lower, diagonal = ctx.saved_tensors
        grad_x = _LowerProduct.apply(grad, lower, diagonal) if ctx.needs_input_grad[0] else None
        return grad_x, (grad.mT @ x).tril_(-1), (x * grad).sum(0)


class _RowSquares(Function):
    """L ↦ Σ_j L_ij², shape (n,); one pass over L in each direction and no copy of it in between."""

    generate_vmap_rule = True

    @staticmethod
    def forward(lower: Tensor) -> Tensor:
        return torch.linalg.vector_norm(lower, dim=-1).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        (lower,) = ctx.saved_tensors
        return lower * (2 * grad).unsqueeze(-1)


def lower_product(x: Tensor, lower: Tensor, diagonal: Tensor) -> Tensor:
    """x (diag(d) + L) for every row of ``x``, shape (..., n); L must be strictly lower-triangular."""
    return (
        _LowerProduct.apply(x.flatten(0, -2), lower, diagonal).view_as(x)
        if x.dim() != 2
        else _LowerProduct.apply(x, lower, diagonal)
    )


def lower_transposed_product(x: Tensor, lower: Tensor, diagonal: Tensor) -> Tensor:
    """x (diag(d) + L)ᵀ for every row of ``x``, shape (..., n); L must be strictly lower-triangular."""
    return _LowerTransposedProduct.apply(x.flatten(0, -2), lower, diagonal).view_as(x)


def row_squares(lower: Tensor) -> Tensor:
    """Σ_j L_ij² for every row i of ``lower``, shape (n,)."""
    return _RowSquares.apply(lower)
