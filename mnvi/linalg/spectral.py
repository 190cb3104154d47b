"""Functions of symmetric matrices through their eigenvalues, with derivatives that hold where eigenvalues coincide.

f(S) = Q f(Λ) Qᵀ for S = Q Λ Qᵀ, and its derivative along U is Q (K ∘ QᵀUQ) Qᵀ with the divided differences
K_ij = (f(λ_i) − f(λ_j)) / (λ_i − λ_j), f′(λ_i) where λ_i = λ_j. A scalar function here takes eigenvalues (..., n) and
returns f(λ), shape (..., n), and K, shape (..., n, n).

Sources: Daleckii & Krein (1965); Higham, 'Functions of Matrices' (2008), theorem 3.11, doi:10.1137/1.9780898717778.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.once_differentiable import undifferentiated
from .._torch.tracing import jit_tracing, plain_operations

ONCE = "functions of symmetric matrices on manifolds can be differentiated once, not twice"
Scalar = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Apply(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, function: Scalar) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, q = torch.linalg.eigh(s)
        values, quotients = function(eigenvalues)
        return (q * values.unsqueeze(-2)) @ q.mT, q, quotients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, q, quotients = output
        ctx.mark_non_differentiable(q, quotients)
        ctx.save_for_backward(inputs[0], q, quotients)
        ctx.save_for_forward(inputs[0], q, quotients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_):  # type: ignore[override]
        s, q, quotients = ctx.saved_tensors
        return once(_sandwich(q, quotients, grad), s), None


class _DualApply(_Apply):
    """The same with a forward-mode derivative, which torch.compile refuses to trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any):  # type: ignore[override]
        s, q, quotients = ctx.saved_tensors
        return once(_sandwich(q, quotients, tangent), s), None, None


def once(derivative: Tensor, s: Tensor) -> Tensor:
    """``derivative``, which depends on ``s`` in a way that has no derivative here."""
    return undifferentiated(derivative, s, reason=ONCE)


def apply(function: Scalar, s: Tensor) -> Tensor:
    """f(S) for symmetric S, shape (..., n, n); differentiable once, whatever the eigenvalues."""
    if jit_tracing():
        return _Apply.forward(s, function)[0]
    return (_DualApply if plain_operations() else _Apply).apply(s, function)[0]  # type: ignore[index]


def exp(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    _, gap, equal = _pairs(eigenvalues)
    high = torch.maximum(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2))
    # From the larger one down, where nothing overflows unless exp(λ) does.
    return eigenvalues.exp(), high.exp() * (-torch.expm1(-gap) / gap).masked_fill(equal, 1)


def log(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    low, gap, equal = _pairs(eigenvalues)
    return eigenvalues.log(), torch.where(equal, 1 / low, torch.log1p(gap / low) / gap)


def clamp(eigenvalues: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Between bounds of shape (..., 1)."""
    values = eigenvalues.clamp(low, high)
    return values, _quotients(eigenvalues, values, (eigenvalues == values).to(values.dtype))


def bend(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """χ(λ) = 1 + λ for λ ≥ −½ and −1/(4λ) below: positive everywhere, increasing, with a continuous derivative."""
    negative = eigenvalues.clamp(max=-0.5)
    values = torch.where(eigenvalues < -0.5, -0.25 / negative, 1 + eigenvalues)
    return values, _quotients(eigenvalues, values, 0.25 / negative.square())


def _sandwich(q: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """Q (K ∘ QᵀUQ) Qᵀ of the symmetric part of U."""
    return q @ (k * (q.mT @ (u + u.mT) @ q) / 2) @ q.mT


def _pairs(eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pair the smaller one, their gap (1 where it is 0, so that nothing divides by 0), and where it is 0."""
    a, b = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    equal = a == b
    return torch.minimum(a, b), (a - b).abs().masked_fill(equal, 1), equal


def _quotients(eigenvalues: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Divided differences from the values, or the mean slope where eigenvalues are too near for that."""
    gap = eigenvalues.unsqueeze(-1) - eigenvalues.unsqueeze(-2)
    size = eigenvalues.abs().amax(-1, keepdim=True).unsqueeze(-1)
    near = gap.abs() <= torch.finfo(gap.dtype).eps ** 0.5 * size
    difference = values.unsqueeze(-1) - values.unsqueeze(-2)
    mean_slope = (slopes.unsqueeze(-1) + slopes.unsqueeze(-2)) / 2
    return torch.where(near, mean_slope, difference / gap.masked_fill(near, 1))
