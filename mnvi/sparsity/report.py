"""The report of a pruned model: what is left of its layers, what compaction makes of it, and how it scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._models.deterministic_weights import described, deterministic_modules
from ..layers import BayesianLayer, bayesian_layers
from ..layers.kinds import kind_of
from ._compact_sizes import CompactSizes, compact_sizes
from ._report_table import table
from ._score_quantiles import Quantiles, finite_quantiles, score_quantiles, scores_left
from ._unit_axes import UNITS, inner_axes, mean_weight


@dataclass(frozen=True)
class LayerReport:
    """The counts of one layer; a row, column or tap is left if any weight in it is not zero. Biases are not counted.

    ``compact`` is the rows, columns and parameters (biases too) that :func:`compact` leaves of it, None where that is
    not possible. ``scores`` is as that of :class:`Report`, for this layer.
    """

    name: str
    weights: int
    left: int
    rows: int
    rows_left: int
    columns: int
    columns_left: int
    taps: int = field(default=0, compare=False)
    taps_left: int = field(default=0, compare=False)
    compact: tuple[int, int, int] | None = field(default=None, compare=False)
    scores: Mapping[str, Quantiles] = field(default_factory=dict, compare=False)

    @property
    def dropped(self) -> float:
        """Percentage of the weights that are zero."""
        return 100 * (1 - self.left / self.weights)

    def to_dict(self) -> dict[str, Any]:
        """All counts and ``dropped``."""
        compact = None if self.compact is None else list(self.compact)
        return {**vars(self), "dropped": self.dropped, "compact": compact, "scores": finite_quantiles(self.scores)}


@dataclass(frozen=True)
class Report:
    """What :func:`report` returns: ``layers`` and totals over them; ``print`` shows a table.

    ``deterministic`` names the modules of a partly Bayesian model that have weights, but no posterior, as
    ``"name (Kind)"``: embeddings and recurrent weights, say, which the table does not count.

    Attributes:
        parameters: of the plain network, ``to_deterministic(model)``: weights, biases, norms.
        compact: of ``compact(model)`` the number of ``parameters``, of ``weights`` among them, and of ``zeros`` among
            these: whole units are cut, single zeros between units that stay are not. Where there is no compact network,
            these are None and ``error`` says why.
        scores: for ``"weights"``, ``"rows"`` and ``"columns"`` the 5, 25, 50, 75 and 95 % quantiles of
            :func:`signal_to_noise` over what is left in all Bayesian layers. A threshold of the 75 % quantile, say,
            would drop three quarters of it.
    """

    layers: tuple[LayerReport, ...]
    deterministic: tuple[str, ...] = ()
    parameters: int = 0
    compact: CompactSizes = field(default_factory=CompactSizes, compare=False)
    scores: Mapping[str, Quantiles] = field(default_factory=dict, compare=False)

    @property
    def total(self) -> LayerReport:
        """All layers together."""
        names = ("weights", "left", *(f"{unit}{left}" for unit in UNITS for left in ("", "_left")))
        counts: dict[str, Any] = {name: sum(getattr(layer, name) for layer in self.layers) for name in names}
        return LayerReport("total", **counts)

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
        """Numbers, strings and lists only; an infinite ``compression`` or score is None, which JSON can say."""
        compression = self.compression if self.left else None
        layers = [layer.to_dict() for layer in self.layers]
        counts = {"layers": layers, "total": self.total.to_dict(), "compression": compression}
        sizes = {"parameters": self.parameters, "compact": self.compact.to_dict()}
        return {**counts, **sizes, "scores": finite_quantiles(self.scores), "deterministic": list(self.deterministic)}

    def __str__(self) -> str:
        return table(self)


def report(model: nn.Module) -> Report:
    """Count the weights of the model's linear and convolutional layers, Bayesian or plain, that are not zero.

    Rows are output units or channels, columns input units or channels, taps these at one kernel position (see
    :mod:`mnvi.sparsity.scores`). A shared layer counts once. What :func:`compact` would leave is found by compacting a
    copy.

    Raises:
        ValueError: the model has no such layer.

    Example:
        >>> print(mnvi.sparsity.report(model))
    """
    counted = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BayesianLayer) or kind_of(module, subclasses=True)
    }
    if not counted:
        raise ValueError(f"report counts linear and convolutional layers and this {type(model).__name__} has none")
    sizes = compact_sizes(model)
    scores = {name: scores_left(layer) for name, layer in bayesian_layers(model)}
    layers = tuple(_count(name, each, sizes, scores.get(name, {})) for name, each in counted.items())
    deterministic = described(deterministic_modules(model)) if scores else ()
    return Report(layers, deterministic, _plain_parameters(model), sizes, score_quantiles(*scores.values()))


def _count(name: str, layer: nn.Module, sizes: CompactSizes, scores: Mapping[str, Tensor]) -> LayerReport:
    weight = mean_weight(layer)
    counts: dict[str, Any] = {}
    for groups in UNITS:
        in_use = (weight != 0).any(inner_axes(layer, groups))
        counts |= {groups: in_use.numel(), f"{groups}_left": int(in_use.sum())}
    own: dict[str, Any] = {"compact": sizes.layers.get(name), "scores": score_quantiles(scores)}
    return LayerReport(name, weight.numel(), int(weight.count_nonzero()), **counts, **own)


def _plain_parameters(model: nn.Module) -> int:
    parts = [part for _, layer in bayesian_layers(model) for part in (layer.posterior, layer.prior)]
    others = {parameter for part in parts for parameter in part.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if parameter not in others)
