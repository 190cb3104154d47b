"""Scores: how much a weight, a row or a column of a Bayesian layer matters; the lowest scores are pruned first.

A score is any callable ``score(layer, groups)`` that returns a number for each weight, in weight's shape, for
``groups="weights"`` and one for each unit, (rows,), (columns,) or (columns, *kernel), otherwise. Rows are output units
or channels, columns input units or channels with all their kernel positions, taps input channels at one kernel position
(in a linear layer the same as columns). In a transposed convolution, whose weight is
(in, out/groups, *kernel), rows are still outputs. In a grouped convolution a column (transposed: a row) is the j-th
channel of every group together.
"""

import torch
from torch import Tensor

from .._checks import one_of
from ..layers import BayesianLayer
from ..priors.group_ard import GroupARDPrior
from ._unit_axes import GROUPS, UNITS, inner_axes


@torch.no_grad()
def signal_to_noise(layer: BayesianLayer, groups: str = "weights") -> Tensor:
    """|M|/√Var for each weight, √(Σ τγ·M² / Σ τγ·Var) over each row, column or tap; M is 0 where pruned.

    τ_i, γ_j are the layer's group-ARD precisions (as of its last ``kl()``), 1 with any other prior: each weight is
    measured by the scale that its prior gives it. Scaling the whole layer changes no score.

    Args:
        layer: a Bayesian layer.
        groups: ``"weights"``, ``"rows"``, ``"columns"`` or ``"taps"``.

    Returns: weight's shape, (rows,), (columns,) or (columns, *kernel). Infinite where a variance has underflowed to 0.

    Raises:
        ValueError: ``groups`` is none of these.

    Source: for single weights, Graves, 'Practical variational inference for neural networks' (2011).
    """
    one_of("groups", groups, GROUPS)
    variance = layer.variance()
    mean = layer.mean_weight().to(variance.dtype)
    if groups == "weights":
        return mean.abs() / variance.sqrt()
    axes = inner_axes(layer, groups)
    log_precision = _log_precision(layer)
    # A factor common to a unit cancels: with the largest at 1 neither sum overflows or vanishes.
    precision = (log_precision - log_precision.amax(axes, keepdim=True)).exp()
    return ((precision * mean.square()).sum(axes) / (precision * variance).sum(axes)).sqrt()


@torch.no_grad()
def prior_scale(layer: BayesianLayer, groups: str) -> Tensor:
    """√(mean of 1/(τγ)) over each row, column or tap, divided by the layer's largest, so in [0, 1]; τ, γ as above.

    The prior standard deviation that the data left to a unit; it goes to 0 for a unit that is not needed. It uses the
    precisions of the layer's last ``kl()``; before the first one all scores are 1.

    Args:
        layer: a Bayesian layer with prior :class:`mnvi.priors.GroupARD`.
        groups: ``"rows"``, ``"columns"`` or ``"taps"``.

    Raises:
        ValueError: another prior or another ``groups``.
    """
    one_of("groups", groups, UNITS)
    if not isinstance(layer.prior, GroupARDPrior):
        raise ValueError(f"prior_scale needs a layer with prior GroupARD(), got {type(layer.prior).__name__}")
    log_variance = -_log_precision(layer)
    # A unit's mean variance differs from its sum by the same factor in every unit of the layer.
    log_sum = log_variance.logsumexp(inner_axes(layer, groups))
    return (0.5 * (log_sum - log_sum.max())).exp()


def _log_precision(layer: BayesianLayer) -> Tensor:
    """log τ_i + log γ_j in weight's shape; zeros where the prior has no such precisions."""
    prior = layer.prior
    if not isinstance(prior, GroupARDPrior):
        return torch.zeros_like(layer.weight)
    log_precision = prior.log_row_precision[:, None] + prior.of_columns(prior.log_column_precision)
    return log_precision.view_as(layer.weight)
