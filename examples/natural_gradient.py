"""Natural gradient beside Adam: how many steps, and how many seconds, until −ELBO is low.

    python examples/natural_gradient.py                                # regression: under a minute, needs no data
    python examples/natural_gradient.py --task mnist --out runs/natural_mnist        # half an hour on two cores

regression: linear regression with known noise and ill-conditioned inputs, where the posterior is matrix-normal and the
log evidence has a closed form. Both methods take the same start and the exact gradient, and stop within 0.01 nat of
the evidence. Adam is run at every rate of a grid, with several ratios between the rate of the factors' off-diagonals
and the others, and the fewest steps of all count.

mnist: a network 784-300-100-10. Each method has its own batch size, epochs and schedule. What is compared is −ELBO, the
KL at full weight, on all training images at the end of every epoch; this measurement is not part of the seconds.

A killed training continues where it was when the same command is given again, to the same result. To give one method
other options without training the other again, delete its checkpoint, adam.pt or natural_gradient.pt, first.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import checkpoints
import metrics
import plots
import torch
import torch.nn.functional as F
from command_line import option, parse
from data import Data, hold_out, load
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from networks import build
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import mnvi
from mnvi.optim import NaturalGradient, other_parameters


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    task: Literal["regression", "mnist"] = option("regression", "linear regression, or a network on images")
    natural_lr: float = option(None, "natural gradient's rate of the means (default: 1 for regression, else 0.3)")
    # What follows is for regression.
    seeds: int = option(3, "regression problems")
    steps: int = option(5000, "steps at most")
    # What follows is for images.
    data: Literal["mnist", "fashion_mnist", "digits"] = option("mnist", "images to classify")
    lr: float = option(3e-3, "Adam's rate for means and biases")
    epochs: int = option(50, "Adam's passes over the training images")
    batch_size: int = option(128, "Adam's training images a step")
    warmup: float = option(0.3, "share of Adam's steps, at the start, in which the weight of the KL rises to 1")
    decay: float = option(0.3, "share of Adam's steps, at the end, in which the rates fall to 0")
    covariance_lr: float = option(0.08, "natural gradient's rate of the covariances")
    other_lr: float = option(3e-3, "rate of the biases beside natural gradient, which Adam steps")
    natural_epochs: int = option(25, "natural gradient's passes over the training images")
    natural_batch_size: int = option(512, "natural gradient's training images a step")
    momentum: float = option(0.9, "of natural gradient's means")
    second_moment: float = option(0.99, "rate of the average of natural gradient's squared whitened gradients")
    every: int = option(2, "natural gradient steps the covariances once in so many steps")
    end: float = option(0.15, "what natural gradient's rates are multiplied by, little by little, from start to end")
    fall: float = option(0.7, "share of natural gradient's steps, at the end, in which the rates fall to 0 besides")
    draws: int = option(4, "passes of sampled weights over the training images when −ELBO is measured")
    validation: int = option(None, "training images held out (default: 137 for digits, else 5000)")
    limit: int | None = option(None, "train on only the first so many images")
    seed: int = option(0, "of initial weights, noise and the order of the images")
    # What follows is for both.
    threads: int = option(None, "CPU threads (default: 2 for mnist and fashion_mnist, else 1)")
    out: str = option("runs/natural_gradient", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has checkpoints")

    def __post_init__(self) -> None:
        small = self.task == "regression" or self.data == "digits"
        defaults = {"natural_lr": 1.0 if self.task == "regression" else 0.3}
        defaults |= {"validation": 137 if self.data == "digits" else 5000, "threads": 1 if small else 2}
        for name, (low, high) in LIMITS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults.get(name))
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number from {low:g} to {high:g}, got {value}")


COUNTS = (
    "seeds",
    "steps",
    "epochs",
    "batch_size",
    "natural_epochs",
    "natural_batch_size",
    "every",
    "draws",
    "validation",
)
LIMITS = {
    **dict.fromkeys((*COUNTS, "limit", "threads"), (1, math.inf)),
    **dict.fromkeys(("natural_lr", "lr", "covariance_lr", "other_lr"), (1e-12, math.inf)),
    **dict.fromkeys(("warmup", "decay", "fall"), (0, 1)),
    **{"momentum": (0, 0.9999), "second_moment": (0, 0.9999), "end": (1e-6, 1), "seed": (0, 2**32 - 1)},
}
ADAM, NATURAL = "Adam", "natural gradient"
STYLES: dict[str, dict[str, Any]] = {
    ADAM: {"color": plots.PLAIN, "ls": "--", "lw": 1.8},
    NATURAL: {"color": plots.PRUNED, "ls": "-", "lw": 1.8},
}


def main(argv: list[str] | None = None) -> dict:
    """Run the whole job; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    task = regression if settings.task == "regression" else images
    results, text, draw = task(settings)
    result = {"settings": asdict(settings), "versions": checkpoints.versions(), **results}
    print(text)
    folder = checkpoints.prepare(settings.out)
    checkpoints.write(folder / "natural_gradient.png", lambda path: draw(path, result))
    checkpoints.write_json(folder / "result.json", result)
    print(f"\nin {folder}: result.json, natural_gradient.png")
    return result


