"""A prediction: what a likelihood makes of many draws of a model's output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._checks import positive_int

if TYPE_CHECKING:
    from .base import Draws, Likelihood


@dataclass(frozen=True, eq=False)
class Prediction:
    """What :func:`mnvi.predict` returns; entropies in nats. An entropy is ``None`` where the likelihood has none.

    Attributes:
        mean: mean class probabilities, laid out as the model's output; P(y = 1); or the mean of the next observation.
        variance: variance of the probabilities over the posterior; or the variance of the next observation, noise
            included. Shape of ``mean``.
        predictive_entropy: entropy of the mean prediction, total uncertainty. Of classes without the class dimension,
            else the shape of ``mean``. Of a normal likelihood that of a normal distribution with this mean and
            variance, an upper bound of the mixture's entropy, which has no closed form.
        expected_entropy: mean entropy of the single predictions, the noise in the data (aleatoric).
        mutual_information: their difference, what is not known about the weights (epistemic), ≥ 0. ``None`` also of a
            function without noise (``"gaussian"`` without ``noise_scale``), of which it has no finite value.
        target: the targets that came in a DataLoader's batches, in the order of the predictions.
        likelihood: a copy of the observation model, as it was at the prediction.
        draws: what the likelihood read from the model's outputs, stacked over draws (S, N, …), or a tuple of such. Of
            K models with a likelihood each a tuple of (K·S, N, …), the last of which is the number of the draw's model.
    """

    mean: Tensor
    variance: Tensor
    predictive_entropy: Tensor | None
    expected_entropy: Tensor | None
    mutual_information: Tensor | None
    likelihood: Likelihood | None = field(default=None, repr=False)
    draws: Draws | None = field(default=None, repr=False)
    target: Tensor | None = field(default=None, repr=False)
    _target_log_prob: Tensor | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        names = ("mean", "variance", "predictive_entropy", "expected_entropy", "mutual_information", "target", "draws")
        values = {name: getattr(self, name) for name in names}
        return f"Prediction({', '.join(f'{name}: {_shape(value)}' for name, value in values.items())})"

    @property
    def probs(self) -> Tensor:
        """Another name of ``mean``, for probabilities."""
        return self.mean

    @torch.no_grad()
    def log_prob(self, target: Tensor | None = None) -> Tensor:
        """log p(y_i | data) = log(1/S · Σ_s p(y_i | w_s)) of every example i under the mixture of the draws.

        Args:
            target: new targets of the N examples, as the likelihood takes them; ``None`` for those that came in the
                batches of a DataLoader.

        Returns:
            Shape (N,), in nats; its mean is the test log-likelihood.

        Raises:
            ValueError: ``target`` does not fit, or there is none, or the draws were not kept.
        """
        if target is None:
            if self._target_log_prob is not None:
                return self._target_log_prob
            if self.target is None:
                raise ValueError("no targets came with the inputs; give log_prob the targets")
            target = self.target
        likelihood, draws = self._kept()
        return likelihood.log_prob(draws, target)

    @torch.no_grad()
    def sample(self, num_samples: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """New observations of all N examples: for each sample one of the S draws at random, then noise.

        Args:
            num_samples: number of samples.
            generator: random numbers, on the device of the prediction.

        Returns:
            Shape (num_samples, N, …). Examples of one sample share a draw, as one function of the posterior.
        """
        positive_int("num_samples", num_samples)
        likelihood, draws = self._kept()
        first: Any = draws if isinstance(draws, Tensor) else draws[0]
        which = torch.randint(len(first), (num_samples,), generator=generator, device=first.device)
        picked = draws[which] if isinstance(draws, Tensor) else tuple(each[which] for each in draws)
        return likelihood.sample(picked, generator=generator)

    def _kept(self) -> tuple[Likelihood, Draws]:
        if self.likelihood is None or self.draws is None:
            raise ValueError("the draws were not kept; predict with keep_draws=True")
        return self.likelihood, self.draws


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else "None" if value is None else "several tensors"
