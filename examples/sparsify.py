"""Sparsify a network on real images: train it with matrix-normal weights, prune it, cut it to a smaller plain network.

    python examples/sparsify.py                                      # handwritten digits, about a minute
    python examples/sparsify.py --data mnist --prior group-ard --groups both --out runs/mnist

Halfway through (--hold) the means that held-out images allow to be pruned are set to zero and held there, so that the
rest of the training adapts to it. At the end what they then allow is pruned for good, the network is cut to what is
left, and that small plain network is trained for a few epochs more (--finetune).

A killed run continues where it was when the same command is given again, to the same result. A finished one can be
pruned more or less without training: give the same command with another --threshold or --tolerance.
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

if not __package__:  # python examples/sparsify.py, where only mnvi is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import mnvi
from examples.common import checkpoints, results
from examples.common.command_line import as_program, check, option, parse
from examples.common.data import Data, hold_out, load
from examples.common.epochs import Batches, Tally, shuffled, train_epochs
from examples.common.networks import build
from examples.common.pruning import finetuned, kept_weights, pruned, search, zero_
from mnvi.sparsity import compact


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = option("digits", "images to classify")
    model: Literal["mlp", "lenet5", "vgg"] = option("mlp", "network")
    posterior: Literal["mn", "diagonal", "mn+diagonal"] = option("mn", "family of the weights' posterior")
    prior: Literal["normal", "ard", "group-ard"] = option("ard", "prior; normal fits one scale to each layer")
    epochs: int = option(100, "passes over the training images", 1)
    batch_size: int = option(None, "training images a step (default: 32 for digits, else 128)", 1)
    lr: float = option(1e-3, "Adam's rate for means and biases", 1e-12)
    log_diagonals: float = option(1.0, "rate of the posterior's log-scales, as a ratio to lr", 1e-12)
    off_diagonals: float = option(0.03, "rate of the posterior's off-diagonals, as a ratio to lr", 1e-12)
    warmup: float = option(0.3, "share of the steps, at the start, in which the weight of the KL rises to 1", 0, 1)
    decay: float = option(0.3, "share of the steps, at the end, in which the rates fall to 0", 0, 1)
    groups: Literal["weights", "rows", "columns", "both"] = option("weights", "what to prune; both: rows, then columns")
    hold: float = option(
        0.5, "share of the epochs after which what can be pruned is held at zero; 1: prune at the end", 0, 1
    )
    hold_tolerance: float = option(
        None, "points of held-out error this may cost (default: 2 for digits, else 1)", 0, 100
    )
    validation: int = option(None, "training images held out (default: 137 for digits, else 5000)", 1)
    limit: int | None = option(None, "train on only the first so many images", 1)
    seed: int = option(0, "of initial weights, noise and the order of the images", 0, 2**32 - 1)
    threads: int = option(None, "CPU threads (default: 1 for digits, else 2)", 1)
    # What follows is used after training.
    threshold: float | None = option(
        None, "prune below this ratio of mean to deviation (default: by held-out images)", 0
    )
    tolerance: float = option(
        None, "points of held-out error pruning may cost (default: 1 for digits, else 0.2)", 0, 100
    )
    finetune: int = option(5, "epochs of plain training of the compact network", 0)
    samples: int = option(32, "draws of the weights for the sampled prediction", 1)
    out: str = option("runs/sparsify", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        check(self, DEFAULTS["digits" if self.data == "digits" else "others"])


DEFAULTS = {
    "digits": {"threads": 1, "batch_size": 32, "validation": 137, "tolerance": 1.0, "hold_tolerance": 2.0},
    "others": {"threads": 2, "batch_size": 128, "validation": 5000, "tolerance": 0.2, "hold_tolerance": 1.0},
}
AFTER_TRAINING = ("threads", "threshold", "tolerance", "finetune", "samples", "out", "restart")
POSTERIORS = {
    "mn": mnvi.posteriors.MatrixNormal(),
    "diagonal": mnvi.posteriors.Diagonal(),
    "mn+diagonal": mnvi.posteriors.MatrixNormalPlusDiagonal(),
}
PRIORS = {"normal": mnvi.priors.Normal(None), "ard": mnvi.priors.ARD(), "group-ard": mnvi.priors.GroupARD()}


def main(argv: list[str] | None = None) -> dict:
    """Run the whole job; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    data, *held = hold_out(load(settings.data), settings.validation, settings.limit)
    folder = checkpoints.prepare(settings.out)

    plain = build(settings.model, data.shape, data.classes)
    options = {"posterior": POSTERIORS[settings.posterior], "prior": PRIORS[settings.prior]}
    layers = partial(mnvi.MNLinear, **options), partial(mnvi.MNConv2d, **options)
    model = build(settings.model, data.shape, data.classes, *layers)
    model.load_state_dict(plain.state_dict(), strict=False)  # both start from the same weights

    progress = train(model, plain, data, held, settings, folder / "checkpoint.pt")
    threshold = settings.threshold
    if threshold is None:
        threshold = search(model, settings.groups, held, settings.tolerance)
    sparse = pruned(model, settings.groups, threshold)
    stages = {"plain network": plain, "mean weights": model, "pruned": sparse, "compacted": compact(sparse)}
    steps = settings.finetune, settings.batch_size, settings.lr, settings.seed
    stages["fine-tuned"] = finetuned(stages["compacted"], data, *steps)
    result = results.describe(asdict(settings), data, progress, threshold, sparse)
    result |= results.measure(stages, data, settings.samples)
    print(results.summary(result, sparse))
    results.write(folder, result, stages)
    print(f"\nin {folder}: result.json, training.png, weights.png, and the smaller network in compact.pt")
    return result


