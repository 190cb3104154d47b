"""Training of plain networks by Adam: the one that others start from, one that is pruned, what is left of one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.common import metrics
from examples.common.augmentation import transform
from examples.common.data import Data
from examples.common.epochs import Batches, cross_entropy, fall, shuffled, train_epochs

Masks = Mapping[Tensor, Tensor]  # where a parameter is not held at zero, bool


@dataclass(frozen=True)
class Plan:
    """How a plain network is trained; its rate falls to 0 over the last share ``decay`` of the steps."""

    data: str
    epochs: int
    lr: float
    batch_size: int
    seed: int
    decay: float = 0.7
    augment: bool = False
    noise: float = 0.0
    precision: str = "float32"


def train_plain(
    checkpoint: Path,
    network: nn.Module,
    data: Data,
    plan: Plan,
    fixed: Mapping,
    *,
    masks: Callable[[int], Masks] = lambda epoch: {},
    title: str = "",
    restart: bool = False,
) -> dict:
    """Train ``network`` as ``plan`` says, from the checkpoint if there is one; returns history and seconds.

    Args:
        fixed: what the result depends on beside the plan.
        masks: called at the start of every epoch; what its masks leave out is zero through the epoch.
    """
    order, images = (
        shuffled(len(data.train_x), plan.batch_size, plan.seed),
        transform(plan.data, plan.augment, plan.noise),
    )
    optimizer = torch.optim.Adam(network.parameters(), plan.lr, fused=True)
    total = plan.epochs * len(order(0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: fall(step / total, plan.decay))

    def epoch(i: int, batches: Batches, bar: tqdm) -> dict:
        network.train()
        kept, nll, correct = masks(i), 0.0, 0.0
        _mask_(kept)
        for batch in batches:
            y = data.train_y[batch]
            loss, logits = cross_entropy(network, images(data.train_x[batch]), y, plan.precision)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            _mask_(kept)
            nll, correct = nll + loss.item() * len(y), correct + (logits.argmax(1) == y).sum().item()
            bar.update()
        if not math.isfinite(nll):
            raise ValueError(f"the plain network's loss is {nll} in epoch {i + 1}: give a lower --lr than {plan.lr:g}")
        accuracy = metrics.accuracy(metrics.probabilities(network, data.test_x), data.test_y)
        seen = len(data.train_x)
        record = {"nll": nll / seen, "train_accuracy": 100 * correct / seen, "accuracy": accuracy}
        return record | {"left": weights_left(network)}

    parts = {"network": network, "optimiser": optimizer, "schedule": schedule}
    settings = trained_as(plan, fixed, len(data.train_x))
    return train_epochs(checkpoint, parts, settings, order, plan.epochs, epoch, title=title, restart=restart)


def trained_as(plan: Plan, fixed: Mapping, num_train: int) -> dict:
    """What the training of a plain network depends on."""
    return {**asdict(plan), **fixed, "training images": num_train}


@torch.no_grad()
def _mask_(masks: Masks) -> None:
    for weight, keep in masks.items():
        weight.mul_(keep)


def weights_left(network: nn.Module) -> int:
    """How many weights of linear and convolutional layers are not zero."""
    layers = (module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return sum(int(layer.weight.count_nonzero()) for layer in layers)
