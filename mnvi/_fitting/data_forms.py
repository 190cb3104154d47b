"""The forms in which data come: pairs of tensors, a Dataset, a DataLoader, for several models a list of pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from .._inputs import Inputs
from ..likelihoods.base import described
from .examples import DatasetExamples, Examples, TensorExamples

FORMS = "(x, y) of tensors, a Dataset, a DataLoader, or for several models a list of such pairs, one for each"
ITERABLE = "an IterableDataset cannot be shuffled, held out from, or resumed; give a Dataset with a length"


def examples(name: str, data: Any, models: int = 1) -> Examples:
    """The examples that ``data`` stands for; messages call them ``name``.

    Raises:
        TypeError, ValueError: it is none of the forms, or its parts do not fit each other.
    """
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, IterableDataset):
        raise TypeError(f"{name}: {ITERABLE}")
    options = _options(name, data) if isinstance(data, DataLoader) else {}
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2 and "collate_fn" not in options:
        return TensorExamples(_pair(name, dataset.tensors))
    if isinstance(data, DataLoader) or _is_dataset(dataset):
        return DatasetExamples(dataset, **options)
    if isinstance(data, (list, tuple)) and len(data) == 2 and isinstance(data[1], Tensor):
        return TensorExamples(_pair(name, data))
    if isinstance(data, (list, tuple)) and data and all(isinstance(each, (list, tuple)) for each in data):
        return _of_pairs(name, data, models)
    raise TypeError(f"{name} must be {FORMS}; got {described(data)}{_advice(data)}")


def _options(name: str, loader: DataLoader) -> dict[str, Any]:
    """What a DataLoader has beside its dataset and batch size, as far as it differs from the default.

    Raises:
        ValueError: its order is not by chance, or its batches are not made of single examples.
    """
    if loader.batch_size is None or not _of_all(loader.sampler, len(loader.dataset)):  # type: ignore[arg-type]
        raise ValueError(
            f"{name}: of a DataLoader the dataset, batch size, collate_fn and workers are used, the order of the "
            "examples is that of the fit; it must be DataLoader(dataset, batch_size=…) without a sampler of its own"
        )
    options = {} if loader.collate_fn is default_collate else {"collate_fn": loader.collate_fn}
    if loader.num_workers:
        names = ("num_workers", "pin_memory", "worker_init_fn", "prefetch_factor", "multiprocessing_context", "timeout")
        options |= {each: getattr(loader, each) for each in names}
    return options


def _of_all(sampler: Any, size: int) -> bool:
    """Whether a sampler is one of those that a DataLoader makes itself: every example once."""
    drawn = isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == size
    return drawn or type(sampler) is SequentialSampler


def _is_dataset(data: Any) -> bool:
    """Whether ``data`` has numbered examples and a length, as torch's Datasets have, and those of Hugging Face."""
    known = (Tensor, list, tuple, Mapping, str)
    array = hasattr(data, "__array__") or hasattr(data, "iloc")
    return not isinstance(data, known) and not array and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _pair(name: str, data: Sequence[Any]) -> Inputs:
    x, y = data if len(data) == 2 else (None, None)
    if not isinstance(x, (Tensor, tuple, list, Mapping)) or not isinstance(y, Tensor):
        raise TypeError(f"{name} must be {FORMS}; got {described(data)}{_advice(*data)}")
    return Inputs.of(x, y)


def _of_pairs(name: str, data: Sequence[Sequence[Any]], models: int) -> Examples:
    if len(data) != models:
        raise ValueError(
            f"{name} must be one pair of tensors, or a list of as many as there are models, {models}; got {len(data)}; "
            "a list of single examples is a Dataset as DataLoader(list, batch_size=…)"
        )
    pairs = [_pair(name, each) for each in data]
    if models == 1:
        return TensorExamples(pairs[0])
    for tensors in zip(*(list(pair.tensors()) for pair in pairs), strict=True):
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            came = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"{name} of several models must have equal shapes, got {came}")
    return TensorExamples(Inputs.stack(pairs), own=True)


def _advice(*values: Any) -> str:
    arrays = any(hasattr(each, "__array__") and not isinstance(each, Tensor) for each in values)
    arrays |= len(values) == 1 and isinstance(values[0], (list, tuple)) and any(map(_advice, values[0][:2]))
    frames = any(hasattr(each, "to_numpy") for each in values)
    if frames:
        return "; torch.as_tensor(frame.to_numpy()) makes a tensor of a DataFrame"
    return "; torch.as_tensor makes a tensor of an array" if arrays else ""
