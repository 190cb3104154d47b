"""The Student t likelihood: real numbers with outliers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import positive_float
from ._location_scale import LocationScale
from .base import Draws, Summary, first


class StudentT(LocationScale):
    """y = output + scale·t, t of Student's distribution with ``df`` degrees of freedom, independent entries.

    log p = log Γ((ν+1)/2) − log Γ(ν/2) − ½ log πν − log scale − (ν+1)/2 · log(1 + z²/ν), z = (y − output)/scale.
    The variance of a prediction is scale²·ν/(ν − 2) + Var[output], infinite for ν ≤ 2. The mixture's entropy has no
    closed form and is ``None``; the expected one has.

    Args:
        df: degrees of freedom ν > 1, known; from about 30 on the noise is nearly normal.
        scale: ``None``: learnt, starting at 1; a positive number or a tensor that broadcasts to the output: known.
        shape: of a learnt scale; ``(k,)`` is one for each of k outputs.

    Example:
        >>> likelihood = mnvi.likelihoods.StudentT(df=4)
        >>> loss, nll, kl = elbo(likelihood(model(x), y), model)
    """

    def __init__(self, df: float = 4.0, scale: float | Tensor | None = None, *, shape: Sequence[int] = ()) -> None:
        if positive_float("df", df) <= 1:
            raise ValueError(f"df must be above 1, or a prediction has no mean; got {df}")
        super().__init__(scale, shape=shape)
        self.df = float(df)

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        nu, log_scale = self.df, self.log_scale_of(draws)
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(math.pi * nu)
        z = (target - first(draws)) * (-log_scale).exp() / math.sqrt(nu)
        # Two ways to log(1 + z²): one is exact where z is small, in the other the square does not overflow.
        tail = torch.where(z.abs() < 1, z.square().log1p(), 2 * torch.hypot(z, torch.ones_like(z)).log())
        return constant - log_scale - (nu + 1) / 2 * tail

    def summary(self, draws: Draws) -> Summary:
        mean, nu = first(draws), self.df
        log_scale = self.log_scale_of(draws).expand(mean.shape[1:])
        ratio = nu / (nu - 2) if nu > 2 else math.inf
        halves = torch.tensor([(nu + 1) / 2, nu / 2], dtype=torch.float64)
        below, above = torch.digamma(halves).diff().item(), torch.lgamma(halves).diff().item()
        entropy = 0.5 * math.log(math.pi * nu) + above - (nu + 1) / 2 * below
        return mean.mean(0), mean.var(0, correction=0) + ratio * (2 * log_scale).exp(), None, log_scale + entropy, None

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        # t = √(ν(u^(−2/ν) − 1))·cos 2πv of uniform u, v: Bailey (1994), doi:10.2307/2153537.
        location, nu = first(draws), self.df
        u, v = torch.rand(2, *location.shape, generator=generator, dtype=location.dtype, device=location.device)
        radius = (nu * torch.expm1(-2 / nu * torch.log1p(-u))).sqrt()
        return location + self.log_scale_of(draws).exp() * radius * (2 * math.pi * v).cos()

    def extra_repr(self) -> str:
        return f"df={self.df:g}, {super().extra_repr()}"
