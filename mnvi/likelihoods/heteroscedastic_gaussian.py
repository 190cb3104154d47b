"""The heteroscedastic Gaussian likelihood: real numbers with normal noise whose scale the model returns too."""

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import number
from ._location_scale import check_real
from ._temperature import Tempered
from .base import Draws, Summary, described
from .gaussian import normal_entropy, normal_log_density, normal_observe, normal_summary


class HeteroscedasticGaussian(Tempered):
    """y ~ N(mean, temperature²·(exp(log-scale)² + min_scale²)), mean and log-scale from the model.

    ``temperature`` is 1 until :meth:`calibrate_`.

    The model returns them side by side in its last dimension, (N, …, 2k) with k means and then k log-scales, or as a
    pair of tensors. The target has the shape of the means.

    Args:
        log_variance: whether the second part is the logarithm of the variance, twice that of the scale.
        min_scale: in units of the target. The density has no upper bound where a mean meets its target and the scale
            goes to 0, as happens to a row that is far from all others; some scale of the measurement's own bounds it
            (Lakshminarayanan et al., 2017, arXiv:1612.01474, take a variance of 1e-6). The short name
            ``"heteroscedastic_gaussian"`` of :func:`mnvi.fit` has a hundredth of the targets' deviation.

    Example:
        >>> likelihood = mnvi.likelihoods.HeteroscedasticGaussian()
        >>> model = mnvi.Sequential(mnvi.MNLinear(4, 50), nn.ReLU(), mnvi.MNLinear(50, 2))  # one target, y of (N, 1)
        >>> loss, nll, kl = elbo(likelihood(model(x), y), model)
    """

    def __init__(self, *, log_variance: bool = False, min_scale: float = 0.0) -> None:
        super().__init__()
        if not isinstance(log_variance, bool):
            raise TypeError(f"log_variance must be True or False, got {log_variance!r}")
        self.log_variance = log_variance
        self.min_scale = number("min_scale", min_scale, 0)

    def read(self, output: Any) -> tuple[Tensor, Tensor]:
        if isinstance(output, (tuple, list)):
            if len(output) != 2:
                raise ValueError(f"HeteroscedasticGaussian takes a pair (mean, log-scale), got {described(output)}")
            mean, log_scale = (self.tensor(part) for part in output)
        else:
            both = self.tensor(output)
            if both.dim() < 2 or both.shape[-1] % 2 or not both.shape[-1]:
                raise ValueError(
                    "HeteroscedasticGaussian takes k means and k log-scales side by side in the last dimension, "
                    f"(N, …, 2k), or a pair of tensors; got {described(output)}"
                )
            mean, log_scale = both.chunk(2, -1)
        if mean.shape != log_scale.shape:
            raise ValueError(f"means and log-scales must have one shape, got {described((mean, log_scale))}")
        return mean, log_scale

    def check_support(self, target: Tensor) -> None:
        check_real(target)

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        mean, log_scale = self._parts(draws)
        return normal_log_density(target - mean, log_scale)

    def summary(self, draws: Draws) -> Summary:
        return normal_summary(*self._parts(draws))

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor:
        return normal_entropy(variance)

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        return normal_observe(*self._parts(draws), generator)

    def _parts(self, draws: Draws) -> tuple[Tensor, Tensor]:
        mean, log_scale = draws
        log_variance = log_scale if self.log_variance else 2 * log_scale
        if self.min_scale:
            least = torch.full_like(log_variance, 2 * math.log(self.min_scale))
            log_variance = torch.logaddexp(log_variance, least)
        return mean, 0.5 * log_variance + self.temperature.log()

    def extra_repr(self) -> str:
        options = {"log_variance": self.log_variance, "min_scale": self.min_scale}
        return ", ".join(f"{name}={value}" for name, value in options.items() if value)
