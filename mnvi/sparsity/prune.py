"""Pruning: the weights, rows, columns or taps that score lowest are dropped by masking them."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import number
from ..layers import bayesian_layers
from ..likelihoods import Likelihood
from ._cuts import Cut, Score, find_cuts, kinds_of
from .find_thresholds import find_thresholds
from .scores import signal_to_noise
from .thresholds import Thresholds

FEW = 50  # held-out examples below which their standard error is no guide


@torch.no_grad()
def prune(
    model: nn.Module,
    *,
    threshold: float | Thresholds | None = None,
    fraction: float | None = None,
    data: Any = None,
    loss: float | None = None,
    measure: str | None = None,
    likelihood: Likelihood | str = "categorical",
    groups: str | Sequence[str] = "weights",
    score: Score = signal_to_noise,
    skip: Iterable[str] = (),
) -> nn.Module:
    """Mask the lowest-scoring weights, rows, columns or taps of the model's Bayesian layers in place; return the model.

    Give held-out ``data``, and nothing is to be guessed: as much is dropped as costs no more than ``loss`` there. The
    whole recipe is to train, ``prune(model, data=…)``, ``compact``, and to train the compact plain network for a few
    epochs more, which gives back what pruning cost, and often more.

    A dropped weight is 0 in every later mean, draw, export and checkpoint, and its stored mean, which is 0, stays so
    under every torch optimiser: ``layer.pruned`` says which are and is a buffer of the layer. Biases stay.
    What was pruned before stays pruned. A layer that loses nothing is not touched; a shared layer counts once. A pruned
    layer draws one weight a call, whatever its estimator: what is left of its deviation has no factors any more.

    Args:
        threshold: drop what scores below it; finite, ≥ 0. Or what :func:`find_thresholds` found, with its groups and
            its score.
        fraction: drop this share, 0 ≤ f < 1, of all weights (rows, columns, taps) of all layers that are not skipped,
            the ⌊f·count⌋ lowest scores; what is pruned already counts as lowest.
        data: drop what :func:`find_thresholds` finds on these examples, which the training has not seen: a pair (x, y)
            of tensors, a Dataset or a DataLoader. A warning tells where that is nothing, or leaves nothing of a layer,
            or where the examples are fewer than 50 and their standard error is to decide.
            Until the search ends, the model is as it was, so that an interrupt leaves it unpruned. Give one of
            ``threshold``, ``fraction`` and ``data``.
        loss: with ``data``, by how much the error may rise there, in percentage points; or the NLL, in nats per
            example. ``None``: by its standard error.
        measure: with ``data``, ``"error"`` or ``"nll"``; ``None``: the error of classes, else the NLL.
        likelihood: with ``data``, that of the targets.
        groups: ``"weights"``, ``"rows"`` (output units, channels), ``"columns"`` (input units, channels), ``"taps"``
            (input channels at one position of the kernel), or several of these, as ``("rows", "columns")``. All scores
            are taken before anything is dropped.
        score: ``score(layer, groups)``, see :mod:`mnvi.sparsity.scores`.
        skip: qualified names (``"classifier.2"``) left alone, with all that is below them. With ``data`` the rows of
            the layer that is called last, the model's outputs, stay of themselves.

    Raises:
        ValueError: not exactly one of ``threshold``, ``fraction`` and ``data``, or out of range; unknown ``groups`` or
            name in ``skip``; no Bayesian layer to prune; a mean that is no parameter (constrained, or under torch's own
            pruning) or is also another parameter of the model; a score that is not finite or has the wrong shape. The
            model is then unchanged.

    Example:
        >>> mnvi.sparsity.prune(model, data=(x_held_out, y_held_out), groups=("rows", "columns"))
        >>> print(mnvi.sparsity.report(model))
        >>> small = mnvi.sparsity.compact(model).train()  # to be trained for a few epochs more
        >>> mnvi.sparsity.prune(model, fraction=0.9)
    """
    kinds = kinds_of(groups)
    _check_amounts(threshold, fraction, data)
    if data is not None:
        options: Any = {"likelihood": likelihood, "groups": groups, "score": score, "skip": skip}
        threshold = find_thresholds(model, data, loss=loss, measure=measure, **options)
        warn_of_extremes(threshold, "pruned")
        if loss is None and threshold.examples < FEW:
            _warn_of_few(threshold.examples)
    elif loss is not None or measure is not None or likelihood != "categorical":
        raise ValueError("loss, measure and likelihood belong to data, which was not given")
    if isinstance(threshold, Thresholds):
        dropped = dropped_below(model, threshold)
    else:
        cuts = find_cuts(model, kinds, score, skip)
        dropped = _lowest(cuts, kinds, fraction) if threshold is None else [(cut, cut.below(threshold)) for cut in cuts]
    for cut, drop in dropped:
        if drop.any():
            cut.layer.pruned.masked_fill_(drop, 1)
            cut.layer.settle_()
    return model


def _check_amounts(threshold: float | Thresholds | None, fraction: float | None, data: Any) -> None:
    """Raise unless one of them was given and is in range."""
    if sum(each is not None for each in (threshold, fraction, data)) != 1:
        given = "data" if data is not None else "no data"
        raise ValueError(
            f"give either threshold or fraction or data, got threshold={threshold}, fraction={fraction} and {given}"
        )
    if fraction is not None:
        number("fraction", fraction, 0, 1, below=True)
    elif threshold is not None and not isinstance(threshold, Thresholds):
        number("threshold", threshold, 0)


def dropped_below(model: nn.Module, found: Thresholds) -> list[tuple[Cut, Tensor]]:
    """What the thresholds that were found for this model drop."""
    values = {(each.name, each.groups): each.threshold for each in found.layers}
    names = [name for name, _ in bayesian_layers(model)]
    if missing := sorted({name for name, _ in values} - {*names}):
        raise ValueError(f"the thresholds are of another model: this one has no Bayesian layer {missing[0]!r}")
    kinds = tuple(dict.fromkeys(groups for _, groups in values))
    cuts = find_cuts(model, kinds, found.score, [name for name in names if all(name != each for each, _ in values)])
    return [(cut, cut.below(values[cut.name, cut.groups])) for cut in cuts if (cut.name, cut.groups) in values]


def warn_of_extremes(found: Thresholds, done: str) -> None:
    """Warn where nothing is pruned (or ``done``), or nothing left."""
    empty = sorted({each.name for each in found.layers if not each.left})
    if not any(each.threshold for each in found.layers):
        message = f"nothing was {done}: every attempt costs more than is allowed; {str(found).splitlines()[0]}"
    elif empty:
        names = ", ".join(map(repr, empty))
        message = (
            f"nothing is left of {names}, as the held-out examples allow it: are they few, or the model untrained?"
        )
    else:
        return
    warnings.warn(message, stacklevel=4)


def _warn_of_few(count: int) -> None:
    warnings.warn(
        f"{count} held-out examples are few to choose by: their standard error says little, and what costs less than "
        f"{100 / count:.2g} points of error does not show in them; give more, or loss=",
        stacklevel=4,
    )


def _lowest(cuts: list[Cut], kinds: Sequence[str], fraction: Any) -> list[tuple[Cut, Tensor]]:
    """Of every kind the share ``fraction`` of lowest scores over all layers; among equal ones the first in order."""
    found = []
    for kind in kinds:
        own = [cut for cut in cuts if cut.groups == kind]
        together = torch.cat([cut.scores.flatten().to("cpu", torch.float64) for cut in own])
        count = math.floor(fraction * len(together) + 1e-9)  # 0.29·100 is 28.999999999999996
        dropped = torch.zeros_like(together, dtype=torch.bool)
        dropped[together.argsort(stable=True)[:count]] = True
        for cut, part in zip(own, dropped.split([cut.scores.numel() for cut in own]), strict=True):
            found.append((cut, cut.weights_of(part.view_as(cut.scores).to(cut.scores.device))))
    return found
