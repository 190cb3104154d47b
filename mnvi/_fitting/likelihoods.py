"""The likelihoods of a fit: each model its own, those of real targets in the targets' units."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._progress import Progress
from ..likelihoods import Gaussian, HeteroscedasticGaussian, Likelihood, Standardized, StudentT
from ..likelihoods.short_names import SHORT_NAMES, named
from .examples import Examples

REAL: dict[str, Callable[[], Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": partial(HeteroscedasticGaussian, min_scale=1e-2),
    "student_t": StudentT,
}


def likelihoods(likelihood: Likelihood | str, data: Examples, models: int) -> list[Likelihood]:
    """One for each model. A short name of real targets is of standardised ones, with a learnt scale.

    Raises:
        ValueError: an unknown name, or a target that is constant.
        TypeError: no likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return [likelihood, *(copy.deepcopy(likelihood) for _ in range(models - 1))]
    kind = named(likelihood, {**SHORT_NAMES, **REAL})
    if likelihood not in REAL:
        return [kind() for _ in range(models)]
    mean, std = _moments(data, kind())
    pick = range(models) if data.own else [...] * models
    return [Standardized(kind(), mean[k], std[k]) for k in pick]


def _moments(data: Examples, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the targets over the examples, of each column and each model's own."""
    axis = int(data.own)
    target = torch.cat(_targets(data), axis)
    likelihood.check_support(target.movedim(axis, 0))
    if target.shape[axis] < 2:
        raise ValueError(f"data: at least 2 examples are needed, got {target.shape[axis]}")
    target = target if target.is_floating_point() else target.to(torch.get_default_dtype())
    std, mean = torch.std_mean(target, axis)
    if not bool((std > 0).all()):
        raise ValueError(f"a target is constant, so there is nothing to learn of it; its standard deviations are {std}")
    return mean, std


def _targets(data: Examples, size: int = 500) -> list[Tensor]:
    """Those of all examples, of which a Dataset has to be read once."""
    found = []
    with Progress("targets", data.size) as progress:
        for batch in data.everything(size=size):
            assert batch.target is not None
            found.append(batch.target)
            progress.advance(batch.target.shape[int(data.own)])
    return found
