"""Independent zero-mean normal weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import positive_float
from .._torch.dtypes import Device
from ..linalg.second_moments import sum_squares
from ..posteriors import Posterior
from .base import GivenPrior, Prior, PriorSpec, expand, finite


@dataclass(frozen=True, eq=False)
class Normal(PriorSpec):
    """W_ij ~ N(0, σ_ij²).

    KL = ½[Σ log σ_ij² + Σ (M_ij² + Var_ij)/σ_ij² − n·p − log|Cov|]. Source: Rudnev & Kropotov (2019), 'KL divergence'.

    Args:
        scale: σ, a positive number, or a tensor that broadcasts to the weight's (n, p) with one σ for each weight;
            ``None`` puts the best single σ² = mean(M² + Var) of the layer back in (empirical Bayes).
    """

    scale: float | Tensor | None = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor):
            finite("scale", self.scale, positive=True)
        elif self.scale is not None:
            positive_float("scale", self.scale)
            if not 1e-18 < self.scale < 1e18:
                raise ValueError(
                    f"scale must lie between 1e-18 and 1e18, whose squares float32 holds; got {self.scale}"
                )

    def build(self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None) -> Prior:
        if self.scale is None:
            return FittedNormalPrior()
        if not isinstance(self.scale, Tensor) or self.scale.dim() == 0:
            return NormalPrior(float(self.scale))
        return ScaledNormalPrior(scale=expand("scale", self.scale, shape).to(dtype=dtype)).to(device)


class NormalPrior(Prior):
    """One σ for all weights of the layer."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        constant = mean.numel() * (math.log(self.scale) - 0.5)
        return (constant - posterior.log_volume()).add(_second_moment(mean, posterior), alpha=0.5 / self.scale**2)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class FittedNormalPrior(Prior):
    """One σ for all weights of the layer, the best one at every call."""

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        size = mean.numel()
        # The smallest normal number for each weight keeps the logarithm finite where all of them underflow.
        second_moment = _second_moment(mean, posterior) + size * torch.finfo(mean.dtype).tiny
        return 0.5 * size * (second_moment.log() - math.log(size)) - posterior.log_volume()


class ScaledNormalPrior(GivenPrior):
    """One σ_ij for each weight, a buffer of shape (n, p)."""

    scale: Tensor

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        quadratic = ((mean.square() + posterior.variance()) / self.scale.square()).sum()
        return 0.5 * (quadratic - mean.numel()) + self.scale.log().sum() - posterior.log_volume()


def _second_moment(mean: Tensor, posterior: Posterior) -> Tensor:  # Σ_ij E[W_ij²]
    return sum_squares(mean) + posterior.total_variance()
