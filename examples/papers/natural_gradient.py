"""Natural gradient beside Adam: how many steps, and how many seconds, until −ELBO is low.

    python -m examples.papers.natural_gradient --out runs/natural-regression  # half a minute, no data
    python -m examples.papers.natural_gradient --task mnist --threads 1 --out runs/natural-mnist  # a quarter of an hour

regression: linear regression with known noise and ill-conditioned inputs, where the posterior is matrix-normal and the
log evidence has a closed form. Both methods take the same start and the exact gradient, and stop within 0.01 nat of
the evidence. Adam is run at every rate of a grid, with several ratios between the rate of the factors' off-diagonals
and the others, and the fewest steps of all count.

mnist: a network 784-300-100-10, or another --model on other --data. Each method has its own batch size, epochs and
schedule. What is compared is −ELBO, the KL at full weight, on all training images at the end of every epoch; this
measurement takes half of the time and is not part of the seconds. The rates are for some thousand steps: a short run,
or one on the few digits, ends with both methods far from converged, or with Adam at the prior (−ELBO log 10).

A killed training continues where it was when the same command is given again, to the same result. To give one method
other options without training the other again, delete its checkpoint, adam.pt or natural_gradient.pt, first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import mnvi
from examples.common import checkpoints, metrics, plots
from examples.common.command_line import as_program, check, option, parse
from examples.common.data import Data, hold_out, load
from examples.common.epochs import Batches, fall, shuffled, train_epochs
from examples.common.families import POSTERIORS, PRIORS
from examples.common.networks import build
from examples.common.results import NAMES
from examples.papers.conjugate_regression import ADAM, NATURAL, STYLES, adam, regression
from mnvi import MNConv2d, MNLinear
from mnvi.optim import NaturalGradient, other_parameters


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    task: Literal["regression", "mnist"] = option("regression", "linear regression, or a network on images")
    natural_lr: float = option(
        None, "natural gradient's rate of the means (default: 1 for regression, else 0.3)", 1e-12
    )
    # What follows is for regression.
    seeds: int = option(3, "regression problems", 1)
    steps: int = option(5000, "steps at most", 1)
    # What follows is for images.
    data: Literal["mnist", "fashion_mnist", "cifar10", "digits"] = option("mnist", "images to classify")
    model: Literal["mlp", "cnn", "lenet5", "vgg"] = option("mlp", "network")
    lr: float = option(3e-3, "Adam's rate for means and biases", 1e-12)
    epochs: int = option(50, "Adam's passes over the training images", 1)
    batch_size: int = option(128, "Adam's training images a step", 1)
    warmup: float = option(0.3, "share of Adam's steps, at the start, in which the weight of the KL rises to 1", 0, 1)
    decay: float = option(0.3, "share of Adam's steps, at the end, in which the rates fall to 0", 0, 1)
    covariance_lr: float = option(0.08, "natural gradient's rate of the covariances", 1e-12)
    other_lr: float = option(3e-3, "rate of the biases beside natural gradient, which Adam steps", 1e-12)
    natural_epochs: int = option(25, "natural gradient's passes over the training images", 1)
    natural_batch_size: int = option(512, "natural gradient's training images a step", 1)
    momentum: float = option(0.9, "of natural gradient's means", 0, 0.9999)
    second_moment: float = option(
        0.99, "rate of the average of natural gradient's squared whitened gradients", 0, 0.9999
    )
    every: int = option(2, "natural gradient steps the covariances once in so many steps", 1)
    end: float = option(
        0.15, "what natural gradient's rates are multiplied by, little by little, from start to end", 1e-6, 1
    )
    fall: float = option(
        0.7, "share of natural gradient's steps, at the end, in which the rates fall to 0 besides", 0, 1
    )
    draws: int = option(4, "passes of sampled weights over the training images when −ELBO is measured", 1)
    validation: int = option(None, "training images held out (default: 137 for digits, else 5000)", 1)
    limit: int | None = option(None, "train on only the first so many images", 1)
    seed: int = option(0, "of initial weights, noise and the order of the images", 0, 2**32 - 1)
    # What follows is for both.
    threads: int = option(None, "CPU threads (default: 1 for digits and regression, else 2)", 1)
    out: str = option("runs/natural_gradient", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has checkpoints")

    def __post_init__(self) -> None:
        small = self.task == "regression" or self.data == "digits"
        defaults = {"natural_lr": 1.0 if self.task == "regression" else 0.3}
        defaults |= {"validation": 137 if self.data == "digits" else 5000, "threads": 1 if small else 2}
        check(self, defaults)


def main(argv: list[str] | None = None) -> dict:
    """Run the whole job; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    checkpoints.prepare(settings.out)
    if settings.task == "regression":
        results, text, draw = regression(settings.seeds, settings.steps, settings.natural_lr)
    else:
        results, text, draw = images(settings)
    result = {"settings": asdict(settings), "versions": checkpoints.versions(), **results}
    print(text)
    folder = checkpoints.prepare(settings.out)
    checkpoints.write(folder / "natural_gradient.png", lambda path: draw(path, result))
    checkpoints.write_json(folder / "result.json", result)
    print(f"\nin {folder}: result.json, natural_gradient.png")
    return result


