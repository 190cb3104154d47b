"""IVON, a variational Adam (Shen et al., 2024, arXiv:2402.17641), of the package ivon-opt, on networks of all splits.

All its rules act entry by entry, so that one optimizer trains the stacked networks. The learnt noise goes by Adam. Rate
and first Hessian are those with which held-out rows are most probable after half of the steps; they set the noise, too.
"""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from examples.papers.uci_data import Split
from examples.papers.uci_methods import Outcome, Recipe, network
from mnvi.likelihoods import Gaussian, Prediction, Standardized

RATES, HESSIANS = (0.1, 0.01), (1.0, 0.1)  # to choose from
DECAY, BETA2 = 1e-4, 0.9999  # as its authors advise; 1 − BETA2 such that the Hessian is learnt within the steps


def missing() -> str | None:
    """What to do where the package is not installed."""
    found = importlib.util.find_spec("ivon")
    return None if found else "pip install ivon-opt (its package is missing)"


def ivon(splits: Sequence[Split], recipe: Recipe, checkpoint: Path) -> Outcome:
    """Trials of every rate and first Hessian, then the training; nothing is kept of one that is killed."""
    size = len(splits[0].x)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(recipe.seed))
    out, rest = order[: size // 10], order[size // 10 :]
    tried = {}
    for rate, hessian in itertools.product(RATES, HESSIANS):
        trial = Stacked(splits, recipe, rate, hessian, rest)
        trial.run(recipe.epochs(size, 0.5), f"ivon, trial of rate {rate:g}, Hessian {hessian:g}")
        tried[rate, hessian] = trial.judged(out, recipe.draws)
    rate, hessian = max(tried, key=lambda each: sum(density for density, _ in tried[each]))
    final = Stacked(splits, recipe, rate, hessian, torch.arange(size))
    final.run(recipe.epochs(size), f"ivon, rate {rate:g}, Hessian {hessian:g}")
    widening = [factor for _, factor in tried[rate, hessian]]
    predictions = final.predictions([split.test_x for split in splits], recipe.draws, widening)
    return Outcome([[each] for each in predictions], {"rate": rate, "hessian": hessian, "widening": widening})


class Stacked:
    """Networks of all splits with standardized targets, their noise, and their optimizers, at the rows ``rows``."""

    def __init__(self, splits: Sequence[Split], recipe: Recipe, rate: float, hessian: float, rows: Tensor) -> None:
        from ivon import IVON  # type: ignore[import-not-found]

        self.splits, self.recipe, self.rows = splits, recipe, rows
        self.x = torch.stack([split.x for split in splits])
        moments = [(split.y.mean(0), split.y.std(0)) for split in splits]
        self.moments = moments
        self.y = torch.stack([(split.y - mean) / std for split, (mean, std) in zip(splits, moments, strict=True)])
        models = []
        for k in range(len(splits)):
            torch.manual_seed(10_000 * recipe.seed + k)
            models.append(network(self.x.shape[-1], recipe))
        self.skeleton: nn.Module = models[0]
        stacked, _ = stack_module_state(models)
        self.parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}
        self.log_scale = torch.zeros(len(splits), requires_grad=True)
        parameters = [*self.parameters.values()]
        options: dict[str, Any] = {"hess_init": hessian, "beta2": BETA2, "weight_decay": DECAY}
        self.ivon = IVON(parameters, lr=rate, ess=len(rows), **options)
        self.adam = torch.optim.Adam([self.log_scale], lr=recipe.lr)

    def run(self, epochs: int, title: str) -> None:
        """Train, with cosine-annealed rates."""
        size = math.ceil(len(self.rows) / math.ceil(len(self.rows) / self.recipe.batch_size))
        total = epochs * math.ceil(len(self.rows) / size)
        both = (self.ivon, self.adam)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, total) for each in both]
        with tqdm(total=total, desc=title, delay=2) as bar:
            for epoch in range(epochs):
                generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + epoch)
                orders = [self.rows[torch.randperm(len(self.rows), generator=generator)] for _ in self.splits]
                for batch in torch.stack(orders).split(size, 1):
                    self.step(batch)
                    for schedule in schedules:
                        schedule.step()
                    bar.update()

    def step(self, batch: Tensor) -> None:
        """One step at the rows ``batch``, (splits, B)."""
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
        """Of (splits, n, d), (splits, n, 1)."""
        return vmap(lambda parameters, rows: functional_call(self.skeleton, parameters, (rows,)))(self.parameters, x)

    def likelihoods(self) -> list[Standardized]:
        """Of each split, with the noise that was learnt."""
        found = [Standardized(Gaussian(), *moments) for moments in self.moments]
        for each, log_scale in zip(found, self.log_scale.detach(), strict=True):
            each.likelihood.log_scale.data.copy_(log_scale)  # type: ignore[union-attr]
        return found

    @torch.no_grad()
    def drawn(self, inputs: Sequence[Tensor], draws: int) -> Tensor:
        """Outputs of so many draws at each split's inputs, (draws, splits, n, 1)."""
        found = []
        for _ in range(draws):
            with self.ivon.sampled_params():
                found.append(self.outputs(torch.stack([*inputs])))
        return torch.stack(found)

    def judged(self, out: Tensor, draws: int) -> list[tuple[float, float]]:
        """(log density, widening) of each split on the rows ``out``, that did not train."""
        drawn, found = self.drawn([split.x[out] for split in self.splits], draws), []
        for k, likelihood in enumerate(self.likelihoods()):
            factor = likelihood.calibrate_(drawn[:, k], self.splits[k].y[out])
            found.append((likelihood.log_prob(drawn[:, k], self.splits[k].y[out]).mean().item(), factor))
        return found

    def predictions(self, inputs: Sequence[Tensor], draws: int, widening: Sequence[float]) -> list[Prediction]:
        """Of each split, with its noise widened."""
        drawn, found = self.drawn(inputs, draws), []
        for k, (likelihood, factor) in enumerate(zip(self.likelihoods(), widening, strict=True)):
            likelihood.widen_(factor)
            found.append(likelihood.prediction(drawn[:, k]))
        return found