# --- regression ---

INPUTS, OUTPUTS, POINTS, NOISE = 8, 3, 200, 0.3
TARGET = 0.01  # nats between −ELBO and −log evidence
RATES = [10 ** (k / 4) for k in (0, 1, -1, 2, -2, -3, -4, -5, -6, -7, -8)]  # the likely ones first: 1, then outwards
RATIOS = (0.03, 0.1, 1.0)  # of the off-diagonals' rate; see mnvi.parameter_groups


def regression(settings: Settings) -> tuple[dict, str, Callable]:
    """Steps of both methods on every problem; the results, a table, and what draws the figure."""
    checkpoints.prepare(settings.out)
    with tqdm(total=settings.seeds * (1 + len(RATES) * len(RATIOS)), unit="run") as bar:
        runs = [solve(seed, settings, bar) for seed in range(settings.seeds)]
    rows, summaries = [f"to {TARGET:g} nat of the log evidence, median and range of {settings.seeds} problems"], {}
    for kind in ("steps", "seconds"):
        values = {name: [run[name][kind] for run in runs] for name in (ADAM, NATURAL)}
        values[f"{ADAM} / {NATURAL}"] = [run["ratio"][kind] for run in runs]
        summaries[kind] = {name: spread(each) for name, each in values.items()}
        for name, row in summaries[kind].items():
            text = "not all arrived" if row is None else "{median:8.3g} ({lowest:.3g} to {highest:.3g})".format(**row)
            rows.append(f"{kind:8} {name:24} {text}")
    return {"summary": summaries, "problems": runs}, "\n".join(rows), regression_figure


