"""Judging trials by held-out data: the log density of their targets under the mixture of the draws."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._inputs import Inputs
from .._progress import Progress
from ..likelihoods import Likelihood
from ..likelihoods.base import Draws, over
from .examples import Examples
from .members import Members, OneMember
from .models import Objective

NUM_SAMPLES = 32  # draws that judge
TOGETHER = 2**26  # numbers that the draws of all members may hold at a time
ALONE = 2**24  # and those of a member that is judged alone


class Judged(NamedTuple):
    """A model after a trial: what was tried, and the NLL of held-out data, in nats per example, after a widening."""

    model: int
    epochs: int
    kl_weight: float
    widening: float
    nll: float

    def shown(self) -> dict[str, Any]:
        """What a user may want to see."""
        return {name: getattr(self, name) for name in ("model", "epochs", "kl_weight", "nll", "widening")}


def judge(
    members: Members, data: Examples, numbers: Tensor | None, calibrate: bool, progress: Progress
) -> list[tuple[float, float]]:
    """(widening, NLL) of every member on the examples of these numbers, or all, in nats per example.

    Where the draws of all members hold more than 2²⁶ numbers, the members are judged one by one, each on parts of the
    examples whose draws hold up to 2²⁴, or one example. Every part is spread evenly over the examples. The widening is
    that of the first part, and the NLL that of all.

    The NLL is infinite of a member whose parameters are not finite.
    """
    numbers = torch.arange(data.size) if numbers is None else numbers
    entries = NUM_SAMPLES * _entries(members, data, numbers)  # in the draws of one example
    if members.count * len(numbers) * entries > TOGETHER:
        parts = math.ceil(len(numbers) * entries / ALONE)
        apart = [part for k in range(parts) if len(part := numbers[k::parts])]
        return [_judged_in_parts(members, k, data, apart, calibrate, progress) for k in range(members.count)]
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
        if not _finite(objective):
            results.append((1.0, math.inf))
            continue
        draws = over(lambda *each: torch.cat(each, 1), *(each[k] for each in drawn))
        likelihood = copy.deepcopy(objective.likelihood)
        results.append(_judged(likelihood, draws, target[k] if stacked else target, calibrate))
        progress.advance(0)
    return results


@torch.no_grad()
def _entries(members: Members, data: Examples, numbers: Tensor) -> int:
    """How many numbers the likelihood reads of the output for one example."""
    members.module.eval()
    with torch.random.fork_rng(devices=[members.device] if members.device.type == "cuda" else []):
        batch = data.batch(numbers[:2]).to(members.device)
        output = members.outputs(Inputs(batch.positional, batch.named), data.own and members.count > 1)
    return sum(each[0, 0].numel() for each in (output if isinstance(output, tuple) else (output,)))


def _judged_in_parts(
    members: Members, k: int, data: Examples, parts: Sequence[Tensor], calibrate: bool, progress: Progress
) -> tuple[float, float]:
    """(widening, NLL) of member k on the examples of these numbers, one part after the other."""
    if not _finite(members.objectives[k]):
        return 1.0, math.inf
    alone, likelihood = OneMember(members.member(k)), copy.deepcopy(members.objectives[k].likelihood)
    widening, losses = 1.0, []
    for i, batch in enumerate(data.batches(parts)):
        if data.own and members.count > 1:
            batch = batch.map(lambda each: each[k])
        batch = batch.to(members.device)
        assert batch.target is not None
        [draws] = alone.draws(batch, NUM_SAMPLES, False)
        factor, nll = _judged(likelihood, draws, batch.target, calibrate and not i)
        widening *= factor
        losses.append(nll * len(batch.target))
        progress.advance(0)
    return widening, sum(losses) / sum(map(len, parts))


def _finite(objective: Objective) -> bool:
    """Whether it has not diverged."""
    return all(bool(p.isfinite().all()) for p in objective.parameters())


def _judged(likelihood: Likelihood, draws: Draws, target: Tensor, calibrate: bool) -> tuple[float, float]:
    widening = 1.0
    if calibrate and not _is_frozen(likelihood):
        try:
            widening = likelihood.calibrate_(draws, target)
        except TypeError:  # it has no scale or temperature, or a known one
            widening = 1.0
        except ValueError:  # outputs that are no numbers, or targets that are impossible under every temperature
            return 1.0, math.inf
    return widening, -likelihood.log_prob(draws, target).double().mean().item()


def _is_frozen(likelihood: Likelihood) -> bool:
    """Whether a widening would change a parameter that requires no grad."""
    wider = copy.deepcopy(likelihood)
    try:
        wider.widen_(2.0)
    except TypeError:  # there is nothing to widen
        return False
    pairs = zip(likelihood.parameters(), wider.parameters(), strict=True)
    return any(not before.requires_grad and not before.equal(after) for before, after in pairs)


def best(judged: Sequence[Judged], models: int, own: bool) -> list[Judged]:
    """For each model its trial of least NLL; of equal ones the one of the largest weight of the KL.

    Models that share their data share the weight, that of their least mean. The number of epochs is one for all.

    Raises:
        ValueError: under no trial are all NLLs finite.
    """
    choices: dict[tuple[int, float], list[Judged]] = {}
    for each in sorted(judged, key=lambda each: (-each.kl_weight, each.model)):
        choices.setdefault((each.epochs, each.kl_weight), []).append(each)
    epochs, weight = min(choices, key=lambda choice: _mean([each.nll for each in choices[choice]]))
    if not math.isfinite(_mean([each.nll for each in choices[epochs, weight]])):
        raise ValueError("under no trial do all held-out targets have a finite density; a smaller lr may help")
    if not own:
        return choices[epochs, weight]
    of_epochs = [found for (length, _), found in choices.items() if length == epochs]
    return [min((found[k] for found in of_epochs), key=lambda each: _mean([each.nll])) for k in range(models)]


def _mean(losses: Sequence[float]) -> float:
    """Infinite where one of them is no number."""
    mean = sum(losses) / len(losses)
    return math.inf if math.isnan(mean) else mean
