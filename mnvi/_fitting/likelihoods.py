"""The likelihoods of a fit: each model its own, those of real targets in the targets' units."""

import copy

import torch
from torch import Tensor

from ..likelihoods import Gaussian, HeteroscedasticGaussian, Likelihood, Standardized, StudentT
from ..predictive import SHORT_NAMES
from .examples import Examples

REAL: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
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
    names = {**SHORT_NAMES, **REAL}
    if not isinstance(likelihood, str) or likelihood not in names:
        hint = f"; did you mean {likelihood.__name__}()?" if isinstance(likelihood, type) else ""
        known = f"an object of mnvi.likelihoods or one of {', '.join(map(repr, names))}"
        raise ValueError(f"likelihood must be {known}, got {likelihood!r}{hint}")
    if likelihood not in REAL:
        return [names[likelihood]() for _ in range(models)]
    mean, std = _moments(data)
    if not bool((std > 0).all()):
        raise ValueError("a target is constant, so there is nothing to learn of it")
    pick = [slice(None)] * models if not data.own else range(models)
    return [Standardized(REAL[likelihood](), mean[k], std[k]) for k in pick]


def _moments(data: Examples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the targets over the examples, of each column and each model's own."""
    axis = int(data.own)
    target = torch.cat([_target(batch.target) for batch in data.everything()], axis)
    if target.shape[axis] < 2:
        raise ValueError("one example has no spread to standardise targets by; give a likelihood object")
    std, mean = torch.std_mean(target, axis)
    return mean, std


def _target(target: Tensor | None) -> Tensor:
    if target is None or not (target.is_floating_point() or target.dtype == torch.int64):
        raise TypeError(f"real targets are expected, got {None if target is None else target.dtype}")
    return target.to(torch.get_default_dtype()) if not target.is_floating_point() else target