COMMON = ("data", "model", "draws", "validation", "limit", "seed")
OWN = {
    ADAM: ("lr", "epochs", "batch_size", "warmup", "decay"),
    NATURAL: (
        *("natural_lr", "covariance_lr", "other_lr", "natural_epochs", "natural_batch_size"),
        *("momentum", "second_moment", "every", "end", "fall"),
    ),
}
CHUNK = 5000  # images in memory at once when −ELBO is measured


class Method(NamedTuple):
    """How a network is trained; ``factor`` multiplies the rates when the share t of the steps is done."""

    epochs: int
    batch_size: int
    elbo: mnvi.ELBO
    optimisers: Sequence[Optimizer]
    factor: Callable[[float], float]


def make_method(name: str, model: torch.nn.Module, num_train: int, settings: Settings) -> Method:
    """Adam with KL warm-up, or natural gradient with Adam for the biases."""
    if name == ADAM:
        warmup = round(settings.warmup * settings.epochs * math.ceil(num_train / settings.batch_size))
        elbo = mnvi.ELBO(num_train, mnvi.KLWarmup(warmup) if warmup else 1.0)
        optimisers = [adam(model, settings.lr)]
        return Method(settings.epochs, settings.batch_size, elbo, optimisers, lambda t: fall(t, settings.decay))
    options = {key: getattr(settings, key) for key in ("momentum", "second_moment", "covariance_lr", "every")}
    natural = NaturalGradient(model, settings.natural_lr, num_data=num_train, **options)
    optimisers = [natural, Adam(other_parameters(model), settings.other_lr, fused=True)]
    epochs, batch_size = settings.natural_epochs, settings.natural_batch_size
    elbo = mnvi.ELBO(num_train)
    return Method(epochs, batch_size, elbo, optimisers, lambda t: settings.end**t * fall(t, settings.fall))


def images(settings: Settings) -> tuple[dict, str, Callable]:
    """Train with both methods; the results, a table, and what draws the figure."""
    data, *_ = hold_out(load(settings.data), settings.validation, settings.limit)
    folder = checkpoints.prepare(settings.out)
    methods = {name: train(name, data, settings, folder) for name in (ADAM, NATURAL)}
    target = methods[ADAM]["history"][-1]["neg_elbo"]
    reached = next((row for row in methods[NATURAL]["history"] if row["neg_elbo"] <= target), None)
    result = {
        "data": {"title": data.title, "train": len(data.train_x), "test": len(data.test_x), "shape": list(data.shape)},
        "methods": methods,
        "target": target,
        "reached": reached and {key: reached[key] for key in ("epoch", "seconds")},
    }
    return result, summary(result), images_figure


def train(name: str, data: Data, settings: Settings, folder: Path) -> dict:
    """Train a network, from the checkpoint if there is one; returns history and seconds."""
    torch.manual_seed(settings.seed)
    kinds = (partial(kind, posterior=POSTERIORS["mn"], prior=PRIORS["normal"]) for kind in (MNLinear, MNConv2d))
    model = build(settings.model, data.shape, data.classes, *kinds)
    num_train = len(data.train_x)
    method = make_method(name, model, num_train, settings)
    order = shuffled(num_train, method.batch_size, settings.seed)
    total = method.epochs * len(order(0))
    schedules = [LambdaLR(each, lambda step: method.factor(step / total)) for each in method.optimisers]
    parts = {"model": model, "elbo": method.elbo}
    parts |= {f"optimiser {k}": each for k, each in enumerate(method.optimisers)}
    parts |= {f"schedule {k}": each for k, each in enumerate(schedules)}
    fixed = {key: getattr(settings, key) for key in (*COMMON, *OWN[name])} | {"training images": num_train}
    checkpoint = folder / f"{name.lower().replace(' ', '_')}.pt"

    def epoch(i: int, batches: Batches, bar: tqdm) -> dict:
        train_epoch(model, data, batches, method, schedules, bar)
        return {"epoch": i + 1}

    def measured(seconds: float) -> dict:
        return {"seconds": seconds, **measure(model, data, settings.draws)}

    options = {"title": f"{name}, ", "restart": settings.restart}
    return train_epochs(checkpoint, parts, fixed, order, method.epochs, epoch, measured, **options)


