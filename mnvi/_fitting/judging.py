"""Judging trials by held-out data: the log density of their targets under the mixture of the draws."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._progress import Progress
from ..likelihoods import Likelihood
from ..likelihoods.base import Draws, over
from .examples import Examples
from .members import Members

NUM_SAMPLES = 32  # draws that judge


class Judged(NamedTuple):
    """A model after a trial: what was tried, and how its likelihood, widened by a factor, did on held-out data.

    Attributes:
        losses: −log p of every held-out example, in nats.
    """

    model: int
    epochs: int
    kl_weight: float
    widening: float
    losses: list[float]

    @property
    def nll(self) -> float:
        """Nats per held-out example."""
        return sum(self.losses) / len(self.losses)

    def shown(self) -> dict[str, Any]:
        """What a user may want to see."""
        return {name: getattr(self, name) for name in ("model", "epochs", "kl_weight", "nll", "widening")}


def judge(
    members: Members, data: Examples, numbers: Tensor | None, calibrate: bool, progress: Progress
) -> list[tuple[float, list[float]]]:
    """(widening, losses) of every member on the examples of these numbers, or all, in nats per example."""
    stacked = data.own and members.count > 1
    drawn, targets = [], []
    for batch in data.everything(numbers):
        batch = batch.to(members.device)
        drawn.append(members.draws(batch, NUM_SAMPLES, stacked))
        targets.append(batch.target)
        progress.advance(0)
    target = torch.cat(targets, int(stacked))
    results = []
    for k, objective in enumerate(members.objectives):
        draws = over(lambda *each: torch.cat(each, 1), *(each[k] for each in drawn))
        likelihood = copy.deepcopy(objective.likelihood)
        results.append(_judged(likelihood, draws, target[k] if stacked else target, calibrate))
        progress.advance(0)
    return results


def _judged(likelihood: Likelihood, draws: Draws, target: Tensor, calibrate: bool) -> tuple[float, list[float]]:
    widening = 1.0
    if calibrate:
        try:
            widening = likelihood.calibrate_(draws, target)
        except TypeError:  # it has no scale or temperature, or a known one
            widening = 1.0
    return widening, (-likelihood.log_prob(draws, target).double()).tolist()


def best(judged: Sequence[Judged], models: int, own: bool) -> list[Judged]:
    """For each model its best trial; where models share their data, one choice for all.

    Best is the largest weight of the KL whose NLL is at most one standard error (of the difference of the examples'
    losses) above the least: nearest to Bayes' rule among what the held-out data cannot tell apart. Source: Breiman,
    Friedman, Olshen & Stone (1984), section 3.4.3. The number of epochs is that of the least, one for all.
    """
    choices: dict[tuple[int, float], list[Judged]] = {}
    for each in sorted(judged, key=lambda each: each.model):
        choices.setdefault((each.epochs, each.kl_weight), []).append(each)
    losses = {choice: _losses(found) for choice, found in choices.items()}  # (models, examples)
    epochs, least = min(losses, key=lambda choice: losses[choice].mean().item())
    if not bool(losses[epochs, least].isfinite().all()):
        raise ValueError("under no trial do all held-out targets have a finite density; a smaller lr may help")
    weights = sorted({weight for length, weight in choices if length == epochs}, reverse=True)
    table = torch.stack([losses[epochs, weight] for weight in weights])  # (weights, models, examples)
    picks = [_one_error(table[:, k]) for k in range(models)] if own else [_one_error(table.flatten(1))] * models
    return [choices[epochs, weights[pick]][k] for k, pick in enumerate(picks)]


def _losses(found: Sequence[Judged]) -> Tensor:
    return torch.tensor([each.losses for each in found], dtype=torch.float64).nan_to_num(nan=math.inf, posinf=math.inf)


def _one_error(losses: Tensor) -> int:
    """The first row of ``losses``, (choices, examples), not more than one standard error above the best row."""
    least = losses[losses.mean(1).argmin()]
    difference = losses - least
    error = difference.std(1, correction=0) / losses.shape[1] ** 0.5
    return int((difference.mean(1) <= error).int().argmax())  # the first True
