"""Cuts: what can be dropped of a layer, its weights, rows, columns or taps, each with a score."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import one_of
from .._models.tied_weights import refuse_tied
from ..layers import BayesianLayer, bayesian_layers
from ._unit_axes import GROUPS, inner_axes, over_weights

Score = Callable[[BayesianLayer, str], Tensor]


class Cut(NamedTuple):
    """The weights, rows, columns or taps (``groups``) of one layer; their scores are −∞ for what is pruned already."""

    name: str
    layer: BayesianLayer
    groups: str
    scores: Tensor

    def below(self, threshold: float) -> Tensor:
        """The weights that a threshold drops, bool, in the weight's shape."""
        return self.weights_of(self.scores < threshold)

    def weights_of(self, drop: Tensor) -> Tensor:
        """The weights of what is dropped."""
        if self.groups == "weights":
            return drop
        return over_weights(drop, self.layer.weight, inner_axes(self.layer, self.groups))


def kinds_of(groups: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of groups that are meant, each once.

    Raises:
        ValueError: there is none, one twice, or an unknown one.
    """
    kinds = (groups,) if isinstance(groups, str) else tuple(groups)
    for kind in kinds:
        one_of("groups", kind, GROUPS)
    if not kinds or len({*kinds}) < len(kinds):
        raise ValueError(f"groups must name kinds of groups, each once, got {groups!r}")
    return kinds


def find_cuts(model: nn.Module, kinds: Sequence[str], score: Score, skip: str | Iterable[str]) -> list[Cut]:
    """Every kind of every Bayesian layer that is not skipped, kind by kind; raises for what cannot be pruned."""
    layers = _layers_to_prune(model, (skip,) if isinstance(skip, str) else tuple(skip))
    refuse_tied(model, [layer for _, layer in layers], "what is pruned in one place would be in the other too")
    return [
        Cut(name, layer, kind, _checked_scores(name, layer, kind, score)) for kind in kinds for name, layer in layers
    ]


def _layers_to_prune(model: nn.Module, skip: tuple[str, ...]) -> list[tuple[str, BayesianLayer]]:
    names = dict(model.named_modules(remove_duplicate=False))
    for name in skip:
        if name not in names:
            raise ValueError(
                f"the model has no module named {name!r}; its Bayesian layers are "
                f"{', '.join(repr(layer) for layer, _ in bayesian_layers(model)) or 'none'}"
            )
    skipped = {module for name in skip for module in names[name].modules()}
    layers = [(name, layer) for name, layer in bayesian_layers(model) if layer not in skipped]
    if not layers:
        reason = f"skip={skip} leaves none" if skipped else f"there is none in this {type(model).__name__}"
        raise ValueError(f"only Bayesian layers can be pruned and {reason}")
    for name, layer in layers:
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise ValueError(
                f"the mean of layer {name!r} is made anew at every use and cannot keep zeros: skip the layer, or call "
                "remove_parametrizations (after mnvi.constrain) or torch.nn.utils.prune.remove first"
            )
        layer.settle_()
    return layers


def _checked_scores(name: str, layer: BayesianLayer, groups: str, score: Score) -> Tensor:
    """The layer's scores, −∞ for what is pruned already."""
    alive = layer.pruned == 0
    if groups != "weights":
        alive = alive.any(inner_axes(layer, groups))
    scores = score(layer, groups)
    if scores.shape != alive.shape:
        expected, got = tuple(alive.shape), tuple(scores.shape)
        raise ValueError(f"the scores of layer {name!r} must have shape {expected} for groups={groups!r}, got {got}")
    bad = alive & ~torch.isfinite(scores)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {bad.numel()} scores of layer {name!r} are not finite")
    return scores.detach().masked_fill(~alive, -math.inf)
