"""Riemannian descent beside gradient descent: a PSD matrix, a Kronecker product, and both at once.

    python -m examples.papers.riemannian --out runs/riemannian  # a minute and a half on one core

The experiments are those of Rudnev, Kropotov & Taskynov (2019), who do not state their losses. Here each fits a target
T of the same structure, f(U) = mean of (U − T)², from an independent start, all factors with standard normal entries.
The plain method is gradient descent on the factors. A Riemannian one takes the same gradients of the same factors, and
differs only in the manifold that the optimiser is told they lie on.

Every method has its best constant step size, found for each seed by the same search (step_sizes.py) and judged by the
loss at the end. Gradient descent on X and Y also depends on how the scale of U = X ⊗ Y is split between them, which U
does not tell: it is run from the normal factors, and from the same U with ‖X‖ = 1. The Riemannian descent is the same
from both.

A killed run leaves nothing behind; give the same command again.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor
from tqdm import tqdm

from examples.common import checkpoints, plots
from examples.common.command_line import as_program, option, parse
from examples.papers.step_sizes import CONVERGED, Search, point
from mnvi.manifolds import CholeskySPD, Euclidean, Kronecker, Manifold, Point, Product, SPDKronecker


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    seeds: int = option(5, "random starts and targets of each experiment")
    trials: int = option(12, "step sizes in each of the two rounds of the search")
    steps: int | None = option(None, "steps of every experiment (default: 200, 500 and 500)")
    threads: int = option(1, "CPU threads")
    out: str = option("runs/riemannian", "folder for the results")

    def __post_init__(self) -> None:
        for name, least in {"seeds": 1, "trials": 2, "steps": 1, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


def psd(a: Tensor, ta: Tensor) -> Tensor:
    """Mean of (U − T)² for U = A Aᵀ."""
    return (a @ a.mT - ta @ ta.mT).square().mean((-2, -1))


def kronecker(x: Point, t: Point) -> Tensor:
    """Mean of (U − T)² for U = X ⊗ Y, without forming U.

    X ⊗ Y − T_X ⊗ T_Y = R ⊗ Y + T_X ⊗ (cY − T_Y), where X = c T_X + R with ⟨R, T_X⟩ = 0, is a sum of orthogonal parts.
    """
    (x, y), (tx, ty) = x, t
    square = dot(tx, tx)
    c = dot(x, tx) / square
    rest, other = x - c * tx, c * y - ty
    total = dot(rest, rest) * dot(y, y) + square * dot(other, other)
    return total[..., 0, 0] / math.prod(x.shape[-2:] + y.shape[-2:])


def psd_kronecker(x: Point, t: Point) -> Tensor:
    """Mean of (U − T)² for U = A Aᵀ ⊗ B Bᵀ."""
    return kronecker(tuple(a @ a.mT for a in x), tuple(a @ a.mT for a in t))


def dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum((-2, -1), keepdim=True)


def unit_norm(x: Point) -> Point:
    """(X/‖X‖, ‖X‖Y): the same U, its scale carried by the second factor alone."""
    norm = dot(x[0], x[0]).sqrt()
    return x[0] / norm, x[1] * norm


@dataclass(frozen=True)
class Method:
    """A curve: the manifold that the factors are said to lie on, and how the start is written as a point of it."""

    manifold: Manifold
    prepare: Callable[[Any], Any]  # of points
    color: str
    line: str


@dataclass(frozen=True)
class Experiment:
    """What is fitted; the last method is the one that the others are compared with."""

    title: str
    shapes: tuple[tuple[int, int], ...]
    steps: int
    loss: Callable[[Any, Any], Tensor]  # of points
    methods: dict[str, Method]


PAIR = Product(Euclidean(), Euclidean())
BOTH = SPDKronecker()
EXPERIMENTS = {
    "psd": Experiment("PSD, 10 × 10", ((10, 10),), 200, psd, {
        "gd": Method(Euclidean(), lambda x: x, plots.PLAIN, "--"),
        "PSD": Method(CholeskySPD(), CholeskySPD().project, plots.PRUNED, "-"),
    }),
    "kronecker": Experiment("Kronecker, 20² × 6²", ((20, 20), (6, 6)), 500, kronecker, {
        "gd": Method(PAIR, lambda x: x, plots.PLAIN, "--"),
        "gd, the same U with ‖X‖ = 1": Method(PAIR, unit_norm, plots.PLAIN, ":"),
        "Kronecker": Method(Kronecker(), lambda x: x, plots.PRUNED, "-"),
    }),
    "psd-kronecker": Experiment("PSD Kronecker, 90² × 10²", ((90, 90), (10, 10)), 500, psd_kronecker, {
        "gd": Method(PAIR, lambda x: x, plots.PLAIN, "--"),
        "PSD": Method(Product(CholeskySPD(), CholeskySPD()), BOTH.project, plots.BAYES, "-."),
        "PSD + Kronecker": Method(BOTH, BOTH.project, plots.PRUNED, "-"),
    }),
}  # fmt: skip
TARGET = 1e-11  # of the Kronecker experiment
LOWEST = 1e-16  # loss that the figure shows


def main(argv: list[str] | None = None) -> dict:
    """Run the whole job; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    folder = checkpoints.prepare(settings.out)
    begin = time.perf_counter()
    runs = sum(len(each.methods) * 2 * (settings.steps or each.steps) for each in EXPERIMENTS.values())
    with tqdm(total=runs, mininterval=0.2, unit="step") as bar:
        results = {name: run(each, settings, bar) for name, each in EXPERIMENTS.items()}
    result = {"settings": asdict(settings), "versions": checkpoints.versions()}
    result |= {"seconds": time.perf_counter() - begin, "experiments": results}
    print(summary(results))
    checkpoints.write(folder / "riemannian.png", lambda path: figure(path, results))
    checkpoints.write_json(folder / "result.json", result)
    print(f"\nin {folder}: result.json, riemannian.png")
    return result


