"""The tangent part of an ambient array at a base point, differentiated as the manifold's metric has it."""

from typing import Any

import torch
from torch import Tensor

from .._torch.tracing import jit_tracing, plain_operations, refuse_nonfinite
from ..manifolds import Manifold


def tangent_part(v: Tensor, base: Tensor, manifold: Manifold) -> Tensor:
    """``manifold.tangent(base, v)``; its backward pass gives ``v`` the gradient that ``manifold.inner`` defines.

    Raises:
        ValueError: there is NaN or infinity in ``v``.
    """
    if jit_tracing():
        return _TangentPart.forward(v, base, manifold)
    function = _ForwardModeTangentPart if plain_operations() else _TangentPart
    return function.apply(v, base, manifold)  # type: ignore[return-value]


class _TangentPart(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, base: Tensor, manifold: Manifold) -> Tensor:  # type: ignore[override]
        refuse_nonfinite("the coordinates of a trivialization", v)
        return manifold.tangent(base, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, base, ctx.manifold = inputs
        ctx.save_for_backward(base)
        ctx.save_for_forward(base)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        (base,) = ctx.saved_tensors
        return ctx.manifold.rgrad(base, grad), None, None


class _ForwardModeTangentPart(_TangentPart):
    """The same with a forward-mode derivative, which torch.compile refuses to trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        (base,) = ctx.saved_tensors
        return ctx.manifold.tangent(base, tangent)
