"""A likelihood: p(target | output of the model), for training and for prediction in one object."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import positive_float
from ._minimum import minimum
from ._misfits import all_of, rows, shape_advice
from .prediction import Prediction

Draws = Tensor | tuple[Tensor, ...]
Summary = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Likelihood(nn.Module, ABC):
    """An observation model. Its own parameters (a learnt scale) train with the model: give them to the optimiser.

    The first dimension of a target counts **examples**; all other entries of an example are independent given the
    output, and their log densities are summed. Half-precision outputs are taken in float32.

    A new likelihood implements :meth:`log_density`, :meth:`summary` and :meth:`observe`, on draws stacked in front,
    (S, N, …), and :meth:`read` and :meth:`target_shape` where its output is not one tensor of the target's shape. With
    :meth:`mixture_entropy` the predictions of ensembles have an entropy.
    """

    discrete = False  # whether targets are counts or classes, which have no units

    def forward(self, output: Any, target: Tensor) -> Tensor:
        """The mean negative log-likelihood per example, −1/N · Σ_i log p(target_i | output_i), a scalar in nats.

        Args:
            output: what the model returns for N examples.
            target: their targets, shape (N, …).

        Raises:
            ValueError, TypeError: output or target do not fit, before anything is computed.
        """
        draws = over(lambda each: each.unsqueeze(0), self.read(output))
        self.check_target(draws, target)
        return -per_example(self.log_density(draws, target))[0].mean()

    def log_prob(self, outputs: Any, target: Tensor) -> Tensor:
        """log(1/S · Σ_s p(target_i | outputs_si)) for every example, under the mixture over draws.

        Args:
            outputs: outputs of the model stacked over S draws, (S, N, …), or a tuple of such tensors.
            target: shape (N, …).

        Returns:
            Shape (N,), in nats.
        """
        draws = self.read_draws(outputs)
        self.check_target(draws, target)
        log_densities = per_example(self.log_density(draws, target))
        return log_densities.logsumexp(0) - math.log(len(log_densities))

    def sample(self, outputs: Any, *, generator: torch.Generator | None = None) -> Tensor:
        """One observation for every one of the stacked outputs: shape (S, N, …)."""
        return self.observe(self.read_draws(outputs), generator)

    def prediction(self, outputs: Any) -> Prediction:
        """Moments and entropies of the mixture over the stacked outputs."""
        draws = self.read_draws(outputs)
        return Prediction(*self.summary(draws), likelihood=self, draws=draws)

    def widen_(self, factor: float) -> None:
        """Make observations wider by ``factor`` (narrower below 1): a scale, or the temperature of logits, times it.

        Raises:
            TypeError: this likelihood has no such number: its noise is given by the output, or known.
        """
        raise TypeError(f"{self._name()} has no scale or temperature to change")

    @torch.no_grad()
    def calibrate_(self, outputs: Any, target: Tensor, spread: float = 0.3) -> float:
        """Widen by the factor c at which ``target`` is most probable under the mixture of the draws.

        For classes this is temperature scaling (Guo et al., 2017, arXiv:1706.04599) of every draw, for a normal
        likelihood a new estimate of the noise. The data must be held out: the model fits those that it was trained on
        better than others. Few data, or data without a single error, say little about c, and would have it far too
        small; therefore log c ~ N(0, ``spread``²) beforehand, which some hundred examples outweigh.

        Args:
            outputs: as for :meth:`log_prob`, of held-out examples.
            target: their targets.
            spread: standard deviation of log c beforehand, finite and positive.

        Returns:
            c, from 1/8 to 8.

        Raises:
            TypeError: there is nothing to widen.
            ValueError: an output is NaN, or ``target`` does not fit or has probability 0 whatever c is.
        """
        positive_float("spread", spread)
        draws = self.read_draws(outputs)
        copy.deepcopy(self).widen_(1.0)
        _refuse_nan(draws)

        def log_prob(log_factor: float) -> Tensor:
            wider = copy.deepcopy(self)
            wider.widen_(math.exp(log_factor))
            return wider.log_prob(draws, target).double()

        def loss(log_factor: float) -> float:
            return 0.5 * (log_factor / spread) ** 2 - log_prob(log_factor).sum().item()

        best = minimum(loss, -math.log(8), math.log(8))
        if not math.isfinite(loss(best)):
            raise ValueError(
                f"target has no finite density, whatever the factor, at {rows(~log_prob(best).isfinite())}"
            )
        factor = math.exp(best)
        self.widen_(factor)
        return factor

    def read(self, output: Any) -> Draws:
        """What this likelihood needs of a model's output, a tensor or a tuple of tensors (N, …); raises if unfit.

        ``read(read(output))`` is ``read(output)``.
        """
        return self.tensor(output)

    def target_shape(self, draws: Draws) -> torch.Size:
        """The shape of the targets of these draws, (N, …)."""
        return first(draws).shape[1:]

    @abstractmethod
    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        """log p(target | draw) of every entry, shape (S, *target.shape)."""

    @abstractmethod
    def summary(self, draws: Draws) -> Summary:
        """Mean, variance, predictive entropy, expected entropy and mutual information of the mixture."""

    def mixture_entropy(self, mean: Tensor, variance: Tensor) -> Tensor | None:
        """The predictive entropy, as in :meth:`summary`, of a mixture of this mean and variance; None: not known."""
        return None

    @abstractmethod
    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        """One observation for every draw and example, shape (S, *target shape)."""

    def check_support(self, target: Tensor) -> None:
        """Raise for targets that have no density whatever the output is: not finite, no counts, no labels."""

    def check_values(self, draws: Draws, target: Tensor) -> None:
        """Raise for targets of the right shape that have no density under these draws."""
        self.check_support(target)

    @property
    def has_density(self) -> bool:
        """Whether targets have a density (not so for observations without noise)."""
        return True

    def read_draws(self, outputs: Any) -> Draws:
        """:meth:`read` for outputs that are stacked over draws."""
        return torch.func.vmap(self.read)(tuple(outputs) if isinstance(outputs, list) else outputs)

    def check_target(self, draws: Draws, target: Tensor) -> None:
        """Raise for a target that these draws give no density, before anything is computed."""
        if not isinstance(target, Tensor):
            advice = "; torch.as_tensor(target) is one" if hasattr(target, "__array__") else ""
            raise TypeError(f"target must be a tensor, got {described(target)}{advice}")
        expected = self.target_shape(draws)
        if target.shape != expected:
            advice = self.shape_advice(draws, target)
            raise ValueError(
                f"{self._name()} of this output takes a target {tuple(expected)}, got {described(target)}{advice}"
            )
        if not expected[0]:
            raise ValueError("target has no examples")
        if not len(first(draws)):
            raise ValueError(f"outputs has no draws, got {described(first(draws))}")
        self.check_values(draws, target)

    def shape_advice(self, draws: Draws, target: Tensor) -> str:
        """What makes a target of another shape fit, where that can be guessed: the end of an error message."""
        return shape_advice(target, self.target_shape(draws))

    def tensor(self, output: Any) -> Tensor:
        """The one real tensor that ``output`` is, or has as ``logits`` as the outputs of Hugging Face models have."""
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(found, Tensor):
            raise TypeError(f"{self._name()} takes an output that is a tensor or has .logits, got {described(output)}")
        if not found.is_floating_point():
            raise TypeError(f"{self._name()} takes an output of real floating-point numbers, got {found.dtype}")
        if not found.dim():
            raise ValueError(f"{self._name()} takes an output whose first dimension counts examples, got a scalar")
        return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found

    def _name(self) -> str:
        return type(self).__name__


def over(function: Callable[..., Tensor], *draws: Draws) -> Draws:
    """``function`` of tensors, or of the tensors of tuples one by one."""
    if isinstance(draws[0], Tensor):
        return function(*draws)
    return tuple(function(*each) for each in zip(*draws, strict=True))


def first(draws: Draws) -> Tensor:
    """The tensor, or the first of several."""
    return draws if isinstance(draws, Tensor) else draws[0]


def per_example(log_density: Tensor) -> Tensor:
    """Σ over the entries of an example: (S, N, …) to (S, N)."""
    return log_density.flatten(2).sum(-1) if log_density.dim() > 2 else log_density


def _refuse_nan(draws: Draws) -> None:
    """Raise ValueError for outputs that are NaN, with the examples."""
    for each in draws if isinstance(draws, tuple) else (draws,):
        if not all_of(~each.isnan()):
            raise ValueError(f"outputs must be numbers, got NaN at {rows(each.isnan().any(0))}")


def described(value: Any) -> str:
    """What came, in few words, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(described(each) for each in value) or 'nothing'}"
    return f"{value!r} of type {type(value).__name__}" if len(repr(value)) < 80 else type(value).__name__
