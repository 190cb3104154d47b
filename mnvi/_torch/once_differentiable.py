"""Derivatives that are written by hand and have none of their own, so that a second one is refused."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .autocast import full_precision
from .tracing import plain_operations

REASON = "no second derivatives here: this backward pass is differentiable once"


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
        found = tuple(
            undifferentiated(each, *sources, reason=REASON) if isinstance(each, Tensor) else each
            for each in (results if several else (results,))
        )
        return found if several else found[0]

    return wrapped


def undifferentiated(value: Tensor, *sources: Tensor, reason: str) -> Tensor:
    """``value``, which depends on the ``sources`` in a way that is not differentiated: that raises a RuntimeError.

    For a derivative that has none itself, of either mode. Torch's ``once_differentiable`` can leave it out in silence.
    """
    function = _DualUndifferentiated if plain_operations() else _Undifferentiated
    return function.apply(value, reason, *sources)  # type: ignore[return-value]


class _Undifferentiated(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, reason: str, *sources: Tensor) -> Tensor:  # type: ignore[override]
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.reason = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        raise RuntimeError(ctx.reason)


class _DualUndifferentiated(_Undifferentiated):
    """The same with a forward-mode derivative, which torch.compile refuses to trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any):  # type: ignore[override]
        raise RuntimeError(ctx.reason)
