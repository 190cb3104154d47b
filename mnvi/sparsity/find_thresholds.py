"""The search for thresholds that held-out data allow."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import instance, number
from .._models.eval_mode import in_eval_mode
from .._progress import Progress
from ..likelihoods import Likelihood
from ._bisection import EVALUATIONS, search
from ._cuts import Cut, Score, find_cuts, kinds_of
from ._held_out import HeldOut
from ._measures import likelihood_of, measure_of
from ._output_layer import output_layer
from .scores import signal_to_noise
from .thresholds import LayerThreshold, Thresholds


def find_thresholds(
    model: nn.Module,
    data: Any,
    *,
    loss: float | None = None,
    measure: str | None = None,
    likelihood: Likelihood | str = "categorical",
    groups: str | Sequence[str] = "weights",
    score: Score = signal_to_noise,
    skip: Iterable[str] = (),
) -> Thresholds:
    """The thresholds that drop as much as held-out data allow; the model is not changed.

    Candidates are measured with the mean weights, dropped ones at 0, in eval mode. First one threshold for all layers
    and groups is found by bisection over the scores. Then that of each layer and kind of group is raised alone as far
    as it goes. The thresholds returned are the last ones that were measured and allowed. The rows of the layer that is
    called last are the model's outputs and have no threshold.

    Args:
        model: as for :func:`prune`.
        data: examples that the training has not seen: a pair (x, y) of tensors, a Dataset of pairs, or a DataLoader,
            read once and kept in memory on the model's device.
        loss: by how much the measure may rise, ≥ 0: percentage points of error, or nats per example. ``None``: by its
            standard error on these examples, what they cannot tell from no loss. The more examples, the less that is:
            with 2 % error it is 0.2 points of 5,000 and 1.4 of 100.
        measure: ``"error"``, the percentage of wrong classes; ``"nll"``, the mean negative log-likelihood in nats per
            example. ``None``: the error of classes (Categorical, Bernoulli), else the NLL.
        likelihood: an object of :mod:`mnvi.likelihoods`, or the short name of one without parameters.
        groups: ``"weights"``, ``"rows"``, ``"columns"``, ``"taps"``, or several of them.
        score, skip: as for :func:`prune`.

    Raises:
        ValueError, TypeError: an argument, the model or the data do not fit, the examples are not finite (with their
            rows), or the measure is not.

    Source: the one-standard-error rule is from Breiman, Friedman, Olshen, Stone, 'Classification and Regression Trees'
    (1984), section 3.4.3, DOI 10.1201/9781315139470.

    Example:
        >>> found = mnvi.sparsity.find_thresholds(model, (x_held_out, y_held_out), groups=("rows", "columns"))
        >>> print(found)
        >>> mnvi.sparsity.prune(model, threshold=found)
    """
    instance("model", model, nn.Module)
    kinds = kinds_of(groups)
    likelihood = copy.deepcopy(likelihood_of(likelihood))
    measure = measure_of(measure, likelihood)
    allowance = None if loss is None else number("loss", loss, 0)
    with torch.no_grad(), in_eval_mode(model), Progress("prune", None, at_most=True) as progress:
        cuts = find_cuts(model, kinds, score, skip)
        held_out = HeldOut(model, data, likelihood, measure, progress.advance)
        cuts, outputs = _without_outputs(cuts, output_layer(model, held_out.batches[0]))
        progress.total = len(held_out.batches) * (1 + EVALUATIONS[0] + EVALUATIONS[1] * len(cuts))
        trials = _Trials(cuts, held_out, allowance)
        found = search(cuts, trials.fit)
    rows = tuple(_described(cut, threshold) for cut, threshold in zip(cuts, found, strict=True))
    numbers = trials.before, trials.after, trials.allowed, len(trials.losses), trials.count
    return Thresholds(rows, measure, *numbers, outputs, score)


def _without_outputs(cuts: list[Cut], last: nn.Module | None) -> tuple[list[Cut], str | None]:
    """The cuts but for the rows of the layer that is called last, and its name if it had that cut."""
    outputs = [cut for cut in cuts if cut.layer is last and cut.groups == "rows"]
    rest = [cut for cut in cuts if all(cut is not each for each in outputs)]
    if not rest:
        raise ValueError(f"the rows of layer {outputs[0].name!r} are the model's outputs, and nothing else is pruned")
    return rest, outputs[0].name if outputs else None


class _Trials:
    """The measure with what thresholds drop at 0; ``before`` is that of the model, ``after`` that of the last fit."""

    def __init__(self, cuts: list[Cut], held_out: HeldOut, allowance: float | None) -> None:
        self.cuts, self.held_out, self.count = cuts, held_out, 1
        self.losses = held_out.losses({})
        self.before = self.after = self.losses.mean().item()
        if not math.isfinite(self.before):
            raise ValueError(f"the model's mean {held_out.measure} on the held-out examples is {self.before}")
        if allowance is None:
            if len(self.losses) < 2:
                raise ValueError("one held-out example has no standard error; give loss=, or more examples")
            allowance = self.losses.std().item() / math.sqrt(len(self.losses))
        self.allowed = self.before + allowance

    def fit(self, thresholds: list[float]) -> bool:
        """Whether the measure with these thresholds is allowed."""
        self.count += 1
        limit = self.allowed + 1e-12 * abs(self.allowed)  # a sum of two roundings
        value = self.held_out.losses(self._weights(thresholds), limit)
        if len(value) < len(self.losses) or not value.mean() <= limit:  # NaN is not allowed either
            return False
        self.after = value.mean().item()
        return True

    def _weights(self, thresholds: list[float]) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for cut, threshold in zip(self.cuts, thresholds, strict=True):
            name = f"{cut.name}.weight".removeprefix(".")
            weights[name] = weights.get(name, cut.layer.weight).masked_fill(cut.below(threshold), 0)
        return weights


def _described(cut: Cut, threshold: float) -> LayerThreshold:
    left = int((cut.scores >= threshold).sum())
    return LayerThreshold(cut.name, cut.groups, threshold, left, cut.scores.numel())
