"""Widening: posteriors and priors of 16-bit layers are computed in float32.

A KL is a sum over all weights of a layer: bfloat16 would give it in steps of 8,192, float16 as infinity.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")
NARROW = (torch.float16, torch.bfloat16)


def widened(modules: Iterable[nn.Module], compute: Callable[[], Result]) -> Result:
    """``compute()`` while every 16-bit parameter and buffer of ``modules`` is a float32 copy of itself.

    Gradients flow through the copies. What ``compute`` writes into a buffer is kept.
    """
    parts = [part for module in modules for part in module.modules()]
    parameters = _narrow(part._parameters for part in parts)
    buffers = _narrow(part._buffers for part in parts)
    narrow = parameters + buffers
    if not narrow:
        return compute()
    copies = [tensor.float() for _, _, tensor in narrow]
    try:
        for (tensors, name, _), copy in zip(narrow, copies, strict=True):
            tensors[name] = copy
        return compute()
    finally:
        for tensors, name, tensor in narrow:
            tensors[name] = tensor
        with torch.no_grad():
            for (_, _, buffer), copy in zip(buffers, copies[len(parameters) :], strict=True):
                buffer.copy_(copy)


def _narrow(holders: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Where the 16-bit tensors are: holder, name, tensor."""
    return [
        (tensors, name, tensor)
        for tensors in holders
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype in NARROW
    ]
