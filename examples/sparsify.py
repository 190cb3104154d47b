"""Sparsify a network on real images: train it with matrix-normal weights, prune it, cut it to a smaller plain network.

    python examples/sparsify.py                                      # handwritten digits, under a minute
    python examples/sparsify.py --data mnist --prior group-ard --groups both --out runs/mnist

A killed run continues where it was when the same command is given again, to the same result. A finished one can be pruned
in another way without training: give the same command with another --groups, --threshold or --tolerance.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import figures
import metrics
import runs
import torch
import torch.nn.functional as F
from command_line import option, parse
from data import Data, load
from networks import build, save_compact
from pruning import THRESHOLDS, choose_threshold, pruned, weights_left
from torch import Tensor, nn
from tqdm import tqdm

import mnvi
from mnvi.sparsity import compact, report


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = option("digits", "images to classify")
    model: Literal["mlp", "lenet5", "vgg"] = option("mlp", "network")
    posterior: Literal["mn", "diagonal", "mn+diagonal"] = option("mn", "family of the weights' posterior")
    prior: Literal["normal", "ard", "group-ard"] = option("ard", "prior; normal fits one scale to each layer")
    epochs: int | None = option(None, "passes over the training images (default: 60 for digits, else 100)")
    batch_size: int | None = option(None, "training images a step (default: 32 for digits, else 128)")
    lr: float = option(1e-3, "Adam's rate for means and biases")
    log_diagonals: float = option(1.0, "rate of the posterior's log-scales, as a ratio to lr")
    off_diagonals: float = option(0.03, "rate of the posterior's off-diagonals, as a ratio to lr")
    warmup: float = option(0.3, "share of the steps, at the start, in which the weight of the KL rises to 1")
    decay: float = option(0.3, "share of the steps, at the end, in which the rates fall to 0")
    validation: int | None = option(None, "training images held out (default: 137 for digits, else 5000)")
    limit: int | None = option(None, "train on only the first so many images")
    seed: int = option(0, "of initial weights, noise and the order of the images")
    threads: int = option(2, "CPU threads")
    # What follows is used after training.
    groups: Literal["weights", "rows", "columns", "both"] = option("weights", "what to prune; both: rows, then columns")
    threshold: float | None = option(None, "prune below this ratio of mean to deviation (default: by held-out images)")
    tolerance: float | None = option(None, "held-out accuracy pruning may cost (default: 1 point for digits, else 0.1)")
    samples: int = option(32, "draws of the weights for the sampled prediction")
    out: str = option("runs/sparsify", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        defaults = DEFAULTS["digits" if self.data == "digits" else "others"]
        for name, (low, high) in LIMITS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults.get(name))
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number from {low:g} to {high:g}, got {value}")


DEFAULTS = {
    "digits": {"epochs": 60, "batch_size": 32, "validation": 137, "tolerance": 1.0},
    "others": {"epochs": 100, "batch_size": 128, "validation": 5000, "tolerance": 0.1},
}
COUNTS = ("epochs", "batch_size", "validation", "limit", "samples", "threads")
LIMITS = {
    **dict.fromkeys(COUNTS, (1, math.inf)),
    **dict.fromkeys(("lr", "log_diagonals", "off_diagonals"), (1e-12, math.inf)),
    **dict.fromkeys(("warmup", "decay"), (0, 1)),
    **{"threshold": (0, math.inf), "tolerance": (0, 100), "seed": (0, 2**32 - 1)},
}
AFTER_TRAINING = ("groups", "threshold", "tolerance", "samples", "out", "restart")
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
    data, held_x, held_y = hold_out(load(settings.data), settings)
    folder = runs.prepare(settings.out)

    plain = build(settings.model, data.shape, data.classes)
    posterior = {"posterior": POSTERIORS[settings.posterior], "prior": PRIORS[settings.prior]}
    bayesian = partial(mnvi.MNLinear, **posterior), partial(mnvi.MNConv2d, **posterior)
    model = build(settings.model, data.shape, data.classes, *bayesian)
    model.load_state_dict(plain.state_dict(), strict=False)  # both start from the same weights

    progress = train(model, plain, data, settings, folder / "checkpoint.pt")

    threshold = settings.threshold
    if threshold is None:
        threshold = choose_threshold(model, settings.groups, held_x, held_y, settings.tolerance)
    sparse = pruned(model, settings.groups, threshold)
    small = compact(sparse)
    result = measure(plain, model, sparse, small, data, settings) | {"threshold": threshold}
...
