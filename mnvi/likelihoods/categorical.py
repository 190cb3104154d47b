"""The categorical likelihood: classes."""

from typing import Any

import torch
from torch import Tensor

from ._misfits import all_of, entries, label_advice, refuse_entries
from ._temperature import Tempered
from .base import Draws, Summary, first

ONE_NUMBER = "for one logit use Bernoulli(), for the mean of a real target Gaussian()"
ONE_EXAMPLE = "a single example x is a batch as x[None]"


class Categorical(Tempered):
    """p(y = c | output) = softmax(output/temperature)_c, with the classes in dimension ``dim`` of the model's output.

    The target is the output without that dimension, class indices of an integer type. An example is one entry of the
    first dimension, so the mean NLL is ``F.cross_entropy(output, target, reduction="sum") / len(target)``: for one
    label an example what F.cross_entropy gives, for images or sequences the sum over their pixels or tokens, as a KL
    divided by the number of images or sequences needs it.

    Args:
        dim: the class dimension; 1 for images (N, C, H, W), as F.cross_entropy has it. The default −1 is for
            (N, C) and (N, T, C), and refuses outputs of more dimensions.
        ignore_index: entries with this target count as not observed: they add nothing to any log-likelihood.

    ``temperature`` is 1 until :meth:`calibrate_`.

    Example:
        >>> likelihood = mnvi.likelihoods.Categorical()
        >>> loss, nll, kl = elbo(likelihood(model(x), y), model)
    """

    discrete = True

    def __init__(self, dim: int = -1, *, ignore_index: int = -100) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("ignore_index", ignore_index)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if dim == 0:
            raise ValueError("dim must not be 0, the dimension of the examples")
        self.dim, self.ignore_index = dim, ignore_index

    def read(self, output: Any) -> Tensor:
        logits = self.tensor(output)
        shape, dims = tuple(logits.shape), logits.dim()
        if dims < 2:
            raise ValueError(f"Categorical takes logits (N, classes), got {shape}; {ONE_NUMBER}; {ONE_EXAMPLE}")
        if self.dim == -1 and dims > 3:
            raise ValueError(f"where are the classes in outputs of shape {shape}? For images use Categorical(dim=1)")
        if not -dims < self.dim < dims:
            raise ValueError(f"Categorical(dim={self.dim}) has no class dimension in outputs of shape {shape}")
        if logits.shape[self.dim] < 2:
            raise ValueError(f"one class only in dimension {self.dim} of {shape}; {ONE_NUMBER}")
        return logits

    def target_shape(self, draws: Draws) -> torch.Size:
        return self._classes_last(first(draws)).shape[1:-1]

    def check_support(self, target: Tensor) -> None:
        _check_type(target)
        index = target.long()
        refuse_entries(target, (index >= 0) | (index == self.ignore_index), "hold labels 0, 1, 2, …")

    def check_values(self, draws: Draws, target: Tensor) -> None:
        _check_type(target)
        classes, index = self._classes_last(first(draws)).shape[-1], target.long()
        seen = index != self.ignore_index
        bad = ((index < 0) | (index >= classes)) & seen
        if not all_of(~bad):
            raise ValueError(
                f"target has label {entries(index, bad)}; the model returns {classes} classes, "
                f"0..{classes - 1}{label_advice(index[seen], classes)}"
            )

    def shape_advice(self, draws: Draws, target: Tensor) -> str:
        if target.shape == first(draws).shape[1:]:
            return f"; of class probabilities or one-hot rows, target.argmax({self.dim}) fits"
        return super().shape_advice(draws, target)

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        log_probs = self._logits(draws).log_softmax(-1)
        unseen = target.long() == self.ignore_index
        index = target.long().masked_fill(unseen, 0).expand(log_probs.shape[:-1])
        return log_probs.gather(-1, index[..., None])[..., 0].masked_fill(unseen, 0.0)

    def summary(self, draws: Draws) -> Summary:
        probs = self._logits(draws).softmax(-1)
        mean = probs.mean(0)
        total = torch.special.entr(mean).sum(-1)
        expected = torch.special.entr(probs).sum(-1).mean(0)
        variance = probs.var(0, correction=0)
        mean, variance = (moment.movedim(-1, self.dim) for moment in (mean, variance))
        return mean, variance, total, expected, (total - expected).clamp_min(0)

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.special.entr(mean).sum(self.dim)

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        probs = self._logits(draws).softmax(-1)
        return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).view(probs.shape[:-1])

    def _logits(self, draws: Draws) -> Tensor:
        """Those that are normalised, with the classes last."""
        return self._classes_last(first(draws)) / self.temperature

    def _classes_last(self, draws: Tensor) -> Tensor:
        return draws.movedim(self.dim + 1 if self.dim > 0 else self.dim, -1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _check_type(target: Tensor) -> None:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        advice = "; whole numbers become them by target.long()" if target.is_floating_point() else ""
        raise TypeError(f"Categorical takes class indices of an integer type as target, got {target.dtype}{advice}")
