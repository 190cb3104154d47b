"""What a Riemannian optimiser's step costs, beside geoopt's, and how far float32 points drift from their manifold.

    python benchmarks/manifolds.py                      # one step on Stiefel (512, 512) and (4096, 64), 2 threads
    python benchmarks/manifolds.py --json figures/manifolds.json
    python benchmarks/manifolds.py --drift              # 100,000 steps on Stiefel (64, 16), re-projection on and off

A step is that of the optimiser alone, from a gradient that is already there: SGD with momentum 0.9, or Adam. geoopt
(`pip install geoopt`) joins in where it is installed: its Stiefel (the canonical metric, retracting by a solve) and
EuclideanStiefel (by QR), each beside ours with the same metric, by QR, our default, and as geoopt does it. The last
tables have 100 ordinary parameters beside torch's optimiser. A ratio is that of the medians, to the first row. All
contenders take turns within each round, so that a disturbance of the machine hits all; the spread is the smallest and
the largest ratio within a round. A training process has usually freed some large array (its data, say), which makes
glibc's allocator keep freed memory instead of returning it to the system; one such array is allocated and freed first.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata

import torch
from torch import nn

from mnvi.manifolds import Stiefel
from mnvi.optim import RiemannianAdam, RiemannianSGD

Step = Callable[[], object]
SHAPES = [(512, 512), (4096, 64)]
RULES = {
    "SGD, momentum 0.9": (RiemannianSGD, torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (RiemannianAdam, torch.optim.Adam, {}),
}
RETRACTIONS = {"canonical": ("qr", "cayley"), "euclidean": ("qr",)}  # the default, and what geoopt does


def contenders(rule: str, shape: tuple[int, int], metric: str) -> dict[str, Step]:
    """The steps of one table, geoopt's first where it is installed; all from the same point and gradient."""
    ours, _, options = RULES[rule]
    start, gradient = Stiefel().random(*shape), torch.randn(shape) / shape[0]
    steps = {}
    with suppress(ImportError):
        geoopt = importlib.import_module("geoopt")
        point = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Stiefel(canonical=metric == "canonical"))
        point.grad = gradient.clone()
        steps["geoopt"] = getattr(geoopt.optim, ours.__name__)([point], lr=1e-3, **options).step
    for retraction in RETRACTIONS[metric]:
        point = nn.Parameter(start.clone())
        point.grad = gradient.clone()
        group = {"params": [point], "manifold": Stiefel(metric, retraction)}
        steps[f"mnvi, {retraction}"] = ours([group], lr=1e-3, **options).step
    return steps


def ordinary(rule: str) -> dict[str, Step]:
    """The steps of a model of 100 small parameters on no manifold."""
    ours, torchs, options = RULES[rule]
    parameters = [nn.Parameter(torch.randn(20, 10)) for _ in range(100)]
    for parameter in parameters:
        parameter.grad = torch.randn(20, 10)
    return {each.__module__.split(".")[0]: each(parameters, lr=1e-3, **options).step for each in (torchs, ours)}


def measure(steps: dict[str, Step], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each, over so many rounds, or fewer (5 at least) where the time is up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    started, done = time.perf_counter(), -2  # two rounds to warm up
    while done < rounds and (done < 5 or time.perf_counter() - started < seconds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if done >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
        done += 1
    base = next(iter(times.values()))
    results = {}
    for name, values in times.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        results[name] = {
            "median_ms": round(statistics.median(values), 3),
            "ratio": round(statistics.median(values) / statistics.median(base), 3),
            "smallest_ratio": round(min(ratios), 3),
            "largest_ratio": round(max(ratios), 3),
            "rounds": len(values),
        }
    return results


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':20s}{'median ms':>10s}{'ratio':>8s}{'spread':>16s}{'rounds':>8s}")
    for name, row in results.items():
        spread = f"{row['smallest_ratio']:.3f}-{row['largest_ratio']:.3f}"
        print(f"{name:20s}{row['median_ms']:10.2f}{row['ratio']:8.3f}{spread:>16s}{row['rounds']:8.0f}", flush=True)


def tables(rounds: int, seconds: float, only: str) -> dict[str, dict[str, dict[str, float]]]:
    makers = {
        f"{rule}, Stiefel {shape}, {metric} metric": partial(contenders, rule, shape, metric)
        for shape in SHAPES
        for metric in RETRACTIONS
        for rule in RULES
    } | {f"{rule}, 100 ordinary parameters": partial(ordinary, rule) for rule in RULES}
    if not any(only in title for title in makers):
        raise SystemExit(f"manifolds.py: no table's title holds {only!r}; there are: {'; '.join(makers)}")
    if importlib.util.find_spec("geoopt") is None:
        print("geoopt is not installed (pip install geoopt): ratios are to the first row of mnvi")
    results = {}
    for title, make in makers.items():
        if only in title:
            results[title] = measure(make(), rounds, seconds)
            show(title, results[title])
    return results


def drift(manifold: Stiefel, reproject_every: int, steps: int) -> dict[str, float]:
    """The residual after noisy descent towards the leading 16 eigenvectors of a 64×64 matrix, in float32."""
    matrix = torch.randn(64, 64)
    matrix = matrix @ matrix.mT / 64
    point = nn.Parameter(manifold.random(64, 16))
    groups = [{"params": [point], "manifold": manifold}]
    optimiser = RiemannianSGD(groups, lr=0.01, momentum=0.9, reproject_every=reproject_every)
    residual = largest = torch.zeros(())
    start = time.perf_counter()
    for i in range(1, steps + 1):
        point.grad = torch.randn(64, 16).sub_(matrix @ point.detach())
        optimiser.step()
        if i % 100 == 99 or i == steps:  # 99: just before a re-projection
            residual = manifold.residual(point.detach())
            largest = torch.maximum(largest, residual)
    microseconds = 1e6 * (time.perf_counter() - start) / steps
    return {"residual": residual.item(), "largest": largest.item(), "microseconds_per_step": round(microseconds, 1)}


def drifts(steps: int) -> dict[str, dict[str, float]]:
    results = {}
    for manifold in (Stiefel(metric, retraction) for metric, each in RETRACTIONS.items() for retraction in each):
        for every in (100, 0):
            title = f"{manifold}, re-projection {'every 100 steps' if every else 'off'}"
            results[title] = row = drift(manifold, every, steps)
            print(f"{title:80s}residual {row['residual']:.1e}, largest {row['largest']:.1e}", flush=True)
    return results


def versions() -> dict[str, str]:
    """Of Python, torch and geoopt, where it is installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "geoopt"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="of every table (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of a table, at most, after five rounds (60)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--only", default="", help="run only the tables whose title holds this, 'Adam' or '4096' say")
    parser.add_argument("--drift", action="store_true", help="measure the drift instead of the time of a step")
    parser.add_argument("--steps", type=int, default=100_000, help="of the drift (default: %(default)s)")
    parser.add_argument("--json", help="also write the results here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.drift:
        results = drifts(args.steps)
    else:
        del_me = torch.zeros(30 * 2**18)
        del del_me
        results = tables(args.rounds, args.seconds, args.only)
    if args.json:
        setting = {name: value for name, value in vars(args).items() if name != "json"}
        setting |= {"dtype": "float32", "cpu": platform.machine(), "versions": versions()}
        with open(args.json + ".tmp", "w") as file:
            json.dump({"setting": setting, "results": results}, file, indent=1)
        os.replace(args.json + ".tmp", args.json)


if __name__ == "__main__":
    main()
