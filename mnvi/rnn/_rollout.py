"""The rollout of a recurrent layer, h_t = σ(x_t + Q h_{t−1}), with its backward pass written by hand.

The states of a batch of sequences of falling lengths lie packed in one array of shape (total, n): step t has
``sizes[t]`` rows, the sequences that are not over. The kernel Q is a matrix, or I − UᵀP by two thin factors. Through
time the backward pass carries only states; the gradient of the kernel is one product over all steps, at the end.
Where plain operations are asked for it is a loop of them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .._torch.once_differentiable import differentiable_once
from .._torch.tracing import exporting, plain_operations
from .nonlinearities import Nonlinearity


def rollout(
    x: Tensor, state: Tensor, bias: Tensor | None, sizes: list[int], sigma: Nonlinearity, *kernel: Tensor
) -> tuple[Tensor, Tensor]:
    """The states of every step, shape (total, n), packed as ``x`` is, and each sequence's last; differentiable once.

    Args:
        x: what the input adds to each step, shape (total, n). Its memory is reused for the states.
        state: h_0, shape (sizes[0], n).
        bias: the parameter of the nonlinearity, shape (n,), or None where it has none.
        sizes: rows of every step, not rising.
        sigma: the nonlinearity.
        kernel: Q of shape (n, n), real or complex; or real U and P of shape (L, n), for Q = I − UᵀP.
    """
    if not (plain_operations() or exporting()):
        return _Rollout.apply(x, state, bias, sizes, sigma, *kernel)  # type: ignore[return-value]
    steps, h = [], state
    for z, size in zip(x.split(sizes), sizes, strict=True):
        h = sigma(z + _product(h[:size], kernel), bias)
        steps.append(h)
    return torch.cat(steps), _last(steps, sizes)


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, state: Tensor, bias: Tensor | None, sizes: list[int], sigma: Nonlinearity, *kernel: Tensor
    ):
        inputs = torch.empty_like(x) if sigma.needs_input else None
        steps, h = x.split(sizes), state
        kept = None if inputs is None else inputs.split(sizes)
        for t, z in enumerate(steps):
            _advance_(z, h[: len(z)], kernel)
            if kept is not None:
                kept[t].copy_(z)
            h = sigma.forward_(z, bias)
        last = _last(steps, sizes)
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, inputs, state, bias, *kernel)
        ctx.sizes, ctx.sigma = sizes, sigma
        return x, last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, last_grad: Tensor | None):
        states, inputs, state, bias, *kernel = ctx.saved_tensors
        grads = torch.empty_like(states)  # of x
        bias_grad = None if bias is None else state.real.new_zeros(state.shape)
        at = states if inputs is None else inputs
        own = [None] * len(ctx.sizes) if grad is None else grad.split(ctx.sizes)
        later = grads[:0]
        for g, h, outer in reversed(list(zip(grads.split(ctx.sizes), at.split(ctx.sizes), own, strict=True))):
            g.zero_() if outer is None else g.copy_(outer)
            if last_grad is not None and len(later) < len(g):
                g[len(later) :] += last_grad[len(later) : len(g)]
            _retreat_(g[: len(later)], later, kernel)
            later = ctx.sigma.backward_(g, h, bias, None if bias_grad is None else bias_grad[: len(g)])
        state_grad = _retreat_(torch.zeros_like(state), later, kernel) if ctx.needs_input_grad[1] else None
        first = len(state)
        of_first = _kernel_grads(grads[:first], state, kernel)
        of_rest = _kernel_grads(grads[first:], _before(states, ctx.sizes), kernel)
        kernel_grads = [here.add_(there) for here, there in zip(of_rest, of_first, strict=True)]
        return grads, state_grad, None if bias_grad is None else bias_grad.sum(0), None, None, *kernel_grads


def _last(steps: Sequence[Tensor], sizes: list[int]) -> Tensor:
    """Each sequence's last state, from those of all steps."""
    return torch.cat([steps[-1], *(step[over:] for step, over in zip(steps[-2::-1], sizes[:0:-1], strict=True))])


def _product(h: Tensor, kernel: tuple[Tensor, ...]) -> Tensor:
    """Q h of each row h."""
    if len(kernel) == 1:
        return h @ kernel[0].mT
    u, p = kernel
    return h - (h @ p.mT) @ u


def _advance_(z: Tensor, h: Tensor, kernel: tuple[Tensor, ...]) -> Tensor:
    """Q h added to each row z, in place."""
    if len(kernel) == 1:
        return z.addmm_(h, kernel[0].mT)
    u, p = kernel
    return z.add_(h).addmm_(h @ p.mT, u, alpha=-1)


def _retreat_(g: Tensor, later: Tensor, kernel: list[Tensor]) -> Tensor:
    """Qᴴ·later added to each row g, in place."""
    if len(kernel) == 1:
        return g.addmm_(later, kernel[0].conj())
    u, p = kernel
    return g.add_(later).addmm_(later @ u.mT, p, alpha=-1)


def _kernel_grads(grads: Tensor, before: Tensor, kernel: list[Tensor]) -> list[Tensor]:
    """The gradient of each factor, from that of Q h and from h."""
    if len(kernel) == 1:
        return [grads.mT @ before.conj()]
    u, p = kernel
    return [((before @ p.mT).mT @ grads).neg_(), ((grads @ u.mT).mT @ before).neg_()]


def _before(states: Tensor, sizes: list[int]) -> Tensor:
    """The states that all steps but the first began with."""
    if sizes[0] == sizes[-1]:
        return states[: -sizes[-1]]
    return torch.cat([before[: len(after)] for before, after in pairwise(states.split(sizes))])
