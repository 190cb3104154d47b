"""Riemannian descent against plain gradient descent: a PSD matrix, a Kronecker product, a Kronecker product of two PSD.

    python examples/riemannian.py --out runs/riemannian              # about two minutes

Each experiment fits a target T of the same structure, f(U) = mean of (U − T)², from an independent random start. All
factors have standard normal entries. The plain method is gradient descent on the factors; a Riemannian one takes the
same gradients of the same factors and differs only in the manifold that torch-like SGD is told they lie on. Every
method gets its best constant step size, found for each seed by the same search: trials on a logarithmic grid around
Polyak's step at the start, f/‖grad f‖², then as many between the neighbours of the best of them, judged by the loss at
the end. The experiments are those of Rudnev, Kropotov & Taskynov (2019), who do not state the losses.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import checkpoints
import plots
import torch
from command_line import option, parse
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from mnvi.manifolds import CholeskySPD, Euclidean, Kronecker, Manifold, Product, SPDKronecker
from mnvi.manifolds.base import Point, tensors
from mnvi.optim import RiemannianSGD


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    seeds: int = option(5, "random starts and targets of each experiment")
    trials: int = option(8, "step sizes in each of the two rounds of the search")
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
    return total[..., 0, 0] / (x[0, 0].numel() * y[0, 0].numel())


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
    prepare: Callable[[Point], Point]
    color: str
    line: str


@dataclass(frozen=True)
class Experiment:
    """What is fitted; the last method is the one that the others are compared with."""

    title: str
    shapes: tuple[tuple[int, int], ...]
    steps: int
    loss: Callable[[Point, Point], Tensor]
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
DECADES = 1.0  # the first round of the search spans so many on each side of Polyak's step
CONVERGED = 1e-20  # losses below are rounding error: there the search prefers the trial that came down first
DIVERGED = 1e6  # times the loss at the start


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
    (start, target) = (tuple(draw(shape, draws) for shape in experiment.shapes) for _ in range(2))
    target = target if len(target) > 1 else target[0]
    start = start if len(start) > 1 else start[0]
    steps, results = settings.steps or experiment.steps, {}
    for name, method in experiment.methods.items():
        bar.set_description(f"{experiment.title}, {name}", refresh=False)
        search = Search(experiment, method.manifold, method.prepare(start), target, steps, bar)
        results[name] = describe(*search.best(settings.trials))
    last = list(results.values())[-1]
    for each in results.values():
        each["final_over_last_method"] = each["final"] / max(last["final"], CONVERGED)
    return {"title": experiment.title, "steps": steps, "methods": results}


def draw(shape: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
    """Standard normal matrices, (seeds, 1, n, p)."""
    return torch.stack([torch.randn(1, *shape, generator=each, dtype=torch.float64) for each in generators])


@dataclass
class Search:
    """The search for a method's best step size; all seeds and step sizes descend together, as a batch of points."""

    experiment: Experiment
    manifold: Manifold
    start: Point
    target: Point
    steps: int
    bar: tqdm

    def best(self, trials: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each seed the losses (seeds, steps + 1), step size (seeds,), and its ratio to Polyak's step."""
        polyak = self.polyak()
        first = polyak * torch.logspace(-DECADES, DECADES, trials, dtype=torch.float64)
        losses = self.descend(first)
        ratio = 10 ** (2 * DECADES / (trials - 1))  # of neighbours
        around = torch.logspace(-1, 1, trials + 2, base=ratio, dtype=torch.float64)[1:-1]
        second = pick(first, losses)[0].unsqueeze(-1) * around
        losses, rates = torch.cat([losses, self.descend(second)], -1), torch.cat([first, second], -1)
        rate, curve = pick(rates, losses)
        return curve, rate, rate / polyak[:, 0]

    def polyak(self) -> Tensor:
        """f/‖grad f‖² at the start, (seeds, 1)."""
        parts = [each.clone().requires_grad_() for each in tensors(self.start)]
        x = tuple(parts) if len(parts) > 1 else parts[0]
        loss = self.experiment.loss(x, self.target)
        grads = torch.autograd.grad(loss.sum(), parts)
        with torch.no_grad():
            gradient = self.manifold.rgrad(x, grads if len(parts) > 1 else grads[0])
            return loss / self.manifold.inner(x, gradient, gradient)

    def descend(self, rates: Tensor) -> Tensor:
        """Losses (steps + 1, seeds, trials) with the step sizes ``rates``, (seeds, trials); infinite once diverged."""
        start = [each.expand(*rates.shape, -1, -1).clone() for each in tensors(self.start)]
        parts = [torch.nn.Parameter(each.clone()) for each in start]
        x = tuple(parts) if len(parts) > 1 else parts[0]
        # SGD with rate 1 on Σ rate·f is SGD on each f with its own rate.
        optimiser = RiemannianSGD([{"params": parts, "manifold": self.manifold}], lr=1.0)
        alive, losses = torch.ones_like(rates, dtype=torch.bool), []
        for step in range(self.steps + 1):
            loss = self.experiment.loss(x, self.target)
            losses.append(loss.detach())
            alive &= losses[-1] < DIVERGED * losses[0]
            for part, first in zip(parts, start, strict=True):
                part.data[~alive] = first[~alive]
            if step < self.steps:
                optimiser.zero_grad()
                (rates * loss)[alive].sum().backward()
                optimiser.step()
                self.bar.update()
        return torch.stack(losses).masked_fill(~alive, math.inf)


def pick(rates: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The best trial of each seed: its step size (seeds,) and its losses (seeds, steps + 1)."""
    late = (losses > CONVERGED).sum(0) / len(losses)
    best = torch.where(losses[-1] < CONVERGED, late * CONVERGED, losses[-1]).argmin(-1, keepdim=True)
    return rates.gather(-1, best)[:, 0], losses.gather(-1, best.expand(len(losses), -1, -1))[..., 0].mT


def describe(curves: Tensor, rates: Tensor, ratios: Tensor) -> dict:
    """Geometric means over the seeds, and how far the seeds lie apart."""
    final = curves[:, -1]
    reached = [(curve > 1e-11).sum().item() for curve in curves]
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


def summary(results: dict) -> str:
    """The numbers of ``result.json`` as text."""
    rows = []
    for each in results.values():
        rows += ["", f"{each['title']}: loss after {each['steps']} steps, geometric mean (lowest to highest of the seeds)"]
        for name, row in each["methods"].items():
            final, reached = row["final_by_seed"], row["steps_to_1e-11_by_seed"]
            when = f"1e-11 after {min(reached)} to {max(reached)} steps" if None not in reached else ""
            rows.append(f"  {name:28} {row['final']:8.1e} ({min(final):.1e} to {max(final):.1e}) {when}")
    return "\n".join(rows)


def figure(path: Path, results: dict) -> None:
    """The loss over the steps, one panel an experiment: geometric mean and range of the seeds."""
    fig = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    fig.suptitle("Gradient descent and Riemannian descent, each at its best step size", fontsize=13)
    for axes, (name, result) in zip(fig.subplots(1, len(results)), results.items(), strict=True):
        for label, method in EXPERIMENTS[name].methods.items():
            _curve(axes, label, method, result["methods"][label])
        axes.set_yscale("log")
        axes.set_ylim(1e-16, None)
        axes.set_title(result["title"])
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
        axes.set_ylabel("mean of (U − T)²")
    fig.savefig(path)


def _curve(axes: Axes, label: str, method: Method, result: dict) -> None:
    steps = range(len(result["curve"]))
    axes.fill_between(steps, result["lowest"], result["highest"], color=method.color, alpha=0.15, lw=0)
    final = f"{label}: {result['final']:.0e}" if result["final"] > 1e-16 else f"{label}: < 1e-16"
    axes.plot(steps, result["curve"], method.line, color=method.color, lw=1.8, label=final)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"riemannian.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; give the same command again to begin anew") from None
