"""The functions and tensor methods that :func:`mnvi.sparsity.compact` knows, as the torch modules that do the same."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

_ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
}
_OTHERS = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    **{f"max_pool{d}d": kind for d, kind in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), 1)},
    **{f"avg_pool{d}d": kind for d, kind in enumerate((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), 1)},
    "adaptive_max_pool1d": nn.AdaptiveMaxPool1d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "adaptive_max_pool3d": nn.AdaptiveMaxPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d,
}
_METHODS: dict[str, type] = {**_ACTIVATIONS, "flatten": nn.Flatten}
# Not torch.max_pool2d and its like: their arguments come in another order than the modules'.
_FUNCTIONS: dict[Callable, type] = {
    getattr(namespace, name): kind
    for namespace, names in ((torch, _METHODS), (F, _ACTIVATIONS | _OTHERS))
    for name, kind in names.items()
    if hasattr(namespace, name)
}
_RESHAPES = ("view", "reshape", torch.reshape)


def as_module(node: Node, source: Node) -> nn.Module | None:
    """The torch module that does what ``node`` does to ``source``, or None where there is none.

    ``x.view(len(x), -1)`` in its variants, and ``x.view(-1, features)``, are taken for a flatten.
    """
    if node.args[:1] != (source,):
        return None
    if node.target in _RESHAPES:
        return _flatten(node, source)
    kind = (_METHODS if node.op == "call_method" else _FUNCTIONS).get(node.target)  # type: ignore[arg-type, union-attr]
    if kind is None or node.all_input_nodes != [source]:
        return None
    if "dropout" in kind.__name__.lower() and node.kwargs.get("training", True):
        return None
    # What else torch's functions say for themselves, and modules do not take.
    unsaid = ("_stacklevel", "training", "inplace")
    options: dict[str, Any] = {
        name: value for name, value in node.kwargs.items() if name not in unsaid and value is not None
    }
    arguments: tuple = node.args[1:]
    if kind is nn.Flatten and not arguments:
        options.setdefault("start_dim", 0)  # the module's default is 1
    try:
        return kind(*arguments, **options)
    except (TypeError, ValueError):
        return None


def is_batch_size(node: Node, source: Node) -> bool:
    """Whether ``node`` is ``source.size(0)``, ``source.size()[0]`` or ``source.shape[0]``, or on the way to it."""
    if node.op == "call_method" and node.target == "size":
        if node.args == (source, 0):
            return True
        return node.args == (source,) and all(_is_first(user, node) for user in node.users)
    if node.target is getattr and node.args == (source, "shape"):
        return all(_is_first(user, node) for user in node.users)
    parent: Any = node.args[0] if node.args else None
    return isinstance(parent, Node) and _is_first(node, parent) and is_batch_size(parent, source)


def _is_first(node: Node, parent: Node) -> bool:
    return node.target is operator.getitem and node.args == (parent, 0)


def _flatten(node: Node, source: Node) -> nn.Flatten | None:
    """The flatten that a view or reshape is; ``may_change_batch`` where only its input's shape tells that it is one."""
    shape = node.args[1] if len(node.args) == 2 else node.args[1:]
    if node.kwargs or not isinstance(shape, (tuple, list)) or len(shape) != 2 or not isinstance(shape[1], int):
        return None
    keeps_batch = isinstance(shape[0], Node) and is_batch_size(shape[0], source)
    if not keeps_batch and shape[0] != -1:
        return None
    module: Any = nn.Flatten()
    module.may_change_batch = not keeps_batch
    return module
