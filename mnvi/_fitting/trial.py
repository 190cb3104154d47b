"""One training of one or several models at given weights of their KLs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import Inputs
from ..objective import why_not_finite
from .balance import Balance
from .examples import Examples
from .members import Members

LOG_SCALES = 10.0  # rate of logarithms of scales beside that of means
LAST = 0.75  # share of the steps after which it is seen whether the scales have settled


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


class NotFinite(ValueError):
    """A loss is not finite."""


class Trial:
    """Adam with cosine-annealed rates and a KL whose weight rises over the first steps.

    Args:
        members: what to train.
        weights: of the KL at the end, one for each member.
        seeds: of the order of each member's examples; members of one seed see the same batches.
        examples: of which those of ``numbers`` are for training.
        tolerant: whether a member's loss may be infinite or NaN as long as another's is not; the others do not notice.
    """

    def __init__(
        self,
        members: Members,
        weights: Sequence[float],
        seeds: Sequence[int],
        examples: Examples,
        numbers: Tensor,
        plan: Plan,
        *,
        tolerant: bool = False,
    ) -> None:
        self.members, self.examples, self.numbers, self.plan = members, examples, numbers, plan
        self.tolerant = tolerant
        self.weights = torch.tensor(weights, device=members.device)
        self.seeds = list(seeds) if examples.may_differ and len(set(seeds)) > 1 else [seeds[0]]
        self.stacked = members.count > 1 and (examples.own or len(self.seeds) > 1)
        self.steps = plan.epochs * len(pieces(numbers, plan.batch_size))
        self.step = 0
        self.records: list[dict[str, Any]] = []
        self.balance = Balance()
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
        totals: Tensor | float = 0.0
        self.members.module.train()
        batches = pieces(self.order(), self.plan.batch_size)
        for numbers, batch in zip(batches, self.examples.batches(batches), strict=True):
            nll, divergence = self._named(numbers, batch.to(self.members.device))
            totals = totals + torch.stack([nll, divergence.to(nll)])
            yield nll, divergence
        nll, divergence = torch.as_tensor(totals / len(batches)).tolist()
        self.records.append({"epoch": self.epoch + 1, "nll": nll, "kl": divergence})

    def _named(self, numbers: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
        """A step; what the likelihood refuses of a Dataset, which cannot be looked at before, is of these examples."""
        try:
            return self._step(batch)
        except NotFinite:
            raise
        except (TypeError, ValueError) as error:
            shown = f"{numbers.flatten()[:32].tolist()}"[1:-1] + (", …" if numbers.numel() > 32 else "")
            raise type(error)(f"epoch {self.epoch + 1}, the batch of examples {shown}: {error}") from error

    def order(self) -> Tensor:
        """The examples' numbers in this epoch's order, (N,) or (K, N): it follows from seed and epoch alone."""
        orders = []
        for seed in self.seeds:
            generator = torch.Generator().manual_seed(1_000_003 * seed + self.epoch)
            orders.append(self.numbers[torch.randperm(len(self.numbers), generator=generator)])
        return torch.stack(orders) if len(orders) > 1 else orders[0]

    def _step(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * annealed(self.step / self.steps)
        drawn = [self.members.losses(batch, self.stacked) for _ in range(self.plan.draws)]
        nll, divergence = (torch.stack(each).mean(0) for each in zip(*drawn, strict=True))
        divergence = divergence / len(self.numbers)
        losses = nll + rise(self.step, self.plan.warmup * self.steps) * self.weights * divergence
        self._check_finite(losses, nll)
        for parameter in self.members.parameters.values():  # zero_grad() takes six times as long
            parameter.grad = None
        losses.sum().backward()
        if self.step >= LAST * self.steps:
            self.balance.add(self.optimizer.param_groups, self.members.count)
        self.optimizer.step()
        self.step += 1
        return nll.detach(), divergence.detach()

    def _check_finite(self, losses: Tensor, nll: Tensor) -> None:
        finite = losses.isfinite()
        if not bool(finite.any() if self.tolerant else finite.all()):
            k = int((~finite).nonzero()[0])
            which = f" of {self.members.count} models, number {k}," if self.members.count > 1 else ""
            why = why_not_finite(losses[k], nll[k], self.members.member(k).model, None)
            raise NotFinite(f"epoch {self.epoch + 1},{which} KL weight {self.weights[k]:g}: {why}")

    def unmet(self) -> list[float]:
        """What share of the KL's pull on the scales the data do not meet at the end, of each member."""
        return self.balance.unmet(self.members, self.weights, len(self.numbers))

    def state(self) -> dict[str, Any]:
        """What is needed to go on after a kill."""
        return {
            "members": self.members.state(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "records": self.records, "balance": self.balance.state(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Put :meth:`state` back."""
        self.members.load(state["members"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.records = state["step"], state["records"]
        self.balance.load(state["balance"])


def annealed(progress: float) -> float:
    """The share of its rate that a parameter has, from 1 at the first step to 0 at the end: half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def rise(step: int, steps: float) -> float:
    """The share of the KL's weight at ``step`` = 0, 1, …: linear up to 1 at the last of so many steps."""
    return min(1.0, (step + 1) / max(1.0, steps))


def pieces(numbers: Tensor, size: int) -> list[Tensor]:
    """Numbers (…, N) in batches of ``size``; a last one of one example, which batch norm refuses, joins the other."""
    found = list(numbers.split(size, -1))
    if size > 1 and len(found) > 1 and found[-1].shape[-1] == 1:
        last = found.pop()
        found[-1] = torch.cat([found[-1], last], -1)
    return found
