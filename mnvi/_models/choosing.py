"""Which layers and norms a conversion takes: those that ``skip`` and ``only`` leave, by their names in the model."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ..layers import BayesianLayer, bayesian_layers, kinds
from ..layers.norms import is_plain_norm


def names_of(names: Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def choose_layers(
    model: nn.Module, skip: tuple[str, ...], only: tuple[str, ...] | None, norms: dict[nn.Module, str]
) -> dict[Any, str]:
    """The layers to convert beside the ``norms``, and their names; raises before anything is changed."""
    named = list(model.named_modules(remove_duplicate=False))
    names = {name for name, _ in named}
    wanted = ("",) if only is None else only
    for name in (*skip, *wanted):
        if name not in names:
            raise ValueError(
                f"the model has no module named {name!r}; it has {', '.join(sorted(names - {''})) or 'none'}"
            )
    skipped = {module for name, module in named if any(below(name, root) for root in skip)}
    # A multi-head attention reads the weight of its output layer, whatever that is, past its forward.
    skipped |= {module.out_proj for _, module in named if isinstance(module, nn.MultiheadAttention)}
    chosen: dict[Any, str] = {}
    for root in wanted:
        candidates = {module: name for name, module in named if below(name, root) and _convertible(module)}
        found = {module: name for module, name in candidates.items() if module not in skipped}
        if not found and not any(below(name, root) for name in norms.values()):
            kind, without = type(model.get_submodule(root)).__name__, f" without {skip}" if skip else ""
            where = f"{root or 'the model'!r} (a {kind}){without}"
            if any(bayesian_layers(model.get_submodule(root))):
                raise ValueError(
                    f"nothing to convert in {where}: its layers are Bayesian already; for another posterior or "
                    "prior convert mnvi.to_deterministic(model), a plain copy"
                )
            raise ValueError(
                f"nothing to convert in {where}; what can be is {kinds.names()}, but no subclasses of these"
            )
        chosen |= found
    if not chosen and not norms:
        raise ValueError("only=() names nothing to convert")
    return chosen


def choose_norms(model: nn.Module, skip: tuple[str, ...], only: tuple[str, ...] | None) -> dict[nn.Module, str]:
    """The norms to give posteriors to and their names: those that are wanted, and not skipped by any name."""
    named = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if is_plain_norm(module)]
    skipped = {module for name, module in named if any(below(name, root) for root in skip)}
    wanted = {module: name for name, module in named if only is None or any(below(name, root) for root in only)}
    return {module: name for module, name in wanted.items() if module not in skipped}


def without_effect(model: nn.Module, layers: Iterable[Any]) -> set[nn.Module]:
    """Those of the ``layers`` whose bias the batch norm that is registered right after them takes out again.

    In training, that is: in eval mode it subtracts a running mean, and a bias that was drawn anew would stay.
    """
    siblings = [pair for module in model.modules() for pair in pairwise(module.children())]
    following = {first: second for first, second in siblings if isinstance(second, _BatchNorm)}
    biased = ((layer, following[layer]) for layer in layers if layer in following and layer.bias is not None)
    return {layer for layer, norm in biased if len(layer.bias) == norm.num_features}


def _convertible(module: nn.Module) -> bool:
    if kinds.kind_of(module) is None or isinstance(module, BayesianLayer) or parametrize.is_parametrized(module):
        return False
    # A weight that is no parameter (old-style weight norm, torch's pruning) is made anew in every forward pass.
    weight = module._parameters.get("weight")
    return isinstance(weight, nn.Parameter) and not weight.is_complex()


def below(name: str, root: str) -> bool:
    return root == "" or name == root or name.startswith(root + ".")
