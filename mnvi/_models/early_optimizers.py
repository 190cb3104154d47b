"""Early optimisers, made before a model became Bayesian: they step its means, and never its variances."""

import gc
import sys
import warnings
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.optim import Optimizer

from ..layers import BayesianLayer


def watch_early_optimizers(layers: dict[Any, str]) -> None:
    """Have the optimisers that now exist and hold a mean of the newly converted ``layers`` warn at a step without them.

    An optimiser that was only used before the conversion takes no step after it, and says nothing.
    """
    if not any(map(_is_held, layers)):
        return
    means = {layer.weight for layer in layers}
    for optimiser in existing_optimizers():
        if not means.isdisjoint(held_parameters(optimiser)):
            optimiser.register_step_post_hook(_ForgottenVariances(layers))


class _ForgottenVariances:
    """Hook after an optimiser's steps: warns, once, of layers whose variances nothing steps.

    A layer is named if its mean was stepped and its variances have gradients, but have not changed since the conversion
    and are in no optimiser.
    """

    def __init__(self, layers: dict[Any, str]) -> None:
        self.done = False
        self.layers = [(name, ref(layer)) for layer, name in layers.items()]
        self.versions = {name: _versions(layer) for layer, name in layers.items()}

    def __call__(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        if self.done:
            return
        held = held_parameters(optimiser)
        layers = [(name, layer) for name, reference in self.layers if (layer := reference()) is not None]
        trained = [(name, layer) for name, layer in layers if layer.weight in held and layer.weight.grad is not None]
        trained = [(name, layer) for name, layer in trained if _with_gradient(layer)]
        self.done = bool(trained) or not layers
        unchanged = {name: layer for name, layer in trained if self.versions[name] == _versions(layer)}
        stepped = {p for other in existing_optimizers() for p in held_parameters(other)} if unchanged else set()
        names = [name for name, layer in unchanged.items() if stepped.isdisjoint(_with_gradient(layer))]
        if names:
            _warn(names)


def _warn(names: list[str]) -> None:
    shown = ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    warnings.warn(
        f"this optimiser was made before to_bayesian and steps the means of {shown}, but not their variances, which "
        "would stay as they are; make it afterwards, of mnvi.parameter_groups(model), or, to train means alone, "
        "call layer.posterior.requires_grad_(False)",
        stacklevel=4,
    )


def _is_held(layer: nn.Module) -> bool:
    """Whether anything but the layer refers to its weight: a quick look before the search of all objects."""
    alone = nn.Module()
    alone.weight = nn.Parameter(torch.empty(0))
    return sys.getrefcount(layer._parameters["weight"]) > sys.getrefcount(alone._parameters["weight"])


def existing_optimizers() -> list[Any]:
    """All optimisers that exist."""
    # Looked up by type(), which is quick and runs no code of proxies and lazy objects, as isinstance() would.
    kinds = {Optimizer}
    while more := {kind for known in kinds for kind in known.__subclasses__()} - kinds:
        kinds |= more
    return [thing for thing in gc.get_objects() if type(thing) in kinds and hasattr(thing, "param_groups")]


def held_parameters(optimiser: Optimizer) -> set[nn.Parameter]:
    """All parameters in the groups of an optimiser."""
    return {parameter for group in optimiser.param_groups for parameter in group["params"]}


def _versions(layer: BayesianLayer) -> list[int]:
    """What changes when something writes to the layer's variances."""
    return [parameter._version for parameter in layer.posterior.parameters()]


def _with_gradient(layer: BayesianLayer) -> set[nn.Parameter]:
    """The parameters of the layer's variances that a step would change."""
    return {p for p in layer.posterior.parameters() if p.requires_grad and p.grad is not None}