def train(
    model: mnvi.Sequential,
    plain: nn.Module,
    data: Data,
    held: list[Tensor],
    settings: Settings,
    checkpoint: Path,
) -> dict:
    """Train both networks on the same batches, from the checkpoint if there is one; returns history and seconds."""
    num_train = len(data.train_x)
    order = shuffled(num_train, settings.batch_size, settings.seed)
    total = settings.epochs * len(order(0))
    warmup, decay = round(settings.warmup * total), max(1, settings.decay * total)
    elbo = mnvi.ELBO(num_train, mnvi.KLWarmup(warmup) if warmup else 1.0)
    ratios = {"log_diagonals": settings.log_diagonals, "off_diagonals": settings.off_diagonals}
    groups = mnvi.parameter_groups(model, settings.lr, **ratios)
    optimizer = torch.optim.Adam([*groups, {"params": list(plain.parameters()), "lr": settings.lr}], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (total - step) / decay))

    def epoch(i: int, batches: Batches, bar: tqdm) -> dict:
        if i == round(settings.hold * settings.epochs):
            found = search(model, settings.groups, held, settings.hold_tolerance)
            zero_(model, pruned(model, settings.groups, found))
        model.train()
        plain.train()
        tally, kept = Tally(bar), kept_weights(model)  # what is held at zero stays there; nothing is, before
        for batch in batches:
            x, y = data.train_x[batch], data.train_y[batch]
            logits = model(x)
            loss, nll, kl = elbo(F.cross_entropy(logits, y), model)  # nll + weight * model.kl() / num_train
            optimizer.zero_grad()
            (loss + F.cross_entropy(plain(x), y)).backward()  # no parameter is in both networks
            optimizer.step()
            schedule.step()
            for weight, keep in kept.items():
                weight.data.mul_(keep)
            tally.add(loss, nll, kl, logits, y)
        return tally.record(num_train) | results.compare(model, plain, data)

    parts = {"model": model, "plain": plain, "elbo": elbo, "optimiser": optimizer, "schedule": schedule}
    fixed = {name: value for name, value in asdict(settings).items() if name not in AFTER_TRAINING}
    fixed["training images"] = num_train
    return train_epochs(checkpoint, parts, fixed, order, settings.epochs, epoch, restart=settings.restart)


if __name__ == "__main__":
    as_program(main)
