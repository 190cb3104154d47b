"""What a Riemannian optimiser's step costs, beside geoopt's, and how far float32 points drift from their manifold.

    python -m benchmarks.manifolds                      # one step on Stiefel (512, 512) and (4096, 64), 2 threads
    python -m benchmarks.manifolds --json figures/manifolds.json
    python -m benchmarks.manifolds --drift              # 100,000 steps on Stiefel (64, 16), re-projection on and off

A step is that of the optimiser alone, from a gradient that is already there: SGD with momentum 0.9, or Adam. geoopt
(`pip install geoopt`) joins in where it is installed: its Stiefel (the canonical metric, retracting by a solve) and
EuclideanStiefel (by QR), each beside ours with the same metric, by QR, our default, and as geoopt does it. The last
tables have 100 ordinary parameters beside torch's optimiser. All contenders take turns within each round (see
measuring.py).
"""

import importlib
import importlib.util
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from benchmarks import measuring
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


def tables(rounds: int, seconds: float, only: str) -> dict[str, measuring.Results]:
    makers = {
        f"{rule}, Stiefel {shape}, {metric} metric": partial(contenders, rule, shape, metric)
        for shape in SHAPES
        for metric in RETRACTIONS
        for rule in RULES
    } | {f"{rule}, 100 ordinary parameters": partial(ordinary, rule) for rule in RULES}
    if importlib.util.find_spec("geoopt") is None:
        print("geoopt is not installed (pip install geoopt): ratios are to the first row of mnvi")
    results = {}
    for title, make in measuring.chosen(makers, only).items():
        results[title] = measuring.measure(make(), rounds, seconds)
        measuring.show(title, results[title])
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


def main() -> None:
    parser = measuring.parser(str(__doc__))
    parser.add_argument("--rounds", type=int, default=50, help="of every table (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of a table, at most, after five rounds (60)")
    parser.add_argument("--only", default="", help="run only the tables whose title holds this, 'Adam' or '4096' say")
    parser.add_argument("--drift", action="store_true", help="measure the drift instead of the time of a step")
    parser.add_argument("--steps", type=int, default=100_000, help="of the drift (default: %(default)s)")
    args = parser.parse_args()
    measuring.prepare(args.threads)
    results = drifts(args.steps) if args.drift else tables(args.rounds, args.seconds, args.only)
    setting = {name: value for name, value in vars(args).items() if name != "json"} | {"dtype": "float32"}
    measuring.write_json(args.json, setting, ("geoopt",), results)


if __name__ == "__main__":
    main()
