"""How many weights, rows and columns of a model are left."""

import math
from dataclasses import dataclass

from torch import nn

from ..layers import BayesianLayer
from .units import LAYERS, mean_weight, unit_axis, units_in_use


@dataclass(frozen=True)
class LayerReport:
    """The counts of one layer; a row or column is left if any weight in it is not zero. Biases are not counted."""

    name: str
    weights: int
    left: int
    rows: int
    rows_left: int
    columns: int
    columns_left: int

    @property
    def dropped(self) -> float:
        """Percentage of the weights that are zero."""
        return 100 * (1 - self.left / self.weights)

    def to_dict(self) -> dict:
        """All counts and ``dropped``."""
        return {**vars(self), "dropped": self.dropped}


@dataclass(frozen=True)
class Report:
    """What :func:`report` returns: ``layers`` and totals over them; ``print`` shows a table."""

    layers: tuple[LayerReport, ...]

    @property
    def total(self) -> LayerReport:
        """All layers together."""
        counts = ("weights", "left", "rows", "rows_left", "columns", "columns_left")
        return LayerReport("total", **{name: sum(getattr(layer, name) for layer in self.layers) for name in counts})

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.total.weights

    @property
    def left(self) -> int:
        """Number of weights that are not zero."""
        return self.total.left

    @property
    def dropped(self) -> float:
        """Percentage of the weights that are zero."""
        return self.total.dropped

    @property
    def compression(self) -> float:
        """``weights / left``, ∞ where nothing is left."""
        return self.weights / self.left if self.left else math.inf

    def to_dict(self) -> dict:
        """Numbers, strings and lists only; an infinite ``compression`` is None, which JSON can say."""
        compression = self.compression if self.left else None
        layers = [layer.to_dict() for layer in self.layers]
        return {"layers": layers, "total": self.total.to_dict(), "compression": compression}

    def __str__(self) -> str:
        header = ("layer", "weights", "left", "dropped %", "rows left", "columns left")
        table = [header, *(_cells(layer) for layer in (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        rule = "-+-".join("-" * width for width in widths)
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def report(model: nn.Module) -> Report:
    """Count the weights of the model's linear and convolutional layers, Bayesian or plain, that are not zero.

    Rows are output units or channels, columns input units or channels (see :mod:`mnvi.sparsity.scores`). A shared layer
    counts once.

    Raises:
        ValueError: the model has no such layer.

    Example:
        >>> print(mnvi.sparsity.report(model))
    """
    kinds = (BayesianLayer, *LAYERS)
    layers = tuple(_count(name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    if not layers:
        raise ValueError(f"report counts linear and convolutional layers and this {type(model).__name__} has none")
    return Report(layers)


def _count(name: str, layer: nn.Module) -> LayerReport:
    weight = mean_weight(layer)
    counts = {}
    for groups in ("rows", "columns"):
        in_use = units_in_use(weight, unit_axis(layer, groups))
        counts |= {groups: len(in_use), f"{groups}_left": int(in_use.sum())}
    return LayerReport(name, weight.numel(), int(weight.count_nonzero()), **counts)


def _cells(layer: LayerReport) -> tuple[str, ...]:
    left = f"{layer.rows_left:,}/{layer.rows:,}", f"{layer.columns_left:,}/{layer.columns:,}"
    return layer.name, f"{layer.weights:,}", f"{layer.left:,}", f"{layer.dropped:.2f}", *left
