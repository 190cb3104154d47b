"""Automatic relevance determination: one precision for each weight, its best value put back in."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        # The smallest normal number keeps the logarithm finite where both terms underflow; it is lost in any other sum.
        second_moment = mean.square() + posterior.variance() + torch.finfo(mean.dtype).tiny
        return 0.5 * (second_moment.log().sum() - posterior.log_det())
