"""Products with B = diag(exp a) + L, L strictly lower-triangular and stored packed.

**Storage.** L is cut into panels of about 200 rows; of each panel only the columns up to its last row are kept, and the
panels lie one after the other in a flat vector. That is a little over half of L, in pieces a matrix product can read
where they are: parameter, gradient and optimiser state shrink alike, and the zero half is not multiplied. Within the
square block that ends a panel there are numbers on and above the diagonal too. They count for nothing, whatever they
are, and their gradient is zero: noise on parameters, weight averages and decay all leave a triangle.

Every operation on panels first writes zeros over them where they are stored: of three ways that were measured the
cheapest, as copies with zeros in their place take memory anew in every step. Compiled graphs read such copies.

Each function has a hand-written backward pass of differentiable operations, so second derivatives exist. Inside
``torch.func`` transforms, and where the matrix is small, the same formulae run on the unpacked matrix.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._torch.tracing import in_transform

PANEL = 200  # rows of a panel, about
SMALL = 64  # rows up to which the unpacked matrix is quicker: less is done around the products


class _Product(Function):
    """x, L, a ↦ x B for rows x, shape (N, n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
        ctx.save_for_backward(x, lower, log_diagonal)
        return _product(x, lower, log_diagonal)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, lower, log_diagonal = ctx.saved_tensors
        lower = _strict(lower, log_diagonal)
        grad_x = _TransposedProduct.apply(grad, lower, log_diagonal) if ctx.needs_input_grad[0] else None
        return grad_x, *_outer(x, grad, lower, log_diagonal)


class _TransposedProduct(Function):
    """x, L, a ↦ x Bᵀ for rows x, shape (N, n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
        ctx.save_for_backward(x, lower, log_diagonal)
        return _transposed_product(x, lower, log_diagonal)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, lower, log_diagonal = ctx.saved_tensors
        lower = _strict(lower, log_diagonal)
        grad_x = _Product.apply(grad, lower, log_diagonal) if ctx.needs_input_grad[0] else None
        return grad_x, *_outer(grad, x, lower, log_diagonal)


class _Norm(Function):
    """x, L, a ↦ ‖x B‖ for rows x, shape (N, 1); its gradient at 0 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
        product = _product(x, lower, log_diagonal)
        norm = torch.linalg.vector_norm(product, dim=-1, keepdim=True)
        ctx.save_for_backward(x, lower, log_diagonal, norm)
        ctx.product = product  # neither input nor output; freed with the graph
        return norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, lower, log_diagonal, norm = ctx.saved_tensors
        lower = _strict(lower, log_diagonal)
        # A second derivative needs to know how the product depends on the inputs.
        product = _Product.apply(x, lower, log_diagonal) if torch.is_grad_enabled() else ctx.product
        along = product * (grad / norm).masked_fill(norm == 0, 0)
        grad_x = _TransposedProduct.apply(along, lower, log_diagonal) if ctx.needs_input_grad[0] else None
        return grad_x, *_outer(x, along, lower, log_diagonal)


class _Trace(Function):
    """L, a ↦ tr(B Bᵀ), a scalar; one pass over L in each direction."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, log_diagonal: Tensor) -> Tensor:
        ctx.save_for_backward(lower, log_diagonal)
        return torch.dot(lower, lower) + (2 * log_diagonal).exp().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        lower, log_diagonal = ctx.saved_tensors
        return _cut(lower * (2 * grad), log_diagonal.shape[-1]), (2 * log_diagonal).exp() * (2 * grad)


class _Variance(Function):
    """L, a ↦ diag(B Bᵀ), shape (n,); one pass over L in each direction."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, log_diagonal: Tensor) -> Tensor:
        ctx.save_for_backward(lower, log_diagonal)
        squares = [
            torch.linalg.vector_norm(panel, dim=-1).square() for _, _, panel in _panels(lower, log_diagonal.shape[-1])
        ]
        return torch.cat(squares) + (2 * log_diagonal).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        lower, log_diagonal = ctx.saved_tensors
        size = log_diagonal.shape[-1]
        panels = [panel * (2 * grad[start:stop, None]) for start, stop, panel in _panels(lower, size)]
        scaled = torch.cat([panel.flatten() for panel in panels])
        return _cut(scaled, size), (2 * log_diagonal).exp() * (2 * grad)


def product(x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """x B for every row of ``x``, shape (..., n)."""
    if _is_unpacked(log_diagonal):
        return x @ unpack(lower, log_diagonal)
    return _Product.apply(_rows(x), _strict(lower, log_diagonal), log_diagonal).view(x.shape)


def transposed_product(x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """x Bᵀ for every row of ``x``, shape (..., n)."""
    if _is_unpacked(log_diagonal):
        return x @ unpack(lower, log_diagonal).mT
    return _TransposedProduct.apply(_rows(x), _strict(lower, log_diagonal), log_diagonal).view(x.shape)


def norm(x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """‖x B‖ for every row of ``x``, shape (..., 1)."""
    if _is_unpacked(log_diagonal):
        return torch.linalg.vector_norm(x @ unpack(lower, log_diagonal), dim=-1, keepdim=True)
    return _Norm.apply(_rows(x), _strict(lower, log_diagonal), log_diagonal).view(*x.shape[:-1], 1)


def trace(lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """tr(B Bᵀ), a scalar."""
    if _is_unpacked(log_diagonal):
        return unpack(lower, log_diagonal).square().sum()
    return _Trace.apply(_strict(lower, log_diagonal), log_diagonal)


def variance(lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """The diagonal of B Bᵀ, shape (n,)."""
    if _is_unpacked(log_diagonal):
        return unpack(lower, log_diagonal).square().sum(-1)
    return _Variance.apply(_strict(lower, log_diagonal), log_diagonal)


def packed_size(size: int) -> int:
    """How many numbers the packed L of an (n, n) matrix with n = ``size`` holds."""
    return sum((stop - start) * stop for start, stop, _ in _bounds(size))


def unpack(lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """The dense B = diag(exp a) + L, shape (n, n)."""
    return unpack_strict(lower, log_diagonal.shape[-1]) + log_diagonal.exp().diag_embed()


def unpack_strict(lower: Tensor, size: int) -> Tensor:
    """The dense strictly lower-triangular L, shape (n, n) with n = ``size``."""
    if len(_bounds(size)) == 1:
        return lower.view(size, size).tril(-1)
    rows = [F.pad(panel, (0, size - stop)) for _, stop, panel in _panels(lower, size)]
    return torch.cat(rows).tril(-1)


def pack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(L, a) of a lower-triangular (n, n) matrix B with positive diagonal; the inverse of :func:`unpack`."""
    lower = matrix.tril(-1)
    panels = [lower[start:stop, :stop].flatten() for start, stop, _ in _bounds(matrix.shape[-1])]
    return torch.cat(panels), matrix.diagonal().log()


def _strict(lower: Tensor, log_diagonal: Tensor) -> Tensor:
    """The packed L with zeros for all that is on and above its diagonal: itself, or a copy where it cannot be written.

    Past the version counter, for no result and no derivative depends on what is written over.
    """
    size = log_diagonal.shape[-1]
    if torch.compiler.is_compiling() or not _writable(lower):
        return _cut(lower.clone(memory_format=torch.contiguous_format), size)
    stored = lower.data
    for start, stop, offset in _bounds(size):
        rows, first = stop - start, stored.storage_offset() + offset + start
        stored.as_strided((rows, rows), (stop, 1), first).tril_(-1)
    return lower


def _is_unpacked(log_diagonal: Tensor) -> bool:
    return log_diagonal.shape[-1] <= SMALL or in_transform()


def _writable(lower: Tensor) -> bool:
    return lower.is_contiguous() and (torch.is_inference_mode_enabled() or not lower.is_inference())


def _cut(lower: Tensor, size: int) -> Tensor:
    """``lower`` after zeros have been written, differentiably, over all that is on and above the diagonal."""
    for start, _, panel in _panels(lower, size):
        panel[:, start:].tril_(-1)
    return lower


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _product(x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
    output = x * log_diagonal.exp()
    for start, stop, panel in _panels(lower, log_diagonal.shape[-1]):
        output[:, :stop].addmm_(x[:, start:stop], panel)
    return output


def _transposed_product(x: Tensor, lower: Tensor, log_diagonal: Tensor) -> Tensor:
    output = x * log_diagonal.exp()
    for start, stop, panel in _panels(lower, log_diagonal.shape[-1]):
        output[:, start:stop].addmm_(x[:, :stop], panel.mT)
    return output


def _outer(x: Tensor, y: Tensor, lower: Tensor, log_diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """tril(xᵀy, −1), packed, and diag(xᵀy)∘exp(a) for rows x and y: the gradients of L and a."""
    outer, diagonals = torch.empty_like(lower), []
    for start, stop, panel in _panels(outer, log_diagonal.shape[-1]):
        panel.addmm_(x[:, start:stop].mT, y[:, :stop], beta=0)  # beta=0 ignores what empty_like holds
        block = panel[:, start:]
        diagonals.append(block.diagonal().clone())
        block.tril_(-1)
    return outer, torch.cat(diagonals) * log_diagonal.exp()


def _panels(lower: Tensor, size: int) -> list[tuple[int, int, Tensor]]:
    """(start, stop, L[start:stop, :stop]) for every panel; the matrices are views of ``lower``."""
    return [
        (start, stop, lower[offset : offset + (stop - start) * stop].view(stop - start, stop))
        for start, stop, offset in _bounds(size)
    ]


def _bounds(size: int) -> tuple[tuple[int, int, int], ...]:
    """(first row, row after the last, offset in the flat vector) of every panel."""
    count = max(1, round(size / PANEL))
    stops = [size * (i + 1) // count for i in range(count)]
    bounds, offset = [], 0
    for start, stop in zip([0, *stops], stops, strict=False):
        bounds.append((start, stop, offset))
        offset += (stop - start) * stop
    return tuple(bounds)
