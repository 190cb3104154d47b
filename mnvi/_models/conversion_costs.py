"""What a conversion costs: a warning where covariance factors are larger than the weights, and a line in the log."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from ..layers import kinds
from ..layers.base import BayesianLayer, column_split
from ..posteriors import PosteriorSpec

LARGE = 32 * 2**20  # bytes of covariance factors above which a conversion warns
BATCH = 128  # examples of the step that the warning speaks of
logger = logging.getLogger("mnvi")


class _Cost(NamedTuple):
    """The factors of one layer: their bytes, those of its weight, and what is said of the arithmetic."""

    name: str
    size: int
    weight_size: int
    arithmetic: str


def warn_if_large(layers: dict[Any, str], posterior: PosteriorSpec, estimator: str | None) -> None:
    """Warn of covariance factors that are larger than their weights and take more than 32 MiB together."""
    found = [_cost(name, layer, posterior, estimator) for layer, name in layers.items()]
    costs = sorted((each for each in found if each.size > each.weight_size), key=lambda each: -each.size)
    size, weight_size = sum(each.size for each in costs), sum(each.weight_size for each in costs)
    if size <= LARGE:
        return
    largest, total = costs[0], f"{_mebibytes(size)} MiB, {size / weight_size:.1f} times"
    if len(costs) == 1:
        taken = f"layer {largest.name!r} take {total} its weight, and {largest.arithmetic}"
    else:
        taken = f"{len(costs)} layers take {total} their weights; the largest, of layer {largest.name!r}, take "
        taken += f"{_mebibytes(largest.size)} MiB, and {largest.arithmetic}"
    warnings.warn(
        f"the covariance factors of {taken}; posterior=None chooses small ones by size, and Kronecker, BlockDiagonal "
        "or LowRank factors take less, too",
        stacklevel=3,
    )


def log_conversion(layers: Iterable[BayesianLayer], norms: int) -> None:
    """Say in the log "mnvi", at level INFO, the families and priors of ``layers``, and the number of ``norms``."""
    layers = list(layers)
    families = Counter(f"{layer.posterior.described()} under {type(layer.prior).__name__}" for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    added = sum(each.numel() for layer in layers for each in layer.posterior.parameters())
    chosen = ", ".join(f"{count} × {family}" for family, count in families.most_common())
    beside = f"; {norms} norms" if norms else ""
    logger.info("to_bayesian: %s; %s numbers beside %s weights%s", chosen, f"{added:,}", f"{weights:,}", beside)


def _cost(name: str, layer: Any, posterior: PosteriorSpec, estimator: str | None) -> _Cost:
    weight: Tensor = layer.weight
    matrix, split, kind = weight.flatten(1), column_split(weight), kinds.kind_of(layer)
    shape = (matrix.shape[0], matrix.shape[1])
    size = posterior.num_parameters(shape, split) * weight.element_size()
    estimator = estimator or kind.bayesian.default_estimator  # type: ignore[union-attr]
    outputs = 1 if estimator == "local" else None
    ratio = posterior.multiply_adds(shape, split, outputs=outputs) / weight.numel()
    if estimator == "local" or weight.dim() == 2:
        times = 1 + ratio / (1 if estimator == "local" else BATCH)
        said = f"a step of {BATCH} examples about {times:,.1f} times the arithmetic of the plain layer"
    else:
        said = f"a step as much arithmetic as the plain layer has for {ratio:,.0f} output positions"
    return _Cost(name, size, weight.numel() * weight.element_size(), said)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"
