"""A family of one's own: independent rows, each with a dense covariance, the widest that families.py compares."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from mnvi.posteriors import Posterior, PosteriorSpec
from mnvi.priors import Prior, PriorSpec
from mnvi.priors.ard import ARDPrior
from mnvi.priors.group_ard import GroupARDPrior


@dataclass(frozen=True)
class Rows(PosteriorSpec):
    """Row i of W ~ N(M_i, L_i L_iᵀ) with any lower-triangular L_i: n·p·(p+1)/2 numbers."""

    def build(self, shape: tuple[int, int], *, split=None, device=None, dtype=None) -> "RowsPosterior":
        return RowsPosterior(shape, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split=None) -> int:
        return shape[0] * shape[1] * (shape[1] + 1) // 2


class RowsPosterior(Posterior):
    """L_i has exp(``log_diagonal``_i) on its diagonal and ``strict``_i below it."""

    log_scales = ("log_diagonal",)

    def __init__(self, shape: tuple[int, int], **options: Any) -> None:
        super().__init__(shape)
        self.log_diagonal = nn.Parameter(torch.zeros(shape, **options))
        self.strict = nn.Parameter(torch.zeros(*shape, shape[1], **options))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()
        self.strict.zero_()

    @torch.no_grad()
    def set_covariance_(self, covariance: Tensor) -> None:
        """Give row i the covariance ``covariance``[i], (n, p, p)."""
        factors = torch.linalg.cholesky(covariance)
        self.log_diagonal.copy_(factors.diagonal(dim1=-2, dim2=-1).log())
        self.strict.copy_(factors.tril(-1))

    def draw_noise(self) -> tuple[Tensor]:
        return (torch.randn_like(self.log_diagonal),)

    def deviation(self, noise: tuple[Tensor, ...]) -> Tensor:
        return (self._factors() @ noise[0].unsqueeze(-1)).squeeze(-1)

    def variance(self) -> Tensor:
        return self._factors().square().sum(-1)

    def log_volume(self) -> Tensor:
        return self.log_diagonal.sum()

    def distribution(self, loc: Tensor) -> Distribution:
        return Independent(MultivariateNormal(loc, scale_tril=self._factors()), 1)

    def _factors(self) -> Tensor:
        return self.strict.tril(-1) + self.log_diagonal.exp().diag_embed()


@torch.no_grad()
def best_rows(x: Tensor, y: Tensor, noise: float, spec: PriorSpec, sweeps: int = 2000) -> float:
    """The least −ELBO in nats of the regression y = W x + noise: given the prior's precisions the posterior is exact.

    Each of ``sweeps`` sets the precisions to their best values and then the posterior, so that the bound never rises.
    """
    shape, precision = (y.shape[1], x.shape[1]), noise**-2
    posterior, prior = RowsPosterior(shape, dtype=x.dtype), spec.build(shape, dtype=x.dtype)
    mean = torch.zeros(shape, dtype=x.dtype)
    moments, targets = precision * x.T @ x, precision * y.T @ x
    for _ in range(sweeps):
        factor = torch.linalg.cholesky(moments + _precisions(prior, mean, posterior).diag_embed())
        mean = torch.cholesky_solve(targets.unsqueeze(-1), factor).squeeze(-1)
        posterior.set_covariance_(torch.cholesky_inverse(factor))
    misfit = (y - x @ mean.T).square().sum() + (x @ posterior._factors()).square().sum()
    constant = 0.5 * y.numel() * math.log(2 * math.pi / precision)
    return (constant + 0.5 * precision * misfit + prior.kl(mean, posterior)).item()


def _precisions(prior: Prior, mean: Tensor, posterior: RowsPosterior) -> Tensor:
    """The prior's best precisions, one for each weight."""
    second_moment = mean.square() + posterior.variance()
    if isinstance(prior, GroupARDPrior):
        prior.update(mean, posterior)
        return (prior.log_row_precision.unsqueeze(1) + prior.log_column_precision).exp()
    return 1 / (second_moment if isinstance(prior, ARDPrior) else second_moment.mean().expand_as(mean))
