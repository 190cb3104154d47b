"""What all methods share: how they are trained, and what a trained one is, draws of outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

import mnvi
from mnvi.likelihoods import Likelihood

Draws = Callable[[Tensor], Tensor]  # of inputs (N, …) the outputs (S, N, …) by each draw, such as logits (S, N, C)
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Training:
    """Inputs and targets, those that are held out, and how a network is trained on them by :func:`mnvi.fit`."""

    data: Pair
    held_out: Pair
    epochs: int
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    likelihood: Likelihood | str = "categorical"

    def fit(self, model: nn.Module, **options) -> nn.Module:
        """``model``, trained in place; ``options`` are those of :func:`mnvi.fit`, instead of the fields here."""
        self.history(model, **options)
        return model

    def history(self, model: nn.Module, **options) -> mnvi.History:
        """Train as :meth:`fit` does; what ``mnvi.fit`` returns."""
        fixed = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "seed": self.seed}
        return mnvi.fit(model, self.data, self.likelihood, validation=self.held_out, **{**fixed, **options})


def single(model: nn.Module) -> Draws:
    """The one draw of a network that has no others."""
    return lambda x: model(x)[None]


@torch.no_grad()
def outputs(draws: Draws, x: Tensor, *, seed: int = 0, size: int = 500, bar: tqdm | None = None) -> Tensor:
    """The draws' outputs (S, N, …) at ``x``, ``size`` inputs at a time, so that memory does not grow with N.

    A part has draws of its own: those of two inputs are not of one weight. ``bar`` is moved by every part's length.
    """
    torch.manual_seed(seed)
    found = []
    for part in x.split(size):
        found.append(draws(part))
        if bar is not None:
            bar.update(len(part))
    return torch.cat(found, 1)