def spread(values: list) -> dict | None:
    """Median and range; None where a value is missing."""
    if None in values:
        return None
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def solve(seed: int, settings: Settings, bar: tqdm) -> dict:
    """Natural gradient, and Adam at its best rate, on one problem.

    A "trial" of Adam without "steps" took no fewer than the best before it, or did not arrive at all.
    """
    x, y = problem(seed)
    evidence = log_evidence(x, y)
    gap = partial(gap_to_evidence, x=x, y=y, evidence=evidence)
    natural = descend(seed, gap, lambda layer: NaturalGradient(layer, settings.natural_lr), settings.steps)
    bar.update()
    trials, best = [], None
    for ratio, rate in product(RATIOS, RATES):
        # a trial as long as the best so far cannot win, and ends there
        most = settings.steps if best is None or best["steps"] is None else best["steps"] - 1
        found = descend(seed, gap, partial(adam, lr=rate, ratio=ratio), most)
        trials.append({"lr": rate, "off_diagonals": ratio, "steps": found["steps"]})
        if best is None or found["steps"] is not None:
            best = {"lr": rate, "off_diagonals": ratio, **found}
        bar.update()
    assert best is not None
    ratios = dict.fromkeys(("steps", "seconds"))
    if natural["steps"] and best["steps"]:
        ratios = {kind: best[kind] / natural[kind] for kind in ratios}
    return {"seed": seed, "log_evidence": evidence, NATURAL: natural, ADAM: best, "ratio": ratios, "trials": trials}


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, p) with standard deviations from 1 to 0.03 along rotated axes, and outputs (N, n)."""
    options = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    rotation = torch.linalg.qr(torch.randn(INPUTS, INPUTS, **options)).Q
    x = torch.randn(POINTS, INPUTS, **options) * torch.logspace(0, -1.5, INPUTS, dtype=torch.float64) @ rotation.mT
    weight = torch.randn(OUTPUTS, INPUTS, **options)  # a draw of the prior
    return x, x @ weight.mT + NOISE * torch.randn(POINTS, OUTPUTS, **options)


def log_evidence(x: Tensor, y: Tensor) -> float:
    """log p(Y | X) in nats: every output is N(0, X Xᵀ + s² I)."""
    covariance = x @ x.mT + NOISE**2 * torch.eye(len(x), dtype=x.dtype)
    return torch.distributions.MultivariateNormal(y.new_zeros(len(x)), covariance).log_prob(y.mT).sum().item()


def gap_to_evidence(layer: mnvi.MNLinear, x: Tensor, y: Tensor, evidence: float) -> Tensor:
    """−ELBO + log evidence in nats, ≥ 0: E‖Y − XWᵀ‖² is ‖Y − XMᵀ‖² + tr U · Σ_b x_bᵀV x_b."""
    posterior: Any = layer.posterior
    spread_out = posterior.row.trace() * posterior.column.transpose_norm(x).square().sum()
    squares = (y - x @ layer.weight.mT).square().sum() + spread_out
    nll = 0.5 * squares / NOISE**2 + 0.5 * y.numel() * math.log(2 * math.pi * NOISE**2)
    return nll + layer.kl() + evidence


def descend(seed: int, gap: Callable, make: Callable[..., Optimizer], most: int) -> dict:
    """Up to ``most`` steps until the gap is TARGET: how many steps (None: it did not arrive), seconds, all gaps."""
    torch.manual_seed(seed)
    layer = mnvi.MNLinear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
    optimiser, curve, start = make(layer), [], time.perf_counter()
    while True:
        loss = gap(layer)
        curve.append(float(f"{loss.item():.4g}"))
        arrived = loss.item() <= TARGET
        if arrived or len(curve) > most or not math.isfinite(loss.item()):
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    curve = [value for value in curve if math.isfinite(value)]
    seconds = time.perf_counter() - start if arrived else None
    return {"steps": len(curve) - 1 if arrived else None, "seconds": seconds, "curve": curve}


def adam(model: torch.nn.Module, lr: float, ratio: float = 0.03) -> Adam:
    return Adam(mnvi.parameter_groups(model, lr, off_diagonals=ratio), fused=True)


def regression_figure(path: Path, result: dict) -> None:
    """The gap to the log evidence over the steps, a curve for every problem."""
    fig = Figure(figsize=(7, 4.8), dpi=150, layout="constrained")
    axes = fig.subplots()
    for name, style in STYLES.items():
        row = result["summary"]["steps"][name]
        label = name if row is None else f"{name}: {row['median']:g} steps (median)"
        for run in result["problems"]:
            curve = run[name]["curve"]
            axes.plot(curve, **style, label=label if run is result["problems"][0] else None)
            if run[name]["steps"] is not None:
                axes.plot(run[name]["steps"], curve[-1], "*", color=style["color"], ms=10, zorder=3)
    axes.axhline(TARGET, color="black", ls=":", lw=1.2, label=f"{TARGET:g} nat")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 1.2 * axes.dataLim.x1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("−ELBO + log evidence, nats")
    problems = "problem" if len(result["problems"]) == 1 else "problems"
    axes.set_title(f"Linear regression, {len(result['problems'])} {problems}; Adam at its best rate on each")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, ncols=3)
    fig.savefig(path)


# --- images ---

COMMON = ("data", "draws", "validation", "limit", "seed")
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


def fall(t: float, share: float) -> float:
    """1, and a straight line to 0 over the last ``share`` of t from 0 to 1."""
    return min(1.0, (1 - t) / max(share, 1e-9))


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
    model = build("mlp", data.shape, data.classes, partial(mnvi.MNLinear, prior=mnvi.priors.Normal(None)))
    num_train = len(data.train_x)
    method = make_method(name, model, num_train, settings)
    steps = math.ceil(num_train / method.batch_size)
    total = steps * method.epochs
    schedules = [LambdaLR(each, lambda step: method.factor(step / total)) for each in method.optimisers]
    parts = {"model": model, "elbo": method.elbo}
    parts |= {f"optimiser {k}": each for k, each in enumerate(method.optimisers)}
    parts |= {f"schedule {k}": each for k, each in enumerate(schedules)}

    fixed = {key: getattr(settings, key) for key in (*COMMON, *OWN[name])} | {"training images": num_train}
    checkpoint = folder / f"{name.lower().replace(' ', '_')}.pt"
    if settings.restart:
        checkpoint.unlink(missing_ok=True)
    progress = checkpoints.resume(checkpoint, parts, fixed) or {"history": [], "seconds": 0.0}
    history = progress["history"]
    if history:
        print(f"continuing {checkpoint} at epoch {len(history)} of {method.epochs}; --restart begins anew")
    with tqdm(total=total, initial=steps * len(history), mininterval=0.2) as bar:
        for epoch in range(len(history), method.epochs):
            bar.set_description(f"{name}, epoch {epoch + 1}/{method.epochs}", refresh=False)
            order = torch.Generator().manual_seed(100_000 * settings.seed + epoch)
            start = time.perf_counter()
            batches = torch.randperm(num_train, generator=order).split(method.batch_size)
            train_epoch(model, data, batches, method, schedules, bar)
            progress["seconds"] += time.perf_counter() - start
            history.append({"epoch": epoch + 1, "seconds": progress["seconds"], **measure(model, data, settings.draws)})
            checkpoints.save(checkpoint, parts, fixed, progress)
    return progress


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
    fig.suptitle(f"{result['data']['title']}, MLP, matrix-normal posterior, fitted normal prior", fontsize=13)
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
        label = f"reached at {result['reached'][key]:.4g}"
        axes.plot(result["reached"][key], result["target"], "*", color=plots.PRUNED, ms=13, ls="none", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"natural_gradient.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; give the same command again to continue") from None
