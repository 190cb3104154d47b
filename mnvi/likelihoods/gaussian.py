"""The Gaussian likelihood: real numbers with normal noise."""

import math

import torch
from torch import Tensor

from ._location_scale import LocationScale
from .base import Draws, Summary, first

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Gaussian(LocationScale):
    """y ~ N(output, scale²), independent entries.

    Args:
        scale: ``None``: one standard deviation for all outputs, learnt, starting at 1; a number or a tensor that
            broadcasts to the output, such as one for each of its columns: known. 0 is the noise-free function, which
            can be predicted but gives no density. Its value tells all about the weights that it depends on, so that
            the mutual information of a prediction has no finite value: it is ``None`` where a scale is 0.
        shape: of a learnt scale; ``(k,)`` is one for each of k outputs.

    Example:
        >>> likelihood = mnvi.likelihoods.Gaussian()
        >>> optimizer = torch.optim.Adam(mnvi.parameter_groups([model, likelihood]))
        >>> loss, nll, kl = elbo(likelihood(model(x), y), model)
        >>> likelihood.scale  # the noise in the data
    """

    may_be_zero = True

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        return normal_log_density(target - first(draws), self.log_scale_of(draws))

    def summary(self, draws: Draws) -> Summary:
        mean = first(draws)
        summary = normal_summary(mean, self.log_scale_of(draws).expand(1, *mean.shape[1:]))
        return summary if self.has_density else (*summary[:4], None)

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor:
        return normal_entropy(variance)

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        return normal_observe(first(draws), self.log_scale_of(draws), generator)


def normal_log_density(deviation: Tensor, log_scale: Tensor) -> Tensor:
    """log N(deviation; 0, exp(log_scale)²), entry by entry."""
    return -0.5 * (deviation * (-log_scale).exp()).square() - log_scale - HALF_LOG_TWO_PI


def normal_entropy(variance: Tensor) -> Tensor:
    """½ log 2πe·variance, the entropy of a normal distribution."""
    return HALF_LOG_TWO_PI + 0.5 + 0.5 * variance.log()


def normal_summary(mean: Tensor, log_scale: Tensor) -> Summary:
    """Moments and entropies of the mixture of N(mean_s, exp(log_scale_s)²); log-scales of shape (1 or S, N, …).

    With w = Var_s[mean_s] and v = E_s[scale_s²], total ½ log 2πe(w + v) less expected E_s[½ log 2πe·scale_s²] is
    ½ log(1 + w/v) + ½(log v − E_s[log scale_s²]), two terms ≥ 0. Logarithms throughout: the squares may overflow.
    """
    log_variances = 2 * log_scale
    deviation = mean - mean[0]
    size = deviation.abs().amax(0)
    relative = deviation / size.where(size > 0, 1.0)
    log_w = 2 * size.log() + relative.var(0, correction=0).log()
    of_weights, log_v = mean.var(0, correction=0), log_variances.logsumexp(0) - math.log(len(log_scale))
    geometric = log_variances.mean(0)
    ratio = torch.where(size > 0, torch.logaddexp(log_w - log_v, torch.zeros_like(log_v)), 0)
    spread = torch.where(geometric.isfinite(), log_v - geometric, 0).clamp_min(0)
    constant = HALF_LOG_TWO_PI + 0.5
    total, expected = constant + 0.5 * torch.logaddexp(log_w, log_v), constant + 0.5 * geometric
    return mean.mean(0), of_weights + log_v.exp(), total, expected, 0.5 * (ratio + spread)


def normal_observe(mean: Tensor, log_scale: Tensor, generator: torch.Generator | None) -> Tensor:
    """A draw of N(mean, exp(log_scale)²), entry by entry."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + log_scale.exp() * noise
