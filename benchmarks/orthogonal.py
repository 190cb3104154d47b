"""What orthogonal weights cost, forward and backward, beside torch's own maps and layers.

    python -m benchmarks.orthogonal                                        # some minutes, 2 threads
    python -m benchmarks.orthogonal --json figures/orthogonal.json
    python -m benchmarks.orthogonal --only recurrent

maps: the weight of a linear layer from its unconstrained tensor, and the gradient of that tensor, from one of the
weight whose entries are N(0, 1)/n. torch's maps are those of torch.nn.utils.parametrizations.orthogonal; exponentials
are all of one skew-symmetric matrix of spectral norm about 3, products of reflections have as many as there are rows.
geotorch (`pip install geotorch`) joins in where it is installed.
stiefel: a tall matrix, and the peak memory of a process that does nothing else.
recurrent: OrthogonalRNN(1, 170) over 784 steps of a batch of 128, beside nn.RNN and nn.LSTM, from the last state.
descent: one step of the optimiser alone on a 2048×2048 weight.

All contenders take turns within each round (see measuring.py).
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

import mnvi
from benchmarks import measuring
from mnvi.manifolds import SpecialOrthogonal, Stiefel
from mnvi.optim import CoordinateDescent, RiemannianSGD
from mnvi.parametrizations import CWY, OWN, TCWY, Cayley, Exponential, Householder, Parametrization, Trivialization
from mnvi.rnn import OrthogonalRNN

Steps = dict[str, Callable[[], object]]
TALL = 20_000  # rows
STATUS = Path("/proc/self/status")  # of Linux, which has the peak memory


def exponentials(n: int) -> Steps:
    """Exponential maps of one skew-symmetric matrix."""
    lower = (torch.randn(n, n) * (1.5 / n**0.5)).tril(-1)  # of spectral norm about 3
    gradient = torch.randn(n, n) / n
    steps: Steps = {}
    for name, triv in (("torch matrix_exp", False), ("torch matrix_exp, trivialized", True)):
        layer = orthogonal(nn.Linear(n, n, bias=False), orthogonal_map="matrix_exp", use_trivialization=triv)
        steps[name] = _pass(_set(layer, lower), gradient)
    with suppress(ImportError):
        geotorch = importlib.import_module("geotorch")
        layer = nn.Linear(n, n, bias=False)
        geotorch.orthogonal(layer, "weight")
        steps["geotorch"] = _pass(_set(layer, lower), gradient)
    rows, columns = torch.tril_indices(n, n, -1)
    steps["mnvi Exponential"] = _pass(_set(_constrained(Exponential(), n), lower[rows, columns]), gradient)
    skew = lower - lower.T
    steps["mnvi Trivialization"] = _pass(_set(_constrained(Trivialization(), n), skew), gradient)
    return steps


def reflections(n: int) -> Steps:
    """Products of n reflections, and Cayley transforms."""
    gradient = torch.randn(n, n) / n
    steps: Steps = {}
    for name, triv in (("householder", False), ("cayley", False), ("cayley", True)):
        layer = orthogonal(nn.Linear(n, n, bias=False), orthogonal_map=name, use_trivialization=triv)
        steps[f"torch {name}{', trivialized' * triv}"] = _pass(layer, gradient)
    kinds = {"CWY": CWY(n), "Householder": Householder(n), "Cayley": Cayley()}
    return steps | {f"mnvi {name}": _pass(_constrained(kind, n), gradient) for name, kind in kinds.items()}


def stiefel(n: int, p: int = 32) -> Steps:
    """A tall matrix with orthonormal columns."""
    gradient, matrix = torch.randn(n, p) / n, nn.Parameter(torch.randn(n, p))
    steps: Steps = {"torch.linalg.qr": lambda: torch.autograd.grad(torch.linalg.qr(matrix).Q, matrix, gradient)}
    if n <= 1000:  # its backward pass is quadratic in n
        layer = orthogonal(_tall(n, p), orthogonal_map="householder", use_trivialization=False)
        steps["torch householder"] = _pass(layer, gradient)
    kinds = {"T-CWY": TCWY(), "OWN": OWN(), "Trivialization(Stiefel())": Trivialization(Stiefel())}
    return steps | {
        f"mnvi {name}": _pass(mnvi.constrain(_tall(n, p), "weight", kind), gradient) for name, kind in kinds.items()
    }


def recurrent() -> Steps:
    """A recurrent layer over a long sequence."""
    x = torch.rand(784, 128, 1)
    n = 170
    layers: dict[str, nn.Module] = {
        "nn.RNN, tanh": nn.RNN(1, n),
        "nn.RNN, relu": nn.RNN(1, n, nonlinearity="relu"),
        "nn.LSTM(1, 60)": nn.LSTM(1, 60),
        "mnvi, exponential, modReLU": OrthogonalRNN(1, n, kernel=Exponential()),
        "mnvi, dtriv, modReLU": OrthogonalRNN(1, n),
        "mnvi, CWY L = 170, modReLU": OrthogonalRNN(1, n, kernel=CWY(n)),
        "mnvi, CWY L = 32, modReLU": OrthogonalRNN(1, n, kernel=CWY(32)),
        "mnvi, exponential, tanh": OrthogonalRNN(1, n, kernel=Exponential(), nonlinearity="tanh"),
        "mnvi, unconstrained, tanh": OrthogonalRNN(1, n, kernel=nn.Linear(n, n, bias=False), nonlinearity="tanh"),
    }
    return {name: partial(_last_state, layer, x) for name, layer in layers.items()}


def descent(d: int = 2048) -> Steps:
    """Steps of optimisers from a gradient that is already there."""
    start, gradient = SpecialOrthogonal().random(d, d), torch.randn(d, d) / d
    steps: Steps = {}
    rules: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "RiemannianSGD, exponential": RiemannianSGD,
        "CoordinateDescent, uniform": CoordinateDescent,
        "uniform, 1024 pairs": partial(CoordinateDescent, block=d // 2),
        "Gauss-Southwell": partial(CoordinateDescent, selection="gauss-southwell"),
        "Gauss-Southwell, 1024 pairs": partial(CoordinateDescent, selection="gauss-southwell", block=d // 2),
    }
    for name, rule in rules.items():
        point = nn.Parameter(start.clone())
        point.grad = gradient.clone()
        steps[name] = rule([{"params": [point], "manifold": SpecialOrthogonal(retraction="exp")}], lr=1e-3).step
    return steps


TABLES: dict[str, Callable[[], Steps]] = {
    **{f"maps: exponential, n = {n}": partial(exponentials, n) for n in (170, 512, 1024)},
    **{f"maps: reflections, n = {n}": partial(reflections, n) for n in (170, 512)},
    **{f"stiefel: {n:,} × 32": partial(stiefel, n) for n in (1_000, TALL)},
    "recurrent: (1, 170), 784 steps, batch 128": recurrent,
    "descent: one step, d = 2048": descent,
}


def peak_memory() -> dict[str, float]:
    """MB that a fresh process takes for T-CWY, forward and backward, and at all."""
    command, root = [sys.executable, "-m", "benchmarks.orthogonal", "--peak"], Path(__file__).parents[1]
    numbers = map(float, subprocess.check_output(command, cwd=root).split())
    return dict(zip(("above the import", "in all"), numbers, strict=True))


def _peak() -> None:
    before = _high_water()
    _pass(mnvi.constrain(_tall(TALL, 32), "weight", TCWY()), torch.randn(TALL, 32))()
    after = _high_water()
    print((after - before) / 1024, after / 1024)


def _high_water() -> int:
    """The largest memory of this process so far, in kB; ru_maxrss would count the process that started it."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _constrained(parametrization: Parametrization, n: int) -> nn.Module:
    return mnvi.constrain(nn.Linear(n, n, bias=False), "weight", parametrization)


