"""The logarithm of a symmetric positive definite S, its derivative D log_S and the inverse of that, as functions of S.

S is given by its eigenvalues λ and in the basis of its eigenvectors, where it is diagonal but varies in all of its
entries. So nothing needs the derivatives of eigenvectors, which do not exist where eigenvalues coincide. With the
divided differences of the logarithm,

    D log_S[v]_ij = log[λ_i, λ_j] v_ij,   D² log_S[u, v]_ij = Σ_k log[λ_i, λ_k, λ_j] (u_ik v_kj + v_ik u_kj),

and the second, the derivative of the first along u, is all that is needed. D log and its inverse are differentiable
once in S and to any order in v, the logarithm twice. Source: Higham, 'Functions of Matrices' (2008), chapter 3,
doi:10.1137/1.9780898717778.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.tracing import plain_operations
from . import spectral


def log(s: Tensor, eigenvalues: Tensor) -> Tensor:
    """diag(log λ), for ``s`` of shape (..., n, n) and ``eigenvalues`` of shape (..., n)."""
    return (_DualLog if plain_operations() else _Log).apply(s, eigenvalues)  # type: ignore[return-value]


def along(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:
    """D log_S[v], all in the basis of the eigenvectors, shape (..., n, n)."""
    return (_DualAlong if plain_operations() else _Along).apply(s, v, eigenvalues)  # type: ignore[return-value]


def inverse_along(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:
    """(D log_S)⁻¹[v]."""
    return (_DualInverseAlong if plain_operations() else _InverseAlong).apply(s, v, eigenvalues)  # type: ignore[return-value]


class _Log(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, eigenvalues: Tensor) -> Tensor:  # type: ignore[override]
        return torch.diag_embed(eigenvalues.log())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        s, eigenvalues = ctx.saved_tensors
        return along(s, grad, eigenvalues), None


class _Along(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:  # type: ignore[override]
        return spectral.log(eigenvalues)[1] * v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        s, v, eigenvalues = ctx.saved_tensors
        of_s = spectral.once(_second(eigenvalues, grad, v.mT), s) if ctx.needs_input_grad[0] else None
        return of_s, along(s, grad, eigenvalues), None


class _InverseAlong(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:  # type: ignore[override]
        return v / spectral.log(eigenvalues)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        s, _, eigenvalues = inputs
        ctx.save_for_backward(s, eigenvalues, output)
        ctx.save_for_forward(s, eigenvalues, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        s, eigenvalues, solution = ctx.saved_tensors
        of_v = inverse_along(s, grad, eigenvalues)
        of_s = spectral.once(-_second(eigenvalues, of_v, solution.mT), s) if ctx.needs_input_grad[0] else None
        return of_s, of_v, None


class _DualLog(_Log):
    """The same with a forward-mode derivative, which torch.compile refuses to trace; so the two below."""

    @staticmethod
    def jvp(ctx: Any, along_s: Tensor, _: Any) -> Tensor:  # type: ignore[override]
        s, eigenvalues = ctx.saved_tensors
        return along(s, along_s, eigenvalues)


class _DualAlong(_Along):
    @staticmethod
    def jvp(ctx: Any, along_s: Tensor | None, along_v: Tensor | None, _: Any) -> Tensor:  # type: ignore[override]
        s, v, eigenvalues = ctx.saved_tensors
        change = torch.zeros_like(v) if along_v is None else along(s, along_v, eigenvalues)
        return change if along_s is None else change + spectral.once(_second(eigenvalues, along_s, v), s)


class _DualInverseAlong(_InverseAlong):
    @staticmethod
    def jvp(ctx: Any, along_s: Tensor | None, along_v: Tensor | None, _: Any) -> Tensor:  # type: ignore[override]
        s, eigenvalues, solution = ctx.saved_tensors
        change = torch.zeros_like(solution) if along_v is None else along_v
        if along_s is not None:
            change = change - spectral.once(_second(eigenvalues, along_s, solution), s)
        return inverse_along(s, change, eigenvalues)


def _second(eigenvalues: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """D² log_S[u, v], row by row, as all of the quotients would be n³ numbers."""
    rows = [
        ((u[..., i, :, None] * v + v[..., i, :, None] * u) * _quotients(eigenvalues, i)).sum(-2)
        for i in range(eigenvalues.shape[-1])
    ]
    return torch.stack(rows, -2)


def _quotients(eigenvalues: Tensor, i: int) -> Tensor:
    """log[λ_i, λ_k, λ_j], shape (..., n, n), over the largest gap; where all are near, half the second derivative."""
    size = eigenvalues.shape[-1]
    first = eigenvalues[..., i, None, None].expand(*eigenvalues.shape, size)
    three = torch.stack([first, eigenvalues.unsqueeze(-1).expand_as(first), eigenvalues.unsqueeze(-2).expand_as(first)])
    low, middle, high = three.sort(0).values
    near = high - low <= torch.finfo(low.dtype).eps ** (1 / 3) * low  # where both ways lose as many digits
    difference = _slope(middle, high) - _slope(low, middle)
    return torch.where(near, -0.5 / three.mean(0).square(), difference / (high - low).masked_fill(near, 1))


def _slope(low: Tensor, high: Tensor) -> Tensor:
    """log[low, high]."""
    equal = low == high
    gap = (high - low).masked_fill(equal, 1)
    return torch.where(equal, 1 / low, torch.log1p(gap / low) / gap)
