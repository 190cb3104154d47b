"""Training examples by number, whatever they come as: tensors, a Dataset, the Dataset of a DataLoader."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from .._inputs import Inputs
from ..likelihoods.base import described

FORMS = "(x, y) of tensors, a Dataset, a DataLoader, or for several models a list of such pairs, one for each"


class Examples:
    """N examples; :meth:`batches` gives them by their numbers.

    Args:
        size: N.
        own: whether each of several models has examples of its own, stacked in front, (K, N, …).
    """

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


class TensorExamples(Examples):
    """Tensors in memory: inputs (a tensor, or a tuple or dict of them) and targets, whose first dimension is N."""

    def __init__(self, inputs: Inputs, own: bool = False) -> None:
        sizes = {tensor.shape[own] for tensor in inputs.tensors()}
        if inputs.target is None:
            raise TypeError(f"data must be {FORMS}; the targets must be a tensor")
        if len(sizes) > 1:
            came = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors())
            raise ValueError(f"inputs and targets must have one number of examples, got shapes {came}")
        super().__init__(sizes.pop(), own)
        self.inputs = inputs

    def repeated(self, count: int) -> Examples:
        if not self.own or count == 1:
            return self
        return TensorExamples(self.inputs.map(lambda tensor: tensor.repeat_interleave(count, 0)), own=True)

    def batches(self, numbers: Sequence[Tensor]) -> Iterator[Inputs]:
        for each in numbers:
            if not self.own:
                yield self.inputs.map(lambda tensor, each=each: tensor[each.to(tensor.device)])
            else:
                which = torch.arange(len(next(self.inputs.tensors())))[:, None]
                yield self.inputs.map(lambda tensor, each=each, which=which: tensor[which, each])


class DatasetExamples(Examples):
    """A Dataset with a length, read through a DataLoader."""

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(len(dataset))  # type: ignore[arg-type]
        self.dataset, self.options = dataset, options

    def batches(self, numbers: Sequence[Tensor]) -> Iterator[Inputs]:
        if any(each.dim() > 1 for each in numbers):
            raise TypeError("several models on a Dataset see the same batches")
        loader = DataLoader(self.dataset, batch_sampler=[each.tolist() for each in numbers], **self.options)
        for batch in loader:
            inputs = Inputs.of_batch(batch)
            if inputs.target is None:
                raise TypeError(f"the batches of the data must hold targets, (x, target), got {described(batch)}")
            yield inputs


def examples(data: Any, models: int = 1) -> Examples:
    """The examples that ``data`` stands for.

    Raises:
        TypeError, ValueError: it is none of the forms, or they do not fit each other.
    """
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            raise TypeError(
                "a DataLoader of an IterableDataset cannot be shuffled, held out from, or resumed: give a Dataset"
            )
        options = {"collate_fn": data.collate_fn, "num_workers": data.num_workers, "pin_memory": data.pin_memory}
        if data.collate_fn is not default_collate or not isinstance(data.dataset, TensorDataset):
            return DatasetExamples(data.dataset, **options)
        data = data.dataset
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return DatasetExamples(data)
    if isinstance(data, (list, tuple)) and len(data) == 2 and isinstance(data[1], Tensor):
        return TensorExamples(_pair(data))
    if isinstance(data, (list, tuple)) and data and all(isinstance(each, (list, tuple)) for each in data):
        return TensorExamples(_stacked([_pair(each) for each in data], models), own=True)
    raise TypeError(f"data must be {FORMS}; got {described(data)}")


def _pair(data: Sequence[Any]) -> Inputs:
    x, y = data
    if not isinstance(x, (Tensor, tuple, list, Mapping)) or not isinstance(y, Tensor):
        raise TypeError(f"data must be {FORMS}; got {described(data)}; torch.as_tensor makes a tensor of an array")
    return Inputs.of(x, y)


def _stacked(pairs: list[Inputs], models: int) -> Inputs:
    if len(pairs) != models:
        raise ValueError(f"{models} models take as many pairs of tensors, or one for all; got {len(pairs)}")
    for tensors in zip(*(list(pair.tensors()) for pair in pairs), strict=True):
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            raise ValueError(
                f"the data of several models must have equal shapes, got {', '.join(map(str, sorted(shapes)))}"
            )
    return Inputs.stack(pairs)
