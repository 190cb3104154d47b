"""Quantiles of scores, from which a threshold can be read off."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..layers import BayesianLayer
from ._unit_axes import unit_axis, units_in_use
from .scores import signal_to_noise

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
Quantiles = tuple[float, ...]
GROUPS = ("weights", "rows", "columns")


def scores_left(layer: BayesianLayer) -> dict[str, Tensor]:
    """For each kind of groups the scores of what is not pruned."""
    layer.settle_()
    alive = layer.pruned == 0
    found = {}
    for groups in GROUPS:
        left = alive if groups == "weights" else units_in_use(alive, unit_axis(layer, groups))
        found[groups] = signal_to_noise(layer, groups)[left].cpu()
    return found


def score_quantiles(*scores: Mapping[str, Tensor]) -> dict[str, Quantiles]:
    """For each kind of groups the quantiles of all these scores together, without interpolation; not where none is."""
    found = {}
    for groups in GROUPS:
        parts = [each[groups] for each in scores if groups in each]
        together = torch.cat(parts) if parts else torch.empty(0)
        if n := len(together):  # torch.quantile takes 16 million
            found[groups] = tuple(together.kthvalue(max(1, math.ceil(share * n))).values.item() for share in SHARES)
    return found


def finite_quantiles(quantiles: Mapping[str, Quantiles]) -> dict[str, list[float | None]]:
    """The quantiles for JSON: None for what is not finite."""
    return {
        groups: [value if math.isfinite(value) else None for value in values] for groups, values in quantiles.items()
    }
