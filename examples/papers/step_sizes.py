"""The search for the best constant step size of a descent; all trials descend together, as a batch of points."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mnvi.manifolds import Manifold, Point
from mnvi.optim import RiemannianSGD

DECADES = 1.0  # the first round of the search spans so many on each side of Polyak's step
CONVERGED = 1e-20  # losses below are rounding error: there the search prefers the trial that came down first
DIVERGED = 1e6  # times the loss at the start


@dataclass
class Search:
    """Riemannian SGD from one start for each seed, with step sizes on a logarithmic grid.

    Args:
        loss: f(x, target), of the batch's shape.
        manifold: of x.
        start, target: tensors, or tuples of them, of shape (seeds, 1, n, p).
        steps: of every trial.
        bar: told of every step.
    """

    loss: Callable[[Point, Point], Tensor]
    manifold: Manifold
    start: Point
    target: Point
    steps: int
    bar: tqdm

    def best(self, trials: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best trial of each seed: losses (seeds, steps + 1), step size (seeds,) and its ratio to Polyak's.

        ``trials`` step sizes are tried around Polyak's f/‖grad f‖² at the start, and then as many between the
        neighbours of the best of them.
        """
        polyak = self.polyak()
        first = polyak * torch.logspace(-DECADES, DECADES, trials, dtype=torch.float64)
        losses = self.descend(first)
        ratio = 10 ** (2 * DECADES / (trials - 1))  # of neighbours
        around = torch.logspace(-1, 1, trials + 2, base=ratio, dtype=torch.float64)[1:-1]
        second = pick(first, losses)[0].unsqueeze(-1) * around
        losses, rates = torch.cat([losses, self.descend(second)], -1), torch.cat([first, second], -1)
        rate, curve = pick(rates, losses)
        return curve, rate, rate / polyak[:, 0]

    def polyak(self) -> Tensor:
        """f/‖grad f‖² at the start, (seeds, 1)."""
        x = point([each.clone().requires_grad_() for each in tensors(self.start)])
        loss = self.loss(x, self.target)
        grads = torch.autograd.grad(loss.sum(), tensors(x))
        with torch.no_grad():
            gradient = self.manifold.rgrad(x, point(grads))
            return loss / self.manifold.inner(x, gradient, gradient)

    def descend(self, rates: Tensor) -> Tensor:
        """Losses (steps + 1, seeds, trials) with the step sizes ``rates``, (seeds, trials).

        A trial ends early where it has converged, and keeps its loss, or diverged, and has an infinite one.
        """
        x, target = (self.batch(each, rates.shape) for each in (self.start, self.target))
        parts, optimiser = self.optimiser(x)
        running, step_sizes = torch.arange(rates.numel()), rates.flatten()
        losses = torch.full((self.steps + 1, rates.numel()), math.inf, dtype=rates.dtype)
        for step in range(self.steps + 1):
            loss = self.loss(point(parts), point(target))
            losses[step:, running] = loss.detach()
            losses[step:, running[loss > DIVERGED * losses[0, running]]] = math.inf
            going = (losses[step, running] < math.inf) & (loss > CONVERGED)
            if step == self.steps or not going.any():
                self.bar.update(self.steps - step)
                break
            if not going.all():
                running, step_sizes, target = running[going], step_sizes[going], [each[going] for each in target]
                parts, optimiser = self.optimiser([each.detach()[going] for each in parts])
                loss = self.loss(point(parts), point(target))
            optimiser.zero_grad()
            (step_sizes * loss).sum().backward()  # with a rate of 1, SGD on each loss with its own step size
            optimiser.step()
            self.bar.update()
        return losses.unflatten(-1, rates.shape)

    def optimiser(self, x: list[Tensor]) -> tuple[list[torch.nn.Parameter], RiemannianSGD]:
        parts = [torch.nn.Parameter(each) for each in x]
        return parts, RiemannianSGD([{"params": parts, "manifold": self.manifold}], lr=1.0)

    def batch(self, x: Point, shape: torch.Size) -> list[Tensor]:
        """The tensors of a point a seed, (seeds, 1, n, p), once for each trial: (seeds·trials, n, p)."""
        return [each.expand(*shape, -1, -1).flatten(0, 1).clone() for each in tensors(x)]


def pick(rates: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The best trial of each seed: its step size (seeds,) and its losses (seeds, steps + 1)."""
    late = (losses > CONVERGED).sum(0) / len(losses)
    best = torch.where(losses[-1] < CONVERGED, late * CONVERGED, losses[-1]).argmin(-1, keepdim=True)
    return rates.gather(-1, best)[:, 0], losses.gather(-1, best.expand(len(losses), -1, -1))[..., 0].mT


def tensors(x: Point) -> Sequence[Tensor]:
    """The tensors of a point, of which a pair has two."""
    return x if isinstance(x, tuple) else (x,)


def point(parts: Sequence[Tensor]) -> Point:
    return tuple(parts) if len(parts) > 1 else parts[0]