def train_epoch(model, data: Data, batches, method: Method, schedules: list[LambdaLR], bar: tqdm) -> None:
    """One pass over the training images."""
    model.train()
    for step, batch in enumerate(batches):
        logits = model(data.train_x[batch])
        loss, *_ = method.elbo(F.cross_entropy(logits, data.train_y[batch]), model)  # nll + weight * model.kl() / N
        model.zero_grad()
        loss.backward()
        for optimiser, schedule in zip(method.optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        bar.update()
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


@torch.no_grad()
def measure(model: mnvi.Sequential, data: Data, draws: int) -> dict[str, float]:
    """−ELBO in nats per training image, by ``draws`` of the weights for each, and the mean weights' test accuracy."""
    model.train()
    parts = draws * list(zip(data.train_x.split(CHUNK), data.train_y.split(CHUNK), strict=True))
    nll = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in parts) / (draws * len(data.train_x))
    kl = model.kl().item()
    accuracy = metrics.accuracy(metrics.probabilities(model, data.test_x), data.test_y)
    return {"neg_elbo": nll + kl / len(data.train_x), "nll": nll, "kl": kl, "accuracy": accuracy}


def summary(result: dict) -> str:
    """The numbers of ``result`` as text."""
    rows = [f"{'':17} epochs  seconds   −ELBO  test accuracy %"]
    for name, row in result["methods"].items():
        last = row["history"][-1]
        numbers = f"{last['epoch']:6} {last['seconds']:8.1f} {last['neg_elbo']:7.4f} {last['accuracy']:16.2f}"
        rows.append(f"{name:17} {numbers}")
    reached, whole = result["reached"], result["methods"][ADAM]
    if reached is None:
        return "\n".join([*rows, "natural gradient did not reach Adam's final −ELBO"])
    shares = reached["epoch"] / len(whole["history"]), reached["seconds"] / whole["seconds"]
    when = f"epoch {reached['epoch']} and {reached['seconds']:.1f} s, {shares[0]:.2f} and {shares[1]:.2f} of Adam's"
    return "\n".join([*rows, f"natural gradient reached Adam's final −ELBO at {when}"])


def images_figure(path: Path, result: dict) -> None:
    """−ELBO over the epochs and over the seconds of training."""
    fig = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    network = f"{result['data']['title']}, {NAMES[result['settings'].get('model', 'mlp')]}"
    fig.suptitle(f"{network}, matrix-normal posterior, fitted normal prior", fontsize=13)
    panels = fig.subplots(1, 2, sharey=True)
    for axes, (key, label) in zip(panels, {"epoch": "epoch", "seconds": "seconds of training"}.items(), strict=True):
        _curves(axes, key, result)
        axes.set_xlabel(label)
    curves = [[row["neg_elbo"] for row in method["history"]] for method in result["methods"].values()]
    low, high, ends = min(map(min, curves)), max(map(max, curves)), [curve[-1] for curve in curves]
    panels[0].set_ylim(0.93 * low, min(1.05 * high, max(6 * low, 2 * max(ends))))  # the start may be far above
    panels[0].set_ylabel("−ELBO, nats per training image")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.savefig(path)


def _curves(axes: Axes, key: str, result: dict) -> None:
    for name, method in result["methods"].items():
        history = method["history"]
        label = f"{name}: {history[-1]['neg_elbo']:.3f} at the end"
        axes.plot([row[key] for row in history], [row["neg_elbo"] for row in history], **STYLES[name], label=label)
    axes.axhline(result["target"], color="black", ls=":", lw=1.2, label="Adam's final −ELBO")
    if result["reached"]:
        reached = result["reached"][key]
        label = f"reached at epoch {reached}" if key == "epoch" else f"reached after {reached:.0f} s"
        axes.plot(reached, result["target"], "*", color=plots.PRUNED, ms=13, ls="none", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


if __name__ == "__main__":
    as_program(main)
