"""Backward passes that are written by hand and have no derivatives of their own."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .autocast import full_precision


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the ``backward`` of a torch.autograd.Function, below ``@staticmethod``.

    It computes without autocast. Second derivatives raise a RuntimeError, also of a loss that is linear in the output,
    where torch's ``once_differentiable`` returns wrong ones in silence.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        like = next((grad for grad in grads if grad is not None), None)
        if like is None:
            return (None,) * len(ctx.needs_input_grad)
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        with torch.no_grad(), full_precision(like):
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled() or not sources:
            return results
        several = isinstance(results, tuple)
        refused = tuple(_refuse(each, sources) for each in (results if several else (results,)))
        return refused if several else refused[0]

    return wrapped


def _refuse(grad: Any, sources: list[Tensor]) -> Any:
    return _Refused.apply(grad, *sources) if isinstance(grad, Tensor) else grad


class _Refused(torch.autograd.Function):
    """The gradient, which depends on the ``sources`` in a way that is not differentiated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("no second derivatives here: this backward pass is differentiable once")
