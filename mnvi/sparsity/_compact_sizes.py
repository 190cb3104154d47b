"""How large a compact network is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ._unit_axes import unit_axis
from .compact import compacted


@dataclass(frozen=True)
class CompactSizes:
    """The sizes of ``compact(model)``; where there is none, ``error`` says why and the numbers are None.

    Attributes:
        parameters: all of them.
        weights: those that are weights of linear or convolutional layers.
        zeros: those of the weights that are 0.
        layers: rows, columns and parameters of each layer by its name in the model.
        error: why the model cannot be compacted, ``""`` if it can.
    """

    parameters: int | None = None
    weights: int | None = None
    zeros: int | None = None
    layers: Mapping[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The numbers and ``error``."""
        return {name: getattr(self, name) for name in ("parameters", "weights", "zeros", "error")}


def compact_sizes(model: nn.Module) -> CompactSizes:
    """The sizes of ``compact(model)``, by making it."""
    try:
        small, layers = compacted(model)
    except Exception as error:  # beside compact's own: whatever copying the model raises
        return CompactSizes(error=str(error))
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    count = sum(weight.numel() for weight in weights)
    sizes = {name: _size(layer) for name, layer in layers.items()}
    return CompactSizes(_parameters(small), count, count - nonzero, sizes)


def _size(layer: nn.Module) -> tuple[int, int, int]:
    shape = layer.get_parameter("weight").shape
    rows, columns = (shape[unit_axis(layer, groups)] for groups in ("rows", "columns"))
    return rows, columns, _parameters(layer)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
