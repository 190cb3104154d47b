"""Predictions averaged over the posterior, their uncertainty split in two."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checks import one_of, positive_int
from .module import sampling


@dataclass(frozen=True)
class Prediction:
    """What :func:`predict` returns; entropies in nats.

    Attributes:
        mean: mean class probabilities (*, classes), or the predictive mean.
        variance: variance of the probabilities over the posterior, or the predictive variance.
        predictive_entropy: entropy of the mean prediction, total uncertainty. Shape (*,) for classes; for a Gaussian
            likelihood that of a normal distribution with this mean and variance, shape of ``mean``.
        expected_entropy: mean entropy of the single predictions, the noise in the data (aleatoric).
        mutual_information: their difference, what is not known about the weights (epistemic), ≥ 0.
    """

    mean: Tensor
    variance: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor

    @property
    def probs(self) -> Tensor:
        """Another name of ``mean``, for class probabilities."""
        return self.mean


def predict(
    model: nn.Module,
    x: Tensor,
    num_samples: int = 32,
    likelihood: str = "categorical",
    *,
    noise_scale: float | Tensor = 0.0,
    chunk_size: int | None = None,
) -> Prediction:
    """The posterior predictive of ``model`` at ``x``, by ``num_samples`` draws in eval mode, without gradients.

    Args:
        model: returns logits (*, classes) for ``"categorical"``, means for ``"gaussian"``.
        x: what the model takes.
        num_samples: number of draws.
        likelihood: ``"categorical"`` or ``"gaussian"``.
        noise_scale: standard deviation of the observation noise of a Gaussian likelihood, broadcasting to the output;
            with 0 the variance is that of the noise-free function (whose entropy given the weights is −∞).
        chunk_size: draw this many at a time, to bound memory.

    Not thread-safe: the model is in eval mode, and draws, until the call returns. Draws run batched by
    ``torch.func.vmap`` where the model allows it, one after the other where not.

    Example:
        >>> prediction = mnvi.predict(model, x, num_samples=64)
        >>> prediction.mean.argmax(-1), prediction.mutual_information
    """
    positive_int("num_samples", num_samples)
    if chunk_size is not None:
        positive_int("chunk_size", chunk_size)
    one_of("likelihood", likelihood, ("categorical", "gaussian"))
    noise = torch.as_tensor(noise_scale)
    if not bool((torch.isfinite(noise) & (noise >= 0)).all()):
        raise ValueError(f"noise_scale must be finite and at least 0, got {noise_scale}")
    outputs = _draw(model, x, num_samples, chunk_size)
    if likelihood == "categorical":
        return _categorical(outputs.log_softmax(-1))
    if torch.broadcast_shapes(noise.shape, outputs.shape[1:]) != outputs.shape[1:]:
        raise ValueError(f"noise_scale of shape {tuple(noise.shape)} does not fit outputs {tuple(outputs.shape[1:])}")
    return _gaussian(outputs, noise.to(outputs))


def _draw(model: nn.Module, x: Tensor, num_samples: int, chunk_size: int | None) -> Tensor:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), sampling(model):
            return _outputs(model, x, num_samples, chunk_size)
    finally:
        for module, training in modes.items():
            module.training = training


def _outputs(model: nn.Module, x: Tensor, num_samples: int, chunk_size: int | None) -> Tensor:
    index = torch.arange(num_samples, device=x.device)
    try:
        draw = torch.func.vmap(lambda _: model(x), randomness="different", chunk_size=chunk_size)
        outputs = draw(index)
    except (RuntimeError, NotImplementedError, ValueError):
        # Models with, say, data-dependent branches cannot be batched; a mistake of the caller shows again here.
        outputs = torch.stack([model(x) for _ in range(num_samples)])
    return outputs


def _categorical(log_probs: Tensor) -> Prediction:  # (samples, *, classes)
    probs = log_probs.exp()
    mean = probs.mean(0)
    total = torch.special.entr(mean).sum(-1)
    expected = torch.special.entr(probs).sum(-1).mean(0)
    return Prediction(mean, probs.var(0, correction=0), total, expected, (total - expected).clamp_min(0))


def _gaussian(means: Tensor, noise_scale: Tensor) -> Prediction:  # (samples, *)
    of_weights, of_data = means.var(0, correction=0), noise_scale.square()
    expected = (0.5 * (2 * math.pi * math.e * of_data).log()).expand_as(of_weights)
    information = 0.5 * torch.where(of_weights > 0, of_weights / of_data, 0).log1p()
    total = 0.5 * (2 * math.pi * math.e * (of_weights + of_data)).log()
    return Prediction(means.mean(0), of_weights + of_data, total, expected, information)