def run(experiment: Experiment, settings: Settings, bar: tqdm) -> dict:
    """Every method on the same starts and targets, one a seed."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(settings.seeds)]
    start, target = (point([draw(shape, draws) for shape in experiment.shapes]) for _ in range(2))
    steps, results, curves = settings.steps or experiment.steps, {}, {}
    for name, method in experiment.methods.items():
        bar.set_description(f"{experiment.title}, {name}", refresh=False)
        search = Search(experiment.loss, method.manifold, method.prepare(start), target, steps, bar)
        curves[name], *rates = search.best(settings.trials)
        results[name] = describe(curves[name], *rates)
    compare(results, curves)
    return {"title": experiment.title, "steps": steps, "methods": results}


def draw(shape: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
    """Standard normal matrices, (seeds, 1, n, p)."""
    return torch.stack([torch.randn(1, *shape, generator=each, dtype=torch.float64) for each in generators])


def describe(curves: Tensor, rates: Tensor, ratios: Tensor) -> dict:
    """Geometric means over the seeds, and how far the seeds lie apart."""
    final = curves[:, -1]
    reached = [(curve > TARGET).sum().item() for curve in curves]
    return {
        "final": final.log().mean().exp().item(),
        "final_spread_factor": final.log().std(correction=0).exp().item(),
        "final_by_seed": final.tolist(),
        "steps_to_1e-11_by_seed": [steps if steps < curves.shape[1] else None for steps in reached],
        "step_size_by_seed": rates.tolist(),
        "step_size_over_polyak_by_seed": ratios.tolist(),
        "curve": [float(f"{value:.4g}") for value in curves.log().mean(0).exp().tolist()],
        "lowest": [float(f"{value:.4g}") for value in curves.amin(0).tolist()],
        "highest": [float(f"{value:.4g}") for value in curves.amax(0).tolist()],
    }


def compare(results: dict, curves: dict[str, Tensor]) -> None:
    """Add how every method stands beside the last one, at the end and when that one reached 1e-11, to ``results``."""
    last = list(curves)[-1]
    reached = (curves[last] > TARGET).sum(-1, keepdim=True)
    for name, curve in curves.items():
        results[name]["final_over_last_method"] = results[name]["final"] / max(results[last]["final"], CONVERGED)
        then = curve.gather(-1, reached.clamp(max=curve.shape[1] - 1)).log().mean().exp().item()
        results[name]["when_last_method_is_at_1e-11"] = then if (reached < curve.shape[1]).all() else None


def summary(results: dict) -> str:
    """The numbers of ``result.json`` as text."""
    rows = []
    for each in results.values():
        rows += ["", f"{each['title']}: loss after {each['steps']} steps, geometric mean (range of the seeds)"]
        for name, row in each["methods"].items():
            final, reached = row["final_by_seed"], row["steps_to_1e-11_by_seed"]
            when = f"1e-11 after {min(reached)} to {max(reached)} steps" if None not in reached else ""
            rows.append(f"  {name:28} {row['final']:8.1e} ({min(final):.1e} to {max(final):.1e}) {when}")
    return "\n".join(rows)


def figure(path: Path, results: dict) -> None:
    """The loss over the steps, one panel an experiment: geometric mean and range of the seeds."""
    fig = Figure(figsize=(13, 5), dpi=150, layout="constrained")
    fig.suptitle("Fitting a target of the same structure: every method at its best step size", fontsize=13)
    panels = fig.subplots(1, len(results))
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        for label, method in EXPERIMENTS[name].methods.items():
            _curve(axes, label, method, result["methods"][label])
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, result["steps"])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_yscale("log")
        axes.set_ylim(bottom=LOWEST)
        axes.set_title(f"{result['title']}, {result['steps']} steps")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    panels[0].set_ylabel("mean of (U − T)²")
    fig.savefig(path)


def _curve(axes: Axes, label: str, method: Method, result: dict) -> None:
    steps = range(len(result["curve"]))
    final = f"{result['final']:.1e}" if result["final"] > LOWEST else f"below {LOWEST:g}"
    axes.fill_between(steps, result["lowest"], result["highest"], color=method.color, alpha=0.15, lw=0)
    axes.plot(steps, result["curve"], method.line, color=method.color, lw=2, label=f"{label}: {final} at the end")


if __name__ == "__main__":
    as_program(main)
