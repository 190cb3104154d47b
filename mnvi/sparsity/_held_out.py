"""Held-out examples, kept in memory, and what a model with other weights loses on them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from .. import likelihoods
from .._inputs import Inputs
from ..layers import BayesianLayer
from ..layers.kinds import kind_of
from ..likelihoods.base import Likelihood, described, over

MEASURES = ("error", "nll")
BATCH = 500  # examples in one call of the model, of tensors and of a Dataset
SHORT_NAMES = {
    "bernoulli": likelihoods.Bernoulli,
    "categorical": likelihoods.Categorical,
    "heteroscedastic_gaussian": likelihoods.HeteroscedasticGaussian,
    "poisson": likelihoods.Poisson,
}


def likelihood_of(likelihood: Likelihood | str) -> Likelihood:
    """The likelihood that is meant, of an object or a short name."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str) and likelihood in SHORT_NAMES:
        return SHORT_NAMES[likelihood]()
    known = f"an object of mnvi.likelihoods or one of {', '.join(map(repr, SHORT_NAMES))}"
    raise ValueError(f"likelihood must be {known}, got {likelihood!r}; a normal one is Gaussian(scale)")


def has_classes(likelihood: Likelihood) -> bool:
    """Whether predictions are right or wrong."""
    return isinstance(likelihood, (likelihoods.Categorical, likelihoods.Bernoulli))


class HeldOut:
    """The examples, and the losses of a model on them.

    Args:
        model: in eval mode while losses are measured.
        data: a pair (x, y) of tensors, a Dataset of such pairs or a DataLoader, read once.
        likelihood: of the targets.
        measure: ``"error"``, 100 where the most probable class is wrong, or ``"nll"``, −log p(y | x) in nats.
        advance: called with 1 after every batch.
    """

    def __init__(
        self, model: nn.Module, data: Any, likelihood: Likelihood, measure: str, advance: Callable[[int], None]
    ) -> None:
        self.model, self.measure, self.advance = model, measure, advance
        tensor = next((each for each in (*model.parameters(), *model.buffers())), torch.empty(0))
        self.likelihood = likelihood.to(tensor.device)
        self.batches = [inputs.to(tensor.device) for inputs in _with_targets(batches_of(data), advance)]
        self.count = sum(len(inputs.target) for inputs in self.batches)  # type: ignore[arg-type]
        if not self.count:
            raise ValueError("data has no examples; pruning needs some that the training has not seen")

    @torch.no_grad()
    def losses(self, weights: Mapping[str, Tensor], limit: float = math.inf) -> Tensor:
        """The loss of every example, float64 (N,), with these weights in place of the model's own, by name.

        Those of the first examples only, if they show that the mean of all is above ``limit``: if no loss is negative.
        """
        found, total = [], 0.0
        for inputs in self.batches:
            output = functional_call(self.model, dict(weights), inputs.positional, inputs.named)
            found.append(self._of_batch(output, inputs.target).double())  # type: ignore[arg-type]
            self.advance(1)
            total += found[-1].sum().item()
            if self.likelihood.discrete and total > limit * self.count:
                break
        return torch.cat(found)

    def _of_batch(self, output: Any, target: Tensor) -> Tensor:
        draws: Any = over(lambda each: each.unsqueeze(0), self.likelihood.read(output))
        if self.measure == "nll":
            return -self.likelihood.log_prob(draws, target)
        self.likelihood.check_target(draws, target)
        right, seen = hits(self.likelihood, draws[0], target)
        return 100 * (seen & ~right).sum(1) / seen.sum(1).clamp_min(1)


def hits(likelihood: Likelihood, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the most probable class is right, and where there is a target, bool (N, entries)."""
    if isinstance(likelihood, likelihoods.Categorical):
        right, seen = output.argmax(likelihood.dim) == target, target != likelihood.ignore_index
    else:
        right, seen = (output > 0) == (target != 0), torch.ones_like(target, dtype=torch.bool)
    return right.reshape(len(target), -1), seen.reshape(len(target), -1)


def batches_of(data: Any) -> Iterator[Inputs]:
    """The batches of a pair of tensors, a Dataset or a DataLoader.

    Raises:
        TypeError, ValueError: it is none of these, or inputs and targets differ in number.
    """
    if isinstance(data, DataLoader):
        return map(Inputs.of_batch, data)
    if isinstance(data, Dataset):
        return map(Inputs.of_batch, DataLoader(data, BATCH))
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(isinstance(each, Tensor) for each in data):
        raise TypeError(
            f"data must be a pair (x, y) of tensors, a Dataset or a DataLoader, got {described(data)}; "
            "several inputs come in a DataLoader's batches ((x1, x2), y)"
        )
    x, y = data
    if not x.dim() or not y.dim() or len(x) != len(y):
        raise ValueError(f"data must be as many targets as inputs, got {described(x)} and {described(y)}")
    return (Inputs.of(*batch) for batch in zip(x.split(BATCH), y.split(BATCH), strict=True) if len(batch[0]))


def _with_targets(batches: Iterator[Inputs], advance: Callable[[int], None]) -> Iterator[Inputs]:
    for inputs in batches:
        advance(0)  # shows that something goes on
        if inputs.target is None:
            raise ValueError("the batches of data must be [x, target], or a dict with the targets as 'labels'")
        yield inputs


@contextmanager
def in_eval_mode(model: nn.Module):
    """Inside, the model is in eval mode; then every module is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def output_layer(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """The linear or convolutional layer, Bayesian or plain, that is called last for these inputs."""
    called: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, BayesianLayer) or kind_of(m, subclasses=True)]
    handles = [layer.register_forward_pre_hook(lambda module, _: called.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return called[-1] if called else None
