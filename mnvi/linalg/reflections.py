"""Products of Householder reflections H(v) = I − 2vvᵀ/vᵀv: their vectors, and how to find those of a given matrix."""

from typing import Any

import torch
from torch import Tensor

from .._torch.once_differentiable import differentiable_once
from .._torch.tracing import all_within, plain_operations, refuse_nonfinite
from .elementary import identity


def unit_rows(v: Tensor) -> Tensor:
    """v/‖v‖ for every row of (..., L, n), of any length; the first unit vector for a zero row. Differentiable once.

    Raises:
        ValueError: there is NaN or infinity among them, outside traced graphs.
    """
    return _plain_unit_rows(v) if plain_operations() else _UnitRows.apply(v)  # type: ignore[return-value]


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

    Source: Stewart, 'The efficient generation of random orthogonal matrices' (1980), doi:10.1137/0717034.
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


def _plain_unit_rows(v: Tensor) -> Tensor:
    largest = v.detach().abs().amax(-1, keepdim=True)
    refuse_nonfinite("the vectors of reflections", largest)
    first = torch.eye(1, v.shape[-1], dtype=v.dtype, device=v.device)
    u = torch.where(largest > 0, v / torch.where(largest > 0, largest, 1), first)
    return u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        tiny = torch.finfo(v.dtype).tiny ** 0.5
        if not all_within(length, 1 / tiny, traced=False) or not all_within(1 / length, 1 / tiny, traced=False):
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


def reflect(x: Tensor, u: Tensor) -> Tensor:
    """x·H(u₁)···H(u_L) for rows x, shape (..., m, n), and unit vectors u, shape (..., L, n), of the same batch.

    One reflection after the other; the backward pass keeps the result only and takes them off again. Differentiable
    once.
    """
    if not plain_operations():
        return _Reflected.apply(x, u)  # type: ignore[return-value]
    for each in u.split(1, -2):
        x = x - 2 * (x @ each.mT) * each
    return x


class _Reflected(torch.autograd.Function):
    """x·H(u₁)···H(u_L) for rows x, shape (..., m, n), and unit vectors u, shape (..., L, n), of the same batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        y = x.clone(memory_format=torch.contiguous_format)
        for each in u.split(1, -2):
            y.addcmul_(y @ each.mT, each, value=-2)
        ctx.save_for_backward(y, u)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        y, u = ctx.saved_tensors
        y, grad, found = y.clone(), grad.clone(memory_format=torch.contiguous_format), torch.empty_like(u)
        for each, own in zip(reversed(u.split(1, -2)), reversed(found.split(1, -2)), strict=True):
            of_y, of_grad = y @ each.mT, grad @ each.mT
            # Without the part along u, which a unit vector's length has no share in.
            own.copy_(of_y.mT @ grad).sub_(of_grad.mT @ y).mul_(2)
            y.addcmul_(of_y, each, value=-2)
            grad.addcmul_(of_grad, each, value=-2)
        return grad, found
