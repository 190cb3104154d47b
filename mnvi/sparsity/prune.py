"""Pruning: the weights, rows or columns that score lowest are dropped by masking them."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .._checks import number, one_of
from .._models.tied_weights import refuse_tied
from ..layers import BayesianLayer, bayesian_layers
from ._unit_axes import GROUPS, over_weights, unit_axis
from .scores import signal_to_noise

Score = Callable[[BayesianLayer, str], Tensor]


@torch.no_grad()
def prune(
    model: nn.Module,
    *,
    threshold: float | None = None,
    fraction: float | None = None,
    groups: str = "weights",
    score: Score = signal_to_noise,
    skip: Iterable[str] = (),
) -> nn.Module:
    """Mask the lowest-scoring weights, rows or columns of the model's Bayesian layers in place; return the model.

    A dropped weight is 0 in every later mean, draw, export and checkpoint, and its stored mean, which is 0, stays so
    under every torch optimiser: ``layer.pruned`` says which are and is a buffer of the layer. Biases stay.
    What was pruned before stays pruned. A layer that loses nothing is not touched; a shared layer counts once. A pruned
    layer draws one weight a call, whatever its estimator: what is left of its deviation has no factors any more.

    Args:
        threshold: drop what scores below it; finite, ≥ 0.
        fraction: drop this share, 0 ≤ f < 1, of all weights (or rows, or columns) of all layers that are not skipped,
            the ⌊f·count⌋ lowest scores; what is pruned already counts as lowest. Give either this or ``threshold``.
        groups: ``"weights"``, ``"rows"`` (output units, channels) or ``"columns"`` (input units, channels).
        score: ``score(layer, groups)``, see :mod:`mnvi.sparsity.scores`.
        skip: qualified names (``"classifier.2"``) left alone, with all that is below them.

    Raises:
        ValueError: not exactly one of ``threshold`` and ``fraction``, or out of range; unknown ``groups`` or name in
            ``skip``; no Bayesian layer to prune; a mean that is no parameter (constrained, or under torch's own
            pruning) or is also another parameter of the model; a score that is not finite or has the wrong shape. The
            model is then unchanged.

    Example:
        >>> mnvi.sparsity.prune(model, fraction=0.9)
        >>> print(mnvi.sparsity.report(model))
    """
    one_of("groups", groups, GROUPS)
    amount = _checked_amount(threshold, fraction)
    layers = _layers_to_prune(model, (skip,) if isinstance(skip, str) else tuple(skip))
    refuse_tied(model, [layer for _, layer in layers], "what is pruned in one place would be in the other too")
    scores = [_checked_scores(name, layer, groups, score) for name, layer in layers]
    dropped = _lowest(scores, amount) if threshold is None else [s < amount for s in scores]
    for (_, layer), drop in zip(layers, dropped, strict=True):
        if drop.any():
            _drop(layer, drop if groups == "weights" else over_weights(drop, layer.weight, unit_axis(layer, groups)))
    return model


def _checked_amount(threshold: float | None, fraction: float | None) -> float:
    """The one of them that was given."""
    if (threshold is None) == (fraction is None):
        raise ValueError(f"give either threshold or fraction, got threshold={threshold} and fraction={fraction}")
    return number("threshold", threshold, 0) if fraction is None else number("fraction", fraction, 0, 1, below=True)


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
        alive = alive.movedim(unit_axis(layer, groups), 0).flatten(1).any(1)
    scores = score(layer, groups)
    if scores.shape != alive.shape:
        expected, got = tuple(alive.shape), tuple(scores.shape)
        raise ValueError(f"the scores of layer {name!r} must have shape {expected} for groups={groups!r}, got {got}")
    bad = alive & ~torch.isfinite(scores)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {bad.numel()} scores of layer {name!r} are not finite")
    return scores.masked_fill(~alive, -math.inf)


def _lowest(scores: list[Tensor], fraction: float) -> list[Tensor]:
    """The share ``fraction`` of lowest scores over all layers; among equal ones the first in order."""
    together = torch.cat([s.flatten().to("cpu", torch.float64) for s in scores])
    count = math.floor(fraction * len(together) + 1e-9)  # 0.29·100 is 28.999999999999996
    dropped = torch.zeros_like(together, dtype=torch.bool)
    dropped[together.argsort(stable=True)[:count]] = True
    parts = dropped.split([s.numel() for s in scores])
    return [part.view_as(s).to(s.device) for part, s in zip(parts, scores, strict=True)]


def _drop(layer: BayesianLayer, drop: Tensor) -> None:
    layer.pruned.masked_fill_(drop, 1)
    layer.settle_()
