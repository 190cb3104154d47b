"""The report of a pruned model: how many weights, rows and columns of its layers are left."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._models.deterministic_weights import described, deterministic_modules
from ..layers import BayesianLayer
from ..layers.kinds import kind_of
from ._unit_axes import mean_weight, unit_axis, units_in_use


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

    def to_dict(self) -> dict[str, Any]:
        """All counts and ``dropped``."""
        return {**vars(self), "dropped": self.dropped}


@dataclass(frozen=True)
class Report:
    """What :func:`report` returns: ``layers`` and totals over them; ``print`` shows a table.

    ``deterministic`` names the modules of a partly Bayesian model that have weights, but no posterior, as
    ``"name (Kind)"``: embeddings and recurrent weights, say, which the table does not count.
    """

    layers: tuple[LayerReport, ...]
    deterministic: tuple[str, ...] = ()

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

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists only; an infinite ``compression`` is None, which JSON can say."""
        compression = self.compression if self.left else None
        layers = [layer.to_dict() for layer in self.layers]
        counts = {"layers": layers, "total": self.total.to_dict(), "compression": compression}
        return {**counts, "deterministic": list(self.deterministic)}

    def __str__(self) -> str:
        header = ("layer", "weights", "left", "dropped %", "rows left", "columns left")
        table = [header, *(_cells(layer) for layer in (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        rule = "-+-".join("-" * width for width in widths)
        rest = [f"deterministic: {', '.join(self.deterministic)}"] if self.deterministic else []
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *rest])


def report(model: nn.Module) -> Report:
    """Count the weights of the model's linear and convolutional layers, Bayesian or plain, that are not zero.

    Rows are output units or channels, columns input units or channels (see :mod:`mnvi.sparsity.scores`). A shared layer
    counts once.

    Raises:
        ValueError: the model has no such layer.

    Example:
        >>> print(mnvi.sparsity.report(model))
    """
    counted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BayesianLayer) or kind_of(module, subclasses=True)
    ]
    layers = tuple(_count(name, module) for name, module in counted)
    if not layers:
        raise ValueError(f"report counts linear and convolutional layers and this {type(model).__name__} has none")
    bayesian = any(isinstance(module, BayesianLayer) for _, module in counted)
    return Report(layers, described(deterministic_modules(model)) if bayesian else ())


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