def _tall(n: int, p: int) -> nn.Module:
    return nn.Linear(p, n, bias=False)


def _set(layer: nn.Module, value: Tensor) -> nn.Module:
    """The layer with its one unconstrained tensor set."""
    with torch.no_grad():
        next(layer.parameters()).copy_(value)
    return layer


def _pass(layer: nn.Module, gradient: Tensor) -> Callable[[], object]:
    """Forward and backward of a layer's weight."""

    def step() -> None:
        layer.zero_grad()
        layer.weight.backward(gradient)  # type: ignore[operator, union-attr]

    return step


def _last_state(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad()
    h = layer(x)[1]
    (h[0] if isinstance(h, tuple) else h).square().sum().backward()


def main() -> None:
    parser = measuring.parser(str(__doc__))
    parser.add_argument("--rounds", type=int, default=20, help="of every table (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of a table, at most, after five rounds (60)")
    parser.add_argument("--only", default="", help="run only the tables whose title holds this, 'recurrent' say")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return _peak()
    measuring.prepare(args.threads)
    torch.set_flush_denormal(True)  # vanishing gradients would slow down the baselines
    results = {}
    for title, make in measuring.chosen(TABLES, args.only).items():
        results[title] = measuring.measure(make(), args.rounds, args.seconds)
        measuring.show(title, results[title])
        if f"{TALL:,}" in title and STATUS.exists():
            results["peak memory of T-CWY, MB"] = memory = peak_memory()
            print("peak memory of T-CWY: " + ", ".join(f"{value:.0f} MB {name}" for name, value in memory.items()))
    setting = {name: value for name, value in vars(args).items() if name not in ("json", "peak")}
    measuring.write_json(args.json, setting, ("geotorch",), results)


if __name__ == "__main__":
    main()
