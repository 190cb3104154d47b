"""The evidence lower bound as a loss, and schedules for the weight of its KL."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checks import positive_int
from .module import bayesian_layers, kl


@dataclass(frozen=True)
class KLWarmup:
    """A schedule: the KL's weight rises linearly from 1/``steps`` at the first step to 1 at step ``steps``."""

    steps: int

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The weight at ``step`` = 0, 1, 2, ..."""
        return min(1.0, (step + 1) / self.steps)


class ELBO:
    """Negative evidence lower bound per training example, in nats: loss = NLL + weight·KL/``num_data``.

    Args:
        num_data: number of training examples (of the whole training set, not of a batch).
        kl_weight: a number ≥ 0, or a schedule ``step -> number`` such as :class:`KLWarmup`. ``step`` counts the calls
            on a model in training mode, and is part of ``state_dict()``.

    Example:
        >>> elbo = mnvi.ELBO(num_data=60_000, kl_weight=mnvi.KLWarmup(steps=1_000))
        >>> loss, nll, kl = elbo(F.cross_entropy(model(x), y), model)
    """

    def __init__(self, num_data: int, kl_weight: float | Callable[[int], float] = 1.0) -> None:
        self.num_data = positive_int("num_data", num_data)
        if not callable(kl_weight):
            if isinstance(kl_weight, bool) or not isinstance(kl_weight, (int, float)):
                raise TypeError(f"kl_weight must be a number or a schedule, got {kl_weight!r}")
            if not 0 <= kl_weight < float("inf"):
                raise ValueError(f"kl_weight must be finite and at least 0, got {kl_weight}")
        self.kl_weight = kl_weight
        self.step = 0

    def __call__(self, nll: Tensor, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nll, kl): ``nll`` is the batch's mean negative log-likelihood, kl the whole KL in nats.

        Raises:
            ValueError: ``nll`` is not a scalar, or the loss is not finite (naming the layers whose KL is not).
        """
        if not isinstance(nll, Tensor):
            raise TypeError(f"nll must be a tensor, got {nll!r}")
        if nll.dim() != 0:
            raise ValueError(f"nll must be a scalar, the mean over the batch; got shape {tuple(nll.shape)}")
        weight = self.kl_weight(self.step) if callable(self.kl_weight) else self.kl_weight
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the schedule kl_weight gave {weight} at step {self.step}, not a finite number ≥ 0")
        divergence = kl(model)
        loss = nll + weight * divergence / self.num_data
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(loss)):
            raise ValueError(_why_not_finite(nll, model))
        self.step += model.training
        return loss, nll, divergence

    def state_dict(self) -> dict[str, int]:
        """The step of the schedule."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved step."""
        self.step = int(state["step"])


def _why_not_finite(nll: Tensor, model: nn.Module) -> str:
    bad = [name or "the model" for name, layer in bayesian_layers(model) if not bool(torch.isfinite(layer.kl()))]
    what = f"the KL of {', '.join(bad)}" if bad else f"the negative log-likelihood ({nll.item()})"
    return f"the loss is not finite, because of {what}; a smaller learning rate may help"
