"""IVON, a variational Adam (Shen et al., 2024, arXiv:2402.17641), of the package ivon-opt, on networks of all splits.

All its rules act entry by entry, so that one optimizer trains the stacked networks. The learnt noise goes by Adam.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from examples.papers.uci_choice import Pair, Recipe
from examples.papers.uci_networks import network

DECAY, BETA2 = 1e-4, 0.9999  # as its authors advise; 1 − BETA2 such that the Hessian is learnt within the steps


def missing() -> str | None:
    """What to do where the package is not installed."""
    found = importlib.util.find_spec("ivon")
    return None if found else "pip install ivon-opt (its package is missing)"


@dataclass(frozen=True)
class Ivon:
    """A way to train by IVON.

    Attributes:
        rate: at the start, cosine-annealed.
        hessian: at the start.
    """

    rate: float
    hessian: float

    def __call__(self, pairs: Sequence[Pair], recipe: Recipe, checkpoint: Path) -> "Stacked":
        """Train a network on each pair (inputs, standardized targets); nothing is kept of a killed training."""
        found = Stacked(pairs, recipe, self)
        found.run()
        return found


CANDIDATES = [Ivon(rate, hessian) for rate in (0.1, 0.01) for hessian in (1.0, 0.1)]


class Stacked:
    """Networks with their learnt noise and their optimizers, one on each pair."""

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe, options: Ivon) -> None:
        from ivon import IVON  # type: ignore[import-not-found]

        self.recipe, self.count = recipe, len(pairs)
        self.x, self.y = (torch.stack(each) for each in zip(*pairs, strict=True))
        models = []
        for k in range(len(pairs)):
            torch.manual_seed(10_000 * recipe.seed + k)
            models.append(network(self.x.shape[-1], recipe))
        self.skeleton: nn.Module = models[0]
        stacked, _ = stack_module_state(models)
        self.parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}
        self.log_scale = torch.zeros(len(pairs), requires_grad=True)
        given: dict[str, Any] = {"hess_init": options.hessian, "beta2": BETA2, "weight_decay": DECAY}
        self.ivon = IVON([*self.parameters.values()], lr=options.rate, ess=self.x.shape[1], **given)
        self.adam = torch.optim.Adam([self.log_scale], lr=recipe.lr)

    @property
    def log_scales(self) -> list[float]:
        return self.log_scale.tolist()

    def run(self) -> None:
        """Train, with cosine-annealed rates."""
        size = self.x.shape[1]
        batch, epochs = self.recipe.batch(size), self.recipe.epochs(size)
        total = epochs * math.ceil(size / batch)
        both = (self.ivon, self.adam)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, total) for each in both]
        with tqdm(total=total, desc="ivon", delay=2) as bar:
            for epoch in range(epochs):
                generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + epoch)
                orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(self.count)])
                for numbers in orders.split(batch, 1):
                    self.step(numbers)
                    for schedule in schedules:
                        schedule.step()
                    bar.update()

    def step(self, batch: Tensor) -> None:
        """One step at the rows ``batch``, (networks, B)."""
        which = torch.arange(len(batch))[:, None]
        with self.ivon.sampled_params(train=True):
            self.ivon.zero_grad()
            self.adam.zero_grad()
            deviation = (self.y[which, batch] - self.outputs(self.x[which, batch]))[..., 0]
            nll = 0.5 * (deviation / self.log_scale.exp()[:, None]).square().mean(1) + self.log_scale
            nll.sum().backward()
        self.ivon.step()
        self.adam.step()

    def outputs(self, x: Tensor) -> Tensor:
        """Of (networks, n, d), (networks, n, 1)."""
        return vmap(lambda parameters, rows: functional_call(self.skeleton, parameters, (rows,)))(self.parameters, x)

    @torch.no_grad()
    def drawn(self, inputs: Sequence[Tensor], count: int) -> list[Tensor]:
        """Of each network (count, n, 1)."""
        x, found = torch.stack([*inputs]), []
        for _ in tqdm(range(count), desc="draws", delay=2, leave=False):
            with self.ivon.sampled_params():
                found.append(self.outputs(x))
        return [*torch.stack(found, 1)]
