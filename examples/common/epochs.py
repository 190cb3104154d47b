"""Training by whole epochs, with a checkpoint after each, so that a killed run goes on to the same result."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.common import checkpoints

Batches = Sequence[Tensor]  # the numbers of the training images of every step


def train_epochs(
    checkpoint: Path,
    parts: Mapping[str, Any],
    fixed: dict,
    order: Callable[[int], Batches],
    epochs: int,
    epoch: Callable[[int, Batches, tqdm], dict],
    measure: Callable[[float], dict] = lambda seconds: {},
    *,
    title: str = "",
    restart: bool = False,
) -> dict:
    """Call ``epoch(i, batches, bar)`` for every i below ``epochs`` that no earlier run has done.

    Args:
        checkpoint: file for the state of the ``parts`` and of torch's random numbers.
        parts: whatever has a ``state_dict``: model, optimisers.
        fixed: what a result depends on; a checkpoint of others is refused.
        order: the batches of an epoch; see :func:`shuffled`.
        epoch: takes the steps, moves the bar by one at each, and returns what is to be remembered.
        measure: returns what else is, from the seconds of all epochs; its own time is not counted.
        title: of the bar.
        restart: begin anew where there is a checkpoint.

    Returns:
        ``"history"``, what was returned, in order, and ``"seconds"``, the time that the epochs took.
    """
    if restart:
        checkpoint.unlink(missing_ok=True)
    progress = checkpoints.resume(checkpoint, parts, fixed) or {"history": [], "seconds": 0.0}
    history, steps = progress["history"], len(order(0))
    if history:
        print(f"continuing {checkpoint} at epoch {len(history)} of {epochs}; --restart begins anew")
    with tqdm(total=steps * epochs, initial=steps * len(history), mininterval=0.2) as bar:
        for i in range(len(history), epochs):
            bar.set_description(f"{title}epoch {i + 1}/{epochs}", refresh=False)
            start = time.perf_counter()
            record = epoch(i, order(i), bar)
            progress["seconds"] += time.perf_counter() - start
            history.append(record | measure(progress["seconds"]))
            checkpoints.save(checkpoint, parts, fixed, progress)
    return progress


def shuffled(count: int, batch_size: int, seed: int) -> Callable[[int], Batches]:
    """``count`` examples in batches, in an order of its own for each epoch."""

    def order(epoch: int) -> Batches:
        generator = torch.Generator().manual_seed(100_000 * seed + epoch)
        return torch.randperm(count, generator=generator).split(batch_size)

    return order


class Tally:
    """What an epoch adds up: NLL, KL, accuracy; they are shown in the bar."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.totals, self.seen, self.steps, self.kl = bar, torch.zeros(2), 0, 0, torch.zeros(())

    def add(self, loss: Tensor, nll: Tensor, kl: Tensor, logits: Tensor, y: Tensor) -> None:
        """The numbers of one step, and the bar one further."""
        self.seen, self.kl = self.seen + len(y), kl.detach()
        self.totals = self.totals.to(nll.device) + torch.stack([nll.detach() * len(y), (logits.argmax(1) == y).sum()])
        self.bar.update()
        if self.steps % 20 == 0:
            accuracy = f"{100 * self.totals[1].item() / self.seen:.1f} %"
            self.bar.set_postfix_str(f"loss {loss.item():.3f}, KL {kl.item():,.0f}, accuracy {accuracy}", refresh=False)
        self.steps += 1

    def record(self, num_train: int) -> dict[str, float]:
        """Means over the epoch, and the last KL, in nats; accuracy in percent."""
        nll, correct = (self.totals / self.seen).tolist()
        kl = self.kl.item()
        return {"nll": nll, "kl": kl, "neg_elbo": nll + kl / num_train, "train_accuracy": 100 * correct}


def cross_entropy(
    network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy and the logits of a training step, whose products are of this precision."""
    narrow = precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=narrow):
        logits = network(x).float()
    return F.cross_entropy(logits, y), logits


def fall(t: float, share: float) -> float:
    """1, and a straight line to 0 over the last ``share`` of t from 0 to 1."""
    return min(1.0, (1 - t) / max(share, 1e-9))
