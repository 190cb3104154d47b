"""One training of one or several models at given weights of their KLs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .examples import Examples, TensorExamples
from .members import Members

LOG_SCALES = 3.0  # rate of logarithms of scales beside that of means


@dataclass(frozen=True)
class Plan:
    """How a training goes; what a checkpoint must agree with.

    Attributes:
        epochs, batch_size, lr, draws, warmup, seed: as for :func:`mnvi.fit`.
    """

    epochs: int
    batch_size: int
    lr: float
    draws: int
    warmup: float
    seed: int


class Trial:
    """Adam with cosine-annealed rates and a KL whose weight rises over the first steps.

    Args:
        members: what to train.
        weights: of the KL at the end, (K,).
        examples: of which those of ``numbers`` are for training.
    """

    def __init__(self, members: Members, weights: Tensor, examples: Examples, numbers: Tensor, plan: Plan) -> None:
        self.members, self.examples, self.numbers, self.plan = members, examples, numbers, plan
        self.weights = weights.to(members.device)
        self.batch_size = min(plan.batch_size, len(numbers))
        self.steps = plan.epochs * math.ceil(len(numbers) / self.batch_size)
        self.step, self.records = 0, []
        groups = members.groups(plan.lr, LOG_SCALES)
        self.rates = [group["lr"] for group in groups]
        floating = all(p.dtype in (torch.float32, torch.float64) for p in members.parameters.values())
        self.optimizer = torch.optim.Adam(groups, fused=floating)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.records)

    def run_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Take the steps of one epoch; gives (NLL, KL per example) of the members, (K,), after each."""
        for objective in self.members.objectives:
            objective.train()
        own = self.members.count > 1 and isinstance(self.examples, TensorExamples)
        totals = torch.zeros(2, self.members.count, device=self.members.device)
        count = 0
        for batch in self.examples.batches(self._order(own)):
            nll, divergence = self._step(batch.to(self.members.device), own)
            totals += torch.stack([nll, divergence])
            count += 1
            yield nll, divergence
        nll, divergence = (totals / count).cpu()
        _check_finite(nll + divergence, self.epoch + 1)
        self.records.append({"epoch": self.epoch + 1, "nll": nll.tolist(), "kl": divergence.tolist()})

    def _step(self, batch: Any, own: bool) -> tuple[Tensor, Tensor]:
        progress = self.step / self.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        rise = min(1.0, (self.step + 1) / max(1.0, self.plan.warmup * self.steps))
        drawn = [self.members.losses(batch, own) for _ in range(self.plan.draws)]
        nll, divergence = (torch.stack(each).mean(0) for each in zip(*drawn, strict=True))
        divergence = divergence / len(self.numbers)
        self.optimizer.zero_grad()
        (nll + rise * self.weights * divergence).sum().backward()
        self.optimizer.step()
        self.step += 1
        return nll.detach(), divergence.detach()

    def _order(self, own: bool) -> list[Tensor]:
        """The batches of this epoch: a permutation that follows from the seed and the epoch alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.plan.seed + self.epoch)
        size, count = len(self.numbers), self.members.count if own else 1
        orders = torch.stack([self.numbers[torch.randperm(size, generator=generator)] for _ in range(count)])
        return list((orders if own else orders[0]).split(self.batch_size, dim=-1))

    def state(self) -> dict[str, Any]:
        """What is needed to go on after a kill."""
        return {
            "members": self.members.state(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "records": self.records,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Put :meth:`state` back."""
        self.members.load(state["members"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.records = state["step"], state["records"]


def _check_finite(loss: Tensor, epoch: int) -> None:
    if not bool(loss.isfinite().all()):
        which = f" of model {int((~loss.isfinite()).nonzero()[0])}" if len(loss) > 1 else ""
        raise ValueError(
            f"the loss{which} is not finite in epoch {epoch}; look at inputs and targets; a smaller lr may help"
        )
