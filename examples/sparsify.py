"""Sparsify a network on real images: train it with matrix-normal weights, prune it, cut it to a smaller plain network.

    python examples/sparsify.py                                      # handwritten digits, about a minute
    python examples/sparsify.py --data mnist --prior group-ard --groups both --out runs/mnist
    python examples/sparsify.py --data cifar10 --model vgg --augment --threads 1 --out runs/vgg
    python examples/sparsify.py --data mnist --method magnitude --left 2500 --out runs/mnist-magnitude

A plain network is trained first, once for all runs with the same images (--plain keeps it). The Bayesian one has the
same initial weights, or goes on from the trained ones (--start plain). Halfway through (--hold) the means that held-out
images allow to be pruned are set to zero and held there, so that the rest of the training adapts to it. At the end
what they then allow is pruned for good, the network is cut to what is left, and that small plain network is trained for
a few epochs more (--finetune), in which zeros stay zeros. --method magnitude is what one would do without any of this:
the trained plain network goes on for as many epochs while its smallest weights (or units, --groups rows) are pruned.

A killed run continues where it was when the same command is given again, to the same result. A finished one can be
pruned more or less without training: give the same command with another --threshold or --tolerance.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

if not __package__:  # python examples/sparsify.py, where only mnvi is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.common import checkpoints, command_line, pruning, results, sparse
from examples.common.command_line import as_program, check, option, parse
from examples.common.data import hold_out, load
from examples.common.memory import keep_memory


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = option("digits", "images to classify")
    model: Literal["mlp", "cnn", "lenet5", "vgg"] = option("mlp", "network")
    width: int = option(1, "times the units of every hidden layer", 1)
    batch_norm: bool = option(False, "a batch norm after every hidden layer")
    augment: bool = option(False, "move training images by some pixels, and mirror what may be mirrored")
    noise: float = option(None, "of training images, in standard deviations (default: 0.3 for digits, else none)", 0)
    method: Literal["bayes", "magnitude"] = option("bayes", "how to prune")
    left: int | None = option(None, "weights that --method magnitude leaves", 1)
    posterior: Literal["mn", "diagonal", "mn+diagonal", "scaled", "corrected"] = option(
        "mn", "family of the weights' posterior"
    )
    prior: Literal["normal", "ard", "group-ard", "channel-ard", "hierarchical"] = option(
        "ard",
        "prior; normal fits one scale to each layer, channel-ard has one precision for a channel's kernel positions, "
        "hierarchical precisions of units and of weights",
    )
    estimator: Literal["weight", "flipout", "local"] = option("weight", "what convolutions draw in training")
    plain_epochs: int = option(None, "of the plain network (default: 60 for digits, else 30)", 1)
    start: Literal["scratch", "plain"] = option(
        None, "initial means: as those of the plain network were, or are now (default: plain for digits, else scratch)"
    )
    epochs: int = option(None, "passes over the training images (default: 60 for digits, else 100)", 1)
    batch_size: int = option(None, "training images a step (default: 32 for digits, else 128)", 1)
    lr: float = option(2e-3, "Adam's rate for means and biases, and for plain networks", 1e-12)
    log_diagonals: float = option(0.3, "rate of the posterior's log-scales, as a ratio to lr", 1e-12)
    off_diagonals: float = option(0.03, "rate of the posterior's off-diagonals, as a ratio to lr", 1e-12)
    kl_weight: float = option(None, "of the KL (default: 0.1 for digits, which are few, else 1)", 1e-6, 100)
    warmup: float = option(0.3, "share of the steps, at the start, in which the KL's weight rises to that", 0, 1)
    decay: float = option(0.5, "share of the steps, at the end, in which the rates fall to 0", 0, 1)
    groups: Literal["weights", "rows", "columns", "taps", "both"] = option(
        "weights", "what to prune; taps: input channels at one kernel position; both: rows, then columns"
    )
    hold: float = option(
        0.5, "share of the epochs after which what can be pruned is held at zero; 1: prune at the end", 0, 1
    )
    hold_tolerance: float = option(1.0, "points of held-out error this may cost", 0, 100)
    units: str = option("", "or hold all but so many units of each hidden layer, such as 5,10,16")
    validation: int = option(None, "training images held out (default: 137 for digits, else 5000)", 1)
    limit: int | None = option(None, "train on only the first so many images", 1)
    seed: int = option(0, "of initial weights, noise and the order of the images", 0, 2**32 - 1)
    precision: Literal["float32", "bfloat16"] = option("float32", "of products in training; bfloat16 may be faster")
    device: str = option("cpu", "where to train, such as cuda")
    threads: int = option(None, "CPU threads (default: 1 for digits, else 2)", 1, 1024)
    # What follows is used after training.
    threshold: float | None = option(
        None, "prune below this ratio of mean to deviation (default: by held-out images)", 0
    )
    tolerance: float = option(
        None, "points of held-out error pruning may cost (default: 0.5 for digits, else 0.2)", 0, 100
    )
    finetune: int = option(10, "epochs of plain training of the compact network", 0)
    samples: int = option(32, "draws of the weights for the sampled prediction", 1)
    plain: str = option("runs/plain", "folder in which trained plain networks are kept")
    out: str = option("runs/sparsify", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        check(self, DEFAULTS["digits" if self.data == "digits" else "others"])
        command_line.device(self.device)
        if (self.left is None) == (self.method == "magnitude"):
            raise ValueError("--left belongs to --method magnitude, which needs it")
        magnitude, last = self.method == "magnitude", round(self.hold * self.epochs) >= self.epochs
        if magnitude and self.groups not in ("weights", "rows"):
            raise ValueError(f"--method magnitude prunes weights or rows, got groups {self.groups}")
        if magnitude and self.epochs + self.finetune < 2:
            raise ValueError("--method magnitude prunes from epoch to epoch: epochs + finetune must be at least 2")
        if pruning.unit_counts(self.units) and (magnitude or (last and self.epochs > 1)):
            raise ValueError("units are held from --hold on while a Bayesian network trains; there is no such epoch")


DEFAULTS = {
    "digits": {
        **{"threads": 1, "kl_weight": 0.1, "batch_size": 32, "plain_epochs": 60, "epochs": 60, "validation": 137},
        **{"noise": 0.3, "start": "plain", "tolerance": 0.5},
    },
    "others": {
        **{"threads": 2, "kl_weight": 1.0, "batch_size": 128, "plain_epochs": 30, "epochs": 100, "validation": 5000},
        **{"noise": 0.0, "start": "scratch", "tolerance": 0.2},
    },
}


def main(argv: list[str] | None = None) -> dict:
    """Run the whole job; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    keep_memory()
    data, *held = hold_out(load(settings.data).to(torch.device(settings.device)), settings.validation, settings.limit)
    with checkpoints.alone(settings.out) as folder:
        sparse.check_folder(data, settings, folder)
        plain = sparse.plain_network(data, settings)
        method = sparse.by_magnitude if settings.method == "magnitude" else sparse.by_posterior
        run = method(plain, data, held, settings, folder)
        result = results.describe(asdict(settings), data, run) | results.measure(run, data, held, settings.samples)
        print(results.summary(result, run.stages["pruned"]))
        results.write(folder, result, run.stages)
    print(f"\nin {folder}: result.json, training.png, weights.png, and the smaller network in compact.pt")
    return result


if __name__ == "__main__":
    as_program(main)
