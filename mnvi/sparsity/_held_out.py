"""Held-out examples, kept in memory, and what a model with other weights loses on them."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from .._data_checks import check_examples
from .._first_call import first_call, refuse_nan
from .._inputs import Inputs
from ..likelihoods.base import Likelihood, described, first, over
from ._measures import loss_of

BATCH = 500  # examples in one call of the model, of tensors and of a Dataset


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
        output = first_call(model, self.batches[0])
        if not isinstance(data, (DataLoader, Dataset)):
            _check_tensors(data[0], data[1], likelihood, output)

    @torch.no_grad()
    def losses(self, weights: Mapping[str, Tensor], limit: float = math.inf) -> Tensor:
        """The loss of every example, float64 (N,), with these weights in place of the model's own, by name.

        Those of the first examples only, if they show that the mean of all is above ``limit``: if no loss is negative.
        """
        found, total = [], 0.0
        for inputs in self.batches:
            output = functional_call(self.model, dict(weights), inputs.positional, inputs.named)
            draws: Any = over(lambda each: each.unsqueeze(0), self.likelihood.read(output))
            if not weights:
                refuse_nan(first(draws)[0], inputs)
            found.append(loss_of(self.measure, self.likelihood, draws, inputs.target).cpu().double())  # type: ignore[arg-type]
            self.advance(1)
            total += found[-1].sum().item()
            if self.likelihood.discrete and total > limit * self.count:
                break
        return torch.cat(found)


def _check_tensors(x: Tensor, y: Tensor, likelihood: Likelihood, output: Any) -> None:
    """Raise for examples that are not finite, or have targets that do not fit, with their rows among all."""
    try:
        check_examples(x, y, copy.deepcopy(likelihood).to(y.device), output=output, least=1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"data: {error}") from error


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
        advice = "; a single example is a batch as (x[None], y[None])" if not y.dim() else ""
        raise ValueError(f"data must be as many targets as inputs, got {described(x)} and {described(y)}{advice}")
    return (Inputs.of(*batch) for batch in zip(x.split(BATCH), y.split(BATCH), strict=True) if len(batch[0]))


def _with_targets(batches: Iterator[Inputs], advance: Callable[[int], None]) -> Iterator[Inputs]:
    for inputs in batches:
        advance(0)  # shows that something goes on
        if inputs.target is None:
            raise ValueError("the batches of data must be [x, target], or a dict with the targets as 'labels'")
        yield inputs
