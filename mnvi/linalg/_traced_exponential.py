"""The exponential as one operation of a traced graph, which cannot choose squarings by the data itself."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import custom_op

from .._torch.autocast import full_precision
from .._torch.tracing import exporting
from ._scaling_and_squaring import differentiate, evaluate

# Before torch 2.9 there is no such tag.
OPTIONS: Any = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


def transformed() -> bool:
    """Whether the traced graph is exported, or one of torch.func, or of forward-mode derivatives: for torch's own."""
    return exporting() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@custom_op("mnvi::exponential", mutates_args=(), **OPTIONS)
def traced_exponential(a: Tensor, name: str, skew_hermitian: bool) -> Tensor:
    """exp(a), shape (b, n, n); ``name`` and ``skew_hermitian`` as for :func:`mnvi.linalg.exponential`."""
    with full_precision(a):
        return evaluate(a, name)[0]


@custom_op("mnvi::exponential_adjoint", mutates_args=(), **OPTIONS)
def _adjoint(a: Tensor, grad: Tensor, skew_hermitian: bool) -> Tensor:
    """L(aᴴ, g), whose stages are computed again."""
    with full_precision(a):
        return differentiate(a, grad, skew_hermitian, *evaluate(a, "the argument of the exponential")[1:]).contiguous()


@traced_exponential.register_fake
def _(a: Tensor, name: str, skew_hermitian: bool) -> Tensor:
    return a.new_empty(a.shape)


@_adjoint.register_fake
def _(a: Tensor, grad: Tensor, skew_hermitian: bool) -> Tensor:
    return a.new_empty(a.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.skew_hermitian = inputs[2]


def _backward(ctx: Any, grad: Tensor):
    return _adjoint(ctx.saved_tensors[0], grad, ctx.skew_hermitian), None, None


traced_exponential.register_autograd(_backward, setup_context=_setup_context)
