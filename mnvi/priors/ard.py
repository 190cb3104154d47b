"""Automatic relevance determination: one precision for each weight, its best value put back in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..covariance.triangular import in_transform
from ..posteriors import Posterior
from .base import Prior, PriorModule


@dataclass(frozen=True, eq=False)
class ARD(Prior):
    """W_ij ~ N(0, 1/α_ij) with the best α_ij = 1/(M_ij² + Var_ij) at every call.

    KL = ½ Σ log(M_ij² + Var_ij) − ½ log|Cov|. Source: Rudnev & Kropotov (2019), 'ARD sparsification'.
    """

    def build(self, shape: tuple[int, int], *, device=None, dtype=None) -> "ARDPrior":
        return ARDPrior()


class ARDPrior(PriorModule):
    """The best precisions are a function of the posterior, so nothing is held."""

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        return 0.5 * sum_log_second_moment(mean, posterior.variance()) - posterior.log_volume()


class _SumLogSecondMoment(Function):
    """M, Var ↦ Σ log(M_ij² + Var_ij), in few passes over the matrices."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        second_moment = _second_moment(mean, variance)
        ctx.save_for_backward(mean, variance)
        ctx.second_moment = second_moment
        return second_moment.log().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        mean, variance = ctx.saved_tensors
        second_moment = _second_moment(mean, variance) if torch.is_grad_enabled() else ctx.second_moment
        precision = grad / second_moment
        return mean * precision * 2, precision


def sum_log_second_moment(mean: Tensor, variance: Tensor) -> Tensor:
    """Σ log(M_ij² + Var_ij) over matrices of one shape, a scalar."""
    if in_transform():
        return _second_moment(mean, variance).log().sum()
    return _SumLogSecondMoment.apply(mean, variance)


def _second_moment(mean: Tensor, variance: Tensor) -> Tensor:
    # The smallest normal number keeps the logarithm finite where both terms underflow; it is lost in any other sum.
    return torch.addcmul(variance, mean, mean) + torch.finfo(mean.dtype).tiny
