"""Automatic relevance determination: one precision for each weight, its best value put back in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch.dtypes import Device
from ..linalg.second_moments import sum_log_second_moment
from ..posteriors import Posterior
from .base import Prior, PriorSpec


@dataclass(frozen=True, eq=False)
class ARD(PriorSpec):
    """W_ij ~ N(0, 1/α_ij) with the best α_ij = 1/(M_ij² + Var_ij) at every call.

    KL = ½ Σ log(M_ij² + Var_ij) − ½ log|Cov|. Source: Rudnev & Kropotov (2019), 'ARD sparsification'.
    """

    def build(self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None) -> "ARDPrior":
        return ARDPrior()


class ARDPrior(Prior):
    """The best precisions are a function of the posterior, so nothing is held."""

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        return 0.5 * sum_log_second_moment(mean, posterior.variance()) - posterior.log_volume()
