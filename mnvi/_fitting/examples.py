"""Training examples by number: tensors in memory, or a Dataset."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .._inputs import Inputs
from ..likelihoods.base import described


class Examples:
    """N examples; :meth:`batches` gives them by their numbers.

    Args:
        size: N.
        own: whether each of several models has examples of its own, stacked in front, (K, N, …).
    """

    may_differ = True  # whether models may see different batches at one time

    def __init__(self, size: int, own: bool = False) -> None:
        if size < 1:
            raise ValueError("the data have no examples")
        self.size, self.own = size, own

    def batches(self, numbers: Sequence[Tensor]) -> Iterator[Inputs]:
        """The examples of these numbers: (B,) the same for all models, (K, B) for each of K models its own."""
        raise NotImplementedError

    def repeated(self, count: int) -> "Examples":
        """For ``count`` copies of every model: where models have examples of their own, so do the copies."""
        return self

    def everything(self, numbers: Tensor | None = None, size: int = 500) -> Iterator[Inputs]:
        """All examples, or those of these numbers (n,), in their order; the same numbers for all models."""
        numbers = torch.arange(self.size) if numbers is None else numbers
        return self.batches(numbers.split(size))

    def batch(self, numbers: Tensor) -> Inputs:
        """The one batch of these numbers."""
        [found] = self.batches([numbers])
        return found


class TensorExamples(Examples):
    """Tensors in memory: inputs (a tensor, or a tuple or dict of them) and targets, whose first dimension is N."""

    def __init__(self, inputs: Inputs, own: bool = False) -> None:
        shapes = [tuple(tensor.shape) for tensor in inputs.tensors()]
        if any(len(shape) <= own for shape in shapes):
            raise ValueError("the first dimension of inputs and targets must count examples, got a scalar")
        if len({shape[own] for shape in shapes}) > 1:
            came = ", ".join(str(shape[own:]) for shape in shapes)
            raise ValueError(f"inputs and targets must have one number of examples, got shapes {came}")
        super().__init__(shapes[0][own], own)
        self.inputs = inputs.map(torch.Tensor.detach)

    def repeated(self, count: int) -> Examples:
        if not self.own or count == 1:
            return self
        return TensorExamples(self.inputs.map(lambda tensor: tensor.repeat_interleave(count, 0)), own=True)

    def batches(self, numbers: Sequence[Tensor]) -> Iterator[Inputs]:
        for each in numbers:
            yield self.inputs.map(lambda tensor, each=each: self._taken(tensor, each.to(tensor.device)))

    def of_model(self, k: int) -> Inputs:
        """All examples of model k."""
        return self.inputs.map(lambda tensor: tensor[k]) if self.own else self.inputs

    def _taken(self, tensor: Tensor, numbers: Tensor) -> Tensor:
        if not self.own:
            return tensor[numbers]
        return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], numbers]


class DatasetExamples(Examples):
    """A Dataset with a length, read through a DataLoader."""

    may_differ = False

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(len(dataset))
        self.dataset, self.options = dataset, options

    def batches(self, numbers: Sequence[Tensor]) -> Iterator[Inputs]:
        # The workers' random numbers follow from the order of the examples, and torch's own are not used up for them.
        seed = zlib.crc32(torch.cat(list(numbers)).numpy().tobytes())
        order = {"batch_sampler": [each.tolist() for each in numbers], "generator": torch.Generator().manual_seed(seed)}
        for batch in DataLoader(self.dataset, **order, **self.options):
            inputs = Inputs.of_batch(batch)
            if inputs.target is None:
                raise TypeError(
                    'the batches of the data must be (x, target), or dicts with "labels", of tensors; '
                    f"got {described(batch)}"
                )
            yield inputs.map(torch.Tensor.detach)
