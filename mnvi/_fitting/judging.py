"""Judging trials by held-out data: the log density of their targets under the mixture of the draws."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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


def judge(members: Members, data: Examples, numbers: Tensor | None, calibrate: bool) -> list[tuple[float, list[float]]]:
    """(widening, losses) of every member on the examples of these numbers, or all, in nats per example."""
    own = data.own and members.count > 1
    drawn, targets = [], []
    for batch in data.everything(numbers):
        batch = batch.to(members.device)
        drawn.append(members.draws(batch, NUM_SAMPLES, own))
        targets.append(batch.target)
    results = []
    for k, objective in enumerate(members.objectives):
        draws = over(lambda *each: torch.cat(each, 1), *(each[k] for each in drawn))
        target = torch.cat([each[k] if own else each for each in targets])
        results.append(_judged(copy.deepcopy(objective.likelihood), draws, target, calibrate))
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
    for each in judged:
        choices.setdefault((each.epochs, each.kl_weight), []).append(each)
    losses = {choice: torch.tensor([each.losses for each in found]) for choice, found in choices.items()}
    epochs, _ = min(losses, key=lambda choice: losses[choice].mean().item())
    weights = sorted({weight for length, weight in choices if length == epochs}, reverse=True)
    table = torch.stack([losses[epochs, weight] for weight in weights])  # (weights, models, examples)
    picks = [_one_error(table[:, k]) for k in range(models)] if own else [_one_error(table.flatten(1))] * models
    return [choices[epochs, weights[pick]][k] for k, pick in enumerate(picks)]


def _one_error(losses: Tensor) -> int:
    """The first row of ``losses``, (choices, examples), not more than one standard error above the best row."""
    least = losses[losses.mean(1).argmin()]
    difference = losses - least
    error = difference.std(1, correction=0) / losses.shape[1] ** 0.5
    return int((difference.mean(1) <= error).int().argmax())
