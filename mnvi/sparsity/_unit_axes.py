"""Rows, columns and taps of a layer, as axes of its weight tensor, for Bayesian and plain torch layers alike."""

from torch import Tensor, nn

from ..layers import BayesianLayer
from ..layers.kinds import kind_of

UNITS = ("rows", "columns", "taps")
GROUPS = ("weights", *UNITS)


def mean_weight(layer: nn.Module) -> Tensor:
    """The weight that ``layer`` uses in eval mode, masked where it is pruned, detached."""
    if isinstance(layer, BayesianLayer):
        layer.settle_()
        return layer.mean_weight().detach()
    return layer.weight.detach()  # type: ignore[operator]


def unit_axis(layer: nn.Module, groups: str) -> int:
    """The axis of ``layer.weight`` that counts its rows (output units) or its columns (input units).

    Linear (out, in) and convolution (out, in/groups, *kernel): rows 0, columns 1. Transposed convolution
    (in, out/groups, *kernel) and transformers' Conv1D (in, out): rows 1, columns 0. With ``groups`` > 1 one index of
    axis 1 stands for a channel of every group: the j-th of each.
    """
    kind = kind_of(layer, subclasses=True)
    outputs = 0 if kind is None else kind.output_axis
    return outputs if groups == "rows" else 1 - outputs


def inner_axes(layer: nn.Module, groups: str) -> tuple[int, ...]:
    """The axes of ``layer.weight`` within one row, column or tap: what a unit is reduced over."""
    if groups == "taps":
        return (unit_axis(layer, "rows"),)
    return tuple(dim for dim in range(layer.weight.dim()) if dim != unit_axis(layer, groups))  # type: ignore[operator]


def units_in_use(weight: Tensor, axis: int) -> Tensor:
    """Which units along ``axis`` have a weight that is not zero, shape (weight.shape[axis],), bool."""
    return (weight != 0).movedim(axis, 0).flatten(1).any(1)


def over_weights(units: Tensor, weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """One value a unit, spread over ``weight``'s shape; ``axes`` are those within a unit."""
    return units.view([1 if dim in axes else size for dim, size in enumerate(weight.shape)]).expand_as(weight)
