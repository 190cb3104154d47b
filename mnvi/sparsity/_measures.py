"""What is measured on held-out examples: how often the most probable class is wrong, or the NLL."""

import torch
from torch import Tensor

from .. import likelihoods
from .._checks import one_of
from ..likelihoods import Likelihood
from ..likelihoods.base import Draws, first
from ..likelihoods.short_names import named

MEASURES = ("error", "nll")


def likelihood_of(likelihood: Likelihood | str) -> Likelihood:
    """The likelihood that is meant, of an object or a short name."""
    return likelihood if isinstance(likelihood, Likelihood) else named(likelihood)()


def has_classes(likelihood: Likelihood) -> bool:
    """Whether predictions are right or wrong."""
    return isinstance(likelihood, (likelihoods.Categorical, likelihoods.Bernoulli))


def measure_of(measure: str | None, likelihood: Likelihood) -> str:
    """The measure that is meant, if the likelihood has it."""
    if measure is None:
        measure = "error" if has_classes(likelihood) else "nll"
    one_of("measure", measure, MEASURES)
    name = type(likelihood).__name__
    if measure == "error" and not has_classes(likelihood):
        raise ValueError(f'measure="error" needs classes, which {name} does not have; use "nll"')
    if measure == "nll" and not likelihood.has_density:
        raise ValueError(f"a {name} likelihood without noise has no NLL; give it a scale")
    return measure


def loss_of(measure: str, likelihood: Likelihood, draws: Draws, target: Tensor) -> Tensor:
    """The loss of every example, (N,), of one draw of outputs, (1, N, …): a percentage, or nats; NaN of NaN."""
    if measure == "nll":
        return -likelihood.log_prob(draws, target)
    likelihood.check_target(draws, target)
    wrong, seen = _misses(likelihood, first(draws)[0], target)
    return 100 * torch.where(seen, wrong, 0).sum(1) / seen.sum(1).clamp_min(1)


def _misses(likelihood: Likelihood, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """1 where the most probable class is wrong, NaN where there is none, and where there is a target; (N, entries)."""
    if isinstance(likelihood, likelihoods.Categorical):
        wrong, seen = output.argmax(likelihood.dim) != target, target != likelihood.ignore_index
        unknown = output.isnan().any(likelihood.dim)
    else:
        wrong, seen = (output > 0) != (target != 0), torch.ones_like(target, dtype=torch.bool)
        unknown = output.isnan()
    wrong = wrong.to(output.dtype).masked_fill(unknown, torch.nan)
    return wrong.reshape(len(target), -1), seen.reshape(len(target), -1)
