"""A model as a chain of modules, each applied to the output of the one before."""

from collections.abc import Iterator
from typing import NamedTuple

import torch.fx
from torch import nn
from torch.fx import Graph, Node

from ..layers import BayesianLayer
from ._function_modules import as_module, is_batch_size
from .select import Select


class Link(NamedTuple):
    """A module of a chain and the name it has in the model."""

    name: str
    module: nn.Module

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"layer {self.name!r} ({kind})" if self.name else f"the model ({kind})"


def module_chain(model: nn.Module) -> list[Link]:
    """The modules that ``model`` applies one after the other in eval mode, found by tracing its ``forward``.

    Bayesian layers, Selects and torch's own modules, nested Sequentials excepted, are links. Known functions and
    methods (``F.relu``, ``x.flatten(1)``, see :mod:`mnvi.sparsity._function_modules`) become new modules.

    Raises:
        ValueError: ``forward`` cannot be traced, or is no chain; a module has forward hooks, which would be lost; a
            layer with parameters or buffers occurs twice.
    """
    for link in map(Link._make, model.named_modules()):
        if link.module._forward_hooks or link.module._forward_pre_hooks:
            raise ValueError(f"{link} has forward hooks, which a compact network would not have")
    links = [Link("", model)] if _is_link(model) else list(_follow(model, _traced(model)))
    seen: set[nn.Module] = set()
    for link in links:
        if link.module in seen and link.module.state_dict():
            raise ValueError(f"{link} occurs twice in the model; a shared layer cannot be cut")
        seen.add(link.module)
    return links


def _is_link(module: nn.Module) -> bool:
    torchs = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return torchs or isinstance(module, (BayesianLayer, Select))


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_link(m)


def _traced(model: nn.Module) -> Graph:
    """The graph of ``forward`` in eval mode; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    try:
        return _Tracer().trace(model.eval())
    except Exception as error:  # whatever the user's code raises when its input is a torch.fx proxy
        raise ValueError(f"torch.fx cannot trace the forward of this {type(model).__name__}: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training


def _follow(model: nn.Module, graph: Graph) -> Iterator[Link]:
    """The links from the graph's one input to its output."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(inputs) != 1:
        raise ValueError(
            f"only a model with one input can be compacted, this {type(model).__name__} uses {len(inputs)}"
        )
    node = inputs[0]
    while True:
        users = [user for user in node.users if not is_batch_size(user, node)]
        if len(users) != 1:
            names = ", ".join(user.name for user in users) or "nothing"
            raise ValueError(f"only a chain of layers can be compacted, and {node.name!r} feeds {names}")
        source, node = node, users[0]
        if node.op == "output":
            if node.args[0] is not source:
                raise ValueError(f"only a model with one output can be compacted, got {node.args[0]}")
            return
        yield _link(model, node, source)


def _link(model: nn.Module, node: Node, source: Node) -> Link:
    if node.op == "call_module":
        link = Link(str(node.target), model.get_submodule(str(node.target)))
        if node.args != (source,) or node.kwargs:
            raise ValueError(f"{link} must be called with one tensor to be compacted")
        return link
    module = as_module(node, source) if node.op in ("call_function", "call_method") else None
    if module is None:
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise ValueError(
            f"{called} ({node.name!r} in the model's forward) is not supported; activations, max_pool, avg_pool, "
            "flatten and dropout as functions are, dropout with training=self.training"
        )
    return Link(node.name, module)
