"""Bypassed layers: their weight is read past their ``forward``, so that they have a KL, but never draw."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import bayesian_layers


def check_first_pass(model: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of a converted model: raise ValueError, naming them, for layers that the first pass bypasses.

    Where a layer draws, the output depends on its posterior's parameters. Where it depends on the weight alone,
    something else has read the weight. Both can be seen in the autograd graph of the output. The first training pass
    with gradients that raises nothing removes the hook. Compiled models and what runs in a reentrant checkpoint have no
    such graph.
    """
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
        return
    outputs = tensors_in(output)
    # A scalar beside the outputs may be a penalty of the weights themselves.
    reached = leaves_of([each for each in outputs if each.dim() and each.requires_grad] or outputs)
    if not reached:
        return
    bypassed = [repr(name) for name, layer in bayesian_layers(model) if layer.training and _is_bypassed(layer, reached)]
    if bypassed:
        raise ValueError(
            f"the output depends on the weight of {', '.join(bypassed)}, but not on its posterior: the weight is read "
            "past the layer's forward (a fused attention does that), so that it would never be drawn; convert with "
            f"skip=[{', '.join(bypassed)}]"
        )
    stop_checking(model)


def stop_checking(model: nn.Module) -> None:
    """Remove :func:`check_first_pass` from the hooks of ``model`` and of its parts."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_hooks.items() if hook is check_first_pass]:
            module._forward_hooks.pop(key, None)


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors in what a model returns: sequences, mappings and dataclasses of tensors."""
    found, stack, seen = [], [output], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
        elif is_dataclass(value):
            stack.extend(vars(value).values())
    return found


def leaves_of(outputs: list[Tensor]) -> set[Tensor]:
    """The leaf tensors that require gradients and that ``outputs`` depend on."""
    found = {output for output in outputs if output.requires_grad and output.grad_fn is None}
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.add(node.variable)  # type: ignore[attr-defined]
        following = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= following
        stack.extend(following)
    return found


def _is_bypassed(layer: nn.Module, reached: set[Tensor]) -> bool:
    """Whether the output, which depends on the leaves ``reached``, depends on the layer's weight and on no variance."""
    scales = [p for p in layer.posterior.parameters() if p.requires_grad]  # type: ignore[union-attr]
    if not all(p.is_leaf for p in scales):  # tensors of functional_call, which the graph leads past
        return False
    return bool(scales) and layer._parameters.get("weight") in reached and not reached.intersection(scales)
