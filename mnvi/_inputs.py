"""The inputs of one call of a model, in one form for tensors, tuples, dicts and the batches of a DataLoader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .likelihoods.base import described


@dataclass(frozen=True)
class Inputs:
    """One call of a model, and the targets that came along.

    Attributes:
        positional, named: the arguments of the model's ``forward``.
        target: ``None`` where none came.
    """

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None

    @classmethod
    def of(cls, x: Any, target: Any = None) -> "Inputs":
        """A tuple (or, in a batch, a list) is the arguments, a mapping named arguments, all else the one argument."""
        target = target if isinstance(target, Tensor) else None
        if type(x) in (tuple, list):  # a named tuple is one object, such as a PackedSequence
            return cls(tuple(x), {}, target)
        return cls((), dict(x), target) if isinstance(x, Mapping) else cls((x,), {}, target)

    @classmethod
    def of_batch(cls, batch: Any) -> "Inputs":
        """``x``, ``[x]``, ``[x, target]``, or a mapping whose ``"labels"``, where there are any, are the targets."""
        if isinstance(batch, Mapping):
            return cls.of({k: v for k, v in batch.items() if k != "labels"}, batch.get("labels"))
        if not isinstance(batch, (tuple, list)):
            return cls.of(batch)
        if len(batch) not in (1, 2):
            raise ValueError(
                f"a batch must be x, (x, target) or a dict, got {described(batch)}; "
                "several inputs are ((x1, x2), target) or a dict"
            )
        return cls.of(*batch)

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.positional, **self.named)

    def to(self, device: torch.device) -> "Inputs":
        """The same with every tensor on ``device``."""
        return Inputs(*(_to(part, device) for part in (self.positional, self.named, self.target)))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with ``change`` of every tensor."""
        return Inputs(*(_mapped(part, change) for part in (self.positional, self.named, self.target)))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, the target last."""
        return _tensors((self.positional, self.named, self.target))

    @staticmethod
    def stack(members: Sequence["Inputs"]) -> "Inputs":
        """Several calls of one form as one, their tensors stacked in front."""
        each = iter(list(zip(*(member.tensors() for member in members), strict=True)))
        return members[0].map(lambda _: torch.stack(next(each)))

    def device(self) -> torch.device:
        """Where the first tensor lies."""
        return next(_tensors((self.positional, self.named)), torch.empty(0)).device


def batches(x: Any) -> Iterator[Inputs]:
    """The calls that ``x`` stands for: one, or one for every batch of a DataLoader.

    Raises:
        TypeError: ``x`` is no tensor, tuple, dict or DataLoader.
    """
    if isinstance(x, DataLoader):
        return (Inputs.of_batch(batch) for batch in x)
    if not isinstance(x, (Tensor, tuple, Mapping)):
        raise TypeError(
            f"x must be a tensor, a tuple or dict of the model's arguments, or a DataLoader, got {described(x)}; "
            "torch.as_tensor makes a tensor of an array, DataLoader(x, batch_size=…) batches of a Dataset or a list"
        )
    return iter([Inputs.of(x)])


def _to(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(each, device) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        moved = [_to(each, device) for each in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        changed = [_mapped(each, change) for each in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)
