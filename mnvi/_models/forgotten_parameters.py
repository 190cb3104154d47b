"""Forgotten parameters: a loss depends on them beside the model's, say a learnt noise, and no optimiser has them."""

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any
from weakref import finalize, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from .._torch.tracing import in_transform
from .bypassed_layers import leaves_of
from .early_optimizers import existing_optimizers, held_parameters


class ForgottenParameters:
    """Warns, once, of parameters beside the model that an optimiser's step of the model has left as they were.

    The first loss says which these are: the likelihood's own, and scalars and vectors that its graph leads to. If it
    leads to a matrix beside the model as well, that is another network, whose parameters are its owner's affair, and
    only the likelihood's count. The first loss after a step of the model says whether they are still the same. The
    losses between cost nothing, and nothing waits for a device.
    """

    def __init__(self) -> None:
        self.done = False
        self.first_step: _FirstStep | None = None
        self.beside: list[Any] = []  # a reference to each parameter beside the model, and its version at the first loss

    def look(self, loss: Tensor, model: nn.Module, own: Iterable[nn.Parameter]) -> None:
        """Look at one loss of a training; ``own`` are parameters that are known to be a likelihood's."""
        if torch.compiler.is_compiling() or self.done or in_transform():
            return
        if self.first_step is None:
            found = _beside(loss, set(model.parameters()), [p for p in own if p.requires_grad])
            self.beside = [(ref(p), p._version) for p in found]
            self.first_step, self.done = _FirstStep(model) if found else None, not found
        elif self.first_step.taken:
            self.done = True
            _warn_of({p for each, version in self.beside if (p := each()) is not None and p._version == version})
        if self.done:
            self.first_step = None

    def __reduce__(self) -> Any:
        return type(self), ()  # a copy looks anew


class _FirstStep:
    """``taken`` is whether an optimiser has stepped a model since this object was made.

    Torch says so after every optimiser's steps, as long as this object lives. The version counters of the parameters
    would not do: fused steps pass them by.
    """

    def __init__(self, model: nn.Module) -> None:
        self.taken = False
        self.parameters = WeakIdKeyDictionary(dict.fromkeys(model.parameters()))
        finalize(self, register_optimizer_step_post_hook(partial(_after_step, ref(self))).remove)


def _after_step(reference: Any, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
    first = reference()
    if first is not None and not first.taken:
        first.taken = any(p in first.parameters for group in optimiser.param_groups for p in group["params"])


def _beside(loss: Tensor, models: set[nn.Parameter], own: list[nn.Parameter]) -> list[nn.Parameter]:
    reached = [p for p in leaves_of([loss]) if isinstance(p, nn.Parameter) and p not in models]
    small = [] if any(p.dim() > 1 for p in reached) else reached
    return [p for p in dict.fromkeys([*own, *small]) if p not in models]


def _warn_of(unchanged: set[nn.Parameter]) -> None:
    left = unchanged.difference(*map(held_parameters, existing_optimizers())) if unchanged else set()
    if left:
        shapes = ", ".join(str(tuple(p.shape)) for p in left)
        warnings.warn(
            f"the loss depends on parameters that no optimiser has, of shape {shapes}, so that they never train (a "
            "learnt noise?); make the optimiser of mnvi.parameter_groups([model, likelihood]), or call "
            "requires_grad_(False) on what is to stay",
            stacklevel=6,
        )
