"""The Bernoulli likelihood: yes or no."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._misfits import refuse_entries
from ._temperature import Tempered
from .base import Draws, Summary, first


class Bernoulli(Tempered):
    """p(y = 1 | output) = σ(output/temperature): one logit for each target, which is 0 or 1 (of any type).

    Several logits an example are several independent labels. Entropies are those of every label, shape of the output.

    Example:
        >>> likelihood = mnvi.likelihoods.Bernoulli()
        >>> loss, nll, kl = elbo(likelihood(model(x).squeeze(-1), y), model)
    """

    discrete = True

    def check_support(self, target: Tensor) -> None:
        refuse_entries(target, (target == 0) | (target == 1), "be 0 or 1 everywhere")

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        logits = self._logits(draws)
        return F.logsigmoid(torch.where(target != 0, logits, -logits))

    def summary(self, draws: Draws) -> Summary:
        logits = self._logits(draws)
        yes, no = logits.sigmoid(), (-logits).sigmoid()  # 1 − yes would round
        mean = yes.mean(0)
        total = torch.special.entr(mean) + torch.special.entr(no.mean(0))
        expected = (torch.special.entr(yes) + torch.special.entr(no)).mean(0)
        return mean, yes.var(0, correction=0), total, expected, (total - expected).clamp_min(0)

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.special.entr(mean) + torch.special.entr(1 - mean)

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(self._logits(draws).sigmoid(), generator=generator)

    def _logits(self, draws: Draws) -> Tensor:
        return first(draws) / self.temperature
