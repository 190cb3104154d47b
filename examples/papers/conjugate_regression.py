"""Linear regression with known noise, where a matrix-normal posterior is exact: steps to the log evidence.

The problem half of natural_gradient.py. Inputs are ill-conditioned, the posterior is matrix-normal, and the log
evidence has a closed form, so it is known how far a training still has to go.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor
from torch.optim import Adam, Optimizer
from tqdm import tqdm

import mnvi
from examples.common import plots
from mnvi.optim import NaturalGradient

ADAM, NATURAL = "Adam", "natural gradient"
STYLES: dict[str, dict[str, Any]] = {
    ADAM: {"color": plots.PLAIN, "ls": "--", "lw": 1.8},
    NATURAL: {"color": plots.PRUNED, "ls": "-", "lw": 1.8},
}
INPUTS, OUTPUTS, POINTS, NOISE = 8, 3, 200, 0.3
TARGET = 0.01  # nats between −ELBO and −log evidence
RATES = [10 ** (k / 4) for k in (0, 1, -1, 2, -2, -3, -4, -5, -6, -7, -8)]  # the likely ones first: 1, then outwards
RATIOS = (0.03, 0.1, 1.0)  # of the off-diagonals' rate; see mnvi.parameter_groups


def regression(seeds: int, steps: int, lr: float) -> tuple[dict, str, Callable]:
    """Steps of both methods on every problem; the results, a table, and what draws the figure.

    Args:
        seeds: number of problems.
        steps: that either method may take at most.
        lr: natural gradient's rate.
    """
    with tqdm(total=seeds * (1 + len(RATES) * len(RATIOS)), unit="run") as bar:
        runs = [solve(seed, steps, lr, bar) for seed in range(seeds)]
    rows, summaries = [f"to {TARGET:g} nat of the log evidence, median and range of {seeds} problems"], {}
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


def solve(seed: int, steps: int, lr: float, bar: tqdm) -> dict:
    """Natural gradient, and Adam at its best rate, on one problem.

    A "trial" of Adam without "steps" took no fewer than the best before it, or did not arrive at all.
    """
    x, y = problem(seed)
    evidence = log_evidence(x, y)
    gap = partial(gap_to_evidence, x=x, y=y, evidence=evidence)
    natural = descend(seed, gap, lambda layer: NaturalGradient(layer, lr), steps)
    bar.update()
    trials, best = [], None
    for ratio, rate in product(RATIOS, RATES):
        # a trial as long as the best so far cannot win, and ends there
        most = steps if best is None or best["steps"] is None else best["steps"] - 1
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
    family = mnvi.posteriors.MatrixNormal()  # the exact one
    layer = mnvi.MNLinear(INPUTS, OUTPUTS, bias=False, posterior=family, dtype=torch.float64)
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
