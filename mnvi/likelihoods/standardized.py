"""The standardized likelihood: targets in their own units, for a model that works in standardised ones."""

from typing import Any

import torch
from torch import Tensor

from ._location_scale import check_real
from .base import Draws, Likelihood, Summary, described


class Standardized(Likelihood):
    """y = mean + std·u, u under another likelihood: targets and predictions in their own units, outputs not.

    log p(y) = log p(u) − Σ log std. A prediction has mean·std + mean of the targets, variance·std², entropies + log std
    and samples in the units of y; scales of the inner likelihood are in units of ``std``. These are in double precision
    where ``mean`` or ``std`` is, as single precision has few values of targets that vary little around a large mean.

    Args:
        likelihood: of real targets, such as :class:`Gaussian`.
        mean, std: of the training targets, numbers or tensors that broadcast to the targets of one example.

    Example:
        >>> likelihood = mnvi.likelihoods.Standardized(Gaussian(), y_train.mean(0), y_train.std(0))
        >>> loss, nll, kl = elbo(likelihood(model(x), y), model)  # y as it is measured, model(x) around 0
        >>> mnvi.predict(model, x_test, 64, likelihood).mean  # in the units of y
    """

    mean: Tensor
    std: Tensor

    def __init__(self, likelihood: Likelihood, mean: float | Tensor, std: float | Tensor) -> None:
        super().__init__()
        if not isinstance(likelihood, Likelihood) or likelihood.discrete:
            raise TypeError(f"Standardized takes a likelihood of real targets, such as Gaussian(); got {likelihood!r}")
        moments = [torch.as_tensor(value, dtype=_type_of(value)).detach().clone() for value in (mean, std)]
        for name, value in zip(("mean", "std"), moments, strict=True):
            if not bool(value.isfinite().all()) or (name == "std" and not bool((value > 0).all())):
                advice = "; that of one example is NaN, of equal targets 0" if name == "std" else ""
                raise ValueError(f"{name} must be finite{' and positive' * bool(advice)}, got {value}{advice}")
        self.likelihood, self._given = likelihood, moments
        self.register_buffer("mean", moments[0].clone())
        self.register_buffer("std", moments[1].clone())

    def reset_parameters(self) -> None:
        """The mean and deviation that were given."""
        self.mean.copy_(self._given[0])
        self.std.copy_(self._given[1])

    def widen_(self, factor: float) -> None:
        self.likelihood.widen_(factor)

    def read(self, output: Any) -> Draws:
        return self.likelihood.read(output)

    def target_shape(self, draws: Draws) -> torch.Size:
        shape = self.likelihood.target_shape(draws)
        for name, value in (("mean", self.mean), ("std", self.std)):
            fits = all(a in (1, b) for a, b in zip(value.shape[::-1], shape[:0:-1], strict=False))
            if (value.dim() >= len(shape) > 0 and value.dim()) or not fits:
                raise ValueError(f"{name}, {described(value)}, does not fit examples of shape {tuple(shape[1:])}")
        return shape

    @property
    def has_density(self) -> bool:
        return self.likelihood.has_density

    def check_support(self, target: Tensor) -> None:
        check_real(target)
        self.likelihood.check_support(self._inner(target))

    def check_values(self, draws: Draws, target: Tensor) -> None:
        check_real(target)
        self.likelihood.check_values(draws, self._inner(target))

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        return self.likelihood.log_density(draws, self._inner(target)) - self.std.log()

    def summary(self, draws: Draws) -> Summary:
        self.target_shape(draws)
        mean, variance, total, expected, information = self.likelihood.summary(draws)
        center, std = self._moments(mean)
        total, expected = (None if entropy is None else entropy + std.log() for entropy in (total, expected))
        return mean.to(std) * std + center, variance.to(std) * std.square(), total, expected, information

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor | None:
        _, std = self._moments(mean)
        inner = self.likelihood.mixture_entropy(self._inner(mean), variance / std.square())
        return None if inner is None else inner + std.log()

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        self.target_shape(draws)
        inner = self.likelihood.observe(draws, generator)
        center, std = self._moments(inner)
        return inner.to(std) * std + center

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation on the device of ``values``, in the more precise of their types, for what is in units."""
        dtype = torch.promote_types(values.dtype, torch.promote_types(self.mean.dtype, self.std.dtype))
        return self.mean.to(values.device, dtype), self.std.to(values.device, dtype)

    def _inner(self, target: Tensor) -> Tensor:
        return (target - self.mean) / self.std


def _type_of(value: float | Tensor) -> torch.dtype:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.dtype if isinstance(value, Tensor) and floating else torch.get_default_dtype()
