"""The Poisson likelihood: counts."""

import torch
from torch import Tensor

from ._misfits import refuse_entries
from .base import Draws, Likelihood, Summary, first


class Poisson(Likelihood):
    """y ~ Poisson(exp(output)): the model returns the logarithm of the rate, one for each count.

    The variance of a prediction is E[rate] + Var[rate]. Entropies are ``None``: a Poisson's has no closed form.

    Example:
        >>> likelihood = mnvi.likelihoods.Poisson()
        >>> loss, nll, kl = elbo(likelihood(model(x), counts), model)
    """

    discrete = True

    def check_support(self, target: Tensor) -> None:
        counts = target if target.is_floating_point() else target.float()
        good = (counts >= 0) & (counts == counts.floor()) & counts.isfinite()
        refuse_entries(target, good, "hold counts 0, 1, 2, …")

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        log_rate = first(draws)
        weighted = torch.where(target > 0, target * log_rate, 0)  # 0 counts of rate 0 are certain, not 0·∞
        return weighted - log_rate.exp() - torch.lgamma(target.to(log_rate) + 1)

    def summary(self, draws: Draws) -> Summary:
        rate = first(draws).exp()
        mean = rate.mean(0)
        return mean, mean + rate.var(0, correction=0), None, None, None

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(first(draws).exp(), generator=generator)
