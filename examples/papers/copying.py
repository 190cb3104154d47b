"""The copying problem: remember K letters over L blank steps, with orthogonal kernels, coordinate descent, an LSTM.

    python -m examples.papers.copying  # L = 50, some minutes a method: what the problem is
    python -m examples.papers.copying --length 1000 --methods dtriv100,exprnn,cwy,lstm --out runs/copying  # published
    python -m examples.papers.copying --length 1000 --methods rgd,srcd-u,srcd-gs,block-gs --out runs/copying

The input is K random letters of eight, L − 1 blanks, a marker, and K blanks; the output L + K blanks and then the
letters. Without a memory the best loss is the baseline, K·log 8/(L + 2K). With L = 1000 the 4,000 iterations of a
method take about 40 minutes on one core, the 501 of a descent 5.

dtriv1, dtriv100, dtriv-inf, exprnn, scornn, scurnn, cwy and lstm are trained by RMSprop, with settings of
Lezcano-Casado (2019); the LSTM has 68 units, which gives it as many parameters. rgd (Riemannian gradient descent by the
exponential) and the coordinate descents take plain steps of one size, with settings of Massart & Abrol (2022), the
start of the output layer included; block-gs moves along 0.5 % of all coordinates at once, block-gs-disjoint rotates as
many disjoint pairs as there are. For rgd the partial derivatives of the first and the last iteration are kept, as is
the share of them that holds 95 % and 99 % of the gradient's norm.

A killed run continues where it was. Methods may run at the same time into one folder; the figure shows all that are
there.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import arrays, finished, report
from examples.common.training import train
from examples.papers.recurrent import GATED, METHODS, POINTS, Network, adaptive, parameters
from mnvi.manifolds import Orthogonal
from mnvi.optim import CoordinateDescent, RiemannianSGD

LETTERS = 8  # and a blank, 0, and a marker, 9
TRANSIENT = ("methods", "device", "threads", "out", "restart")  # what a checkpoint is not bound to


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option("dtriv100,exprnn,cwy,lstm", f"what to run, of {', '.join(METHODS)}; '' only draws the figure")
    length: int = option(50, "L, the blanks to remember over")
    letters: int = option(10, "K, the letters to remember")
    hidden: int = option(190, "states of the recurrent layers")
    lstm_hidden: int = option(68, "states of the LSTM, GRU and plain RNN")
    iterations: int = option(4000, "steps of the adaptive optimisers")
    descent_iterations: int = option(501, "steps of plain and coordinate descent")
    batch_size: int = option(128, "sequences a step, all new")
    lr: float = option(2e-4, "rate of ordinary parameters")
    kernel_lr: float = option(2e-5, "rate of what the orthogonal kernel is made from")
    lstm_lr: float = option(1e-3, "rate of the LSTM, GRU and plain RNN")
    descent_lr: float = option(2e-4, "step of plain and coordinate descent, for everything")
    block: float = option(0.005, "share of the coordinates that a block has")
    seed: int = option(0, "of initial weights and letters")
    device: str = option("cpu", "cpu, or cuda")
    threads: int = option(2, "CPU threads")
    out: str = option("runs/copying", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        command_line.names(self.methods, METHODS)
        command_line.at_least(self, LEAST)

    @property
    def names(self) -> list[str]:
        return command_line.names(self.methods, METHODS)

    @property
    def baseline(self) -> float:
        """The loss of an output that knows the time but not the letters."""
        return self.letters * math.log(LETTERS) / (self.length + 2 * self.letters)


COUNTS = ("length", "letters", "hidden", "lstm_hidden", "iterations", "descent_iterations", "batch_size", "threads")
LEAST = {
    **dict.fromkeys(COUNTS, 1),
    "hidden": 2,
    **dict.fromkeys(("lr", "kernel_lr", "lstm_lr", "descent_lr", "block"), 1e-12),
}


def main(argv: list[str] | None = None) -> dict:
    """Run the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # vanishing gradients would slow down the baselines
    folder = checkpoints.prepare(settings.out)
    for name in settings.names:
        run(name, settings, folder)
    return collect(folder)


def run(method: str, settings: Settings, folder: Path) -> None:
    """Train one network and write ``method.json``."""
    torch.manual_seed(settings.seed)
    hidden = settings.lstm_hidden if method in GATED else settings.hidden
    model = Network(method, LETTERS + 2, hidden, LETTERS + 1, init="henaff").to(command_line.device(settings.device))
    if method in POINTS:  # as Massart & Abrol have it
        nn.init.kaiming_normal_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    optimisers = _optimisers(model, method, settings)
    total = settings.descent_iterations if method in POINTS else settings.iterations

    def step(i: int) -> dict[str, float]:
        x, y = (each.to(settings.device) for each in sequences(settings, i))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        loss.backward()
        if method == "rgd" and i == 0:
            for stale in folder.glob("derivatives-*.npy"):
                stale.unlink()
        if method == "rgd" and i in (0, total - 1):
            (weight,) = model.kernel_parameters()
            derivatives = partial_derivatives(weight, weight.grad).cpu().numpy()  # type: ignore[arg-type]
            checkpoints.write(folder / f"derivatives-{i}.npy", lambda path: np.save(path, derivatives))
        for optimiser in optimisers.values():
            optimiser.step()
        return {"loss": loss.item()}

    fixed = {k: v for k, v in asdict(settings).items() if k not in TRANSIENT}
    finished(folder, [name for name in METHODS if name != method], fixed)
    parts = {"model": model, **optimisers}
    progress = train(folder / f"{method}.pt", parts, fixed, total, step, title=method, restart=settings.restart)
    result = {
        **{"method": method, "settings": {**fixed, "threads": settings.threads}, "versions": checkpoints.versions()},
        **{"baseline": settings.baseline, "hidden": hidden, "parameters": parameters(model)},
        **{"seconds": progress["seconds"], "loss": [round(each["loss"], 7) for each in progress["history"]]},
    }
    checkpoints.write_json(folder / f"{method}.json", result)


def sequences(settings: Settings, i: int) -> tuple[Tensor, Tensor]:
    """The i-th batch: one-hot inputs (time, batch, 10) and target classes (time, batch)."""
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + i)
    length, count = settings.length, settings.letters
    letters = torch.randint(1, LETTERS + 1, (count, settings.batch_size), generator=generator)
    x = torch.zeros(length + 2 * count, settings.batch_size, dtype=torch.long)
    y = torch.zeros_like(x)
    x[:count], x[count + length - 1], y[-count:] = letters, LETTERS + 1, letters
    return F.one_hot(x, LETTERS + 2).to(torch.get_default_dtype()), y


def partial_derivatives(weight: Tensor, grad: Tensor) -> Tensor:
    """The derivatives of the loss along all (e_j e_lᵀ − e_l e_jᵀ)/√2, j < l; shape (n(n−1)/2,)."""
    product = weight.detach().T @ grad
    rows, columns = torch.triu_indices(len(weight), len(weight), 1)
    return ((product - product.T) / math.sqrt(2))[rows, columns]


def share(derivatives: np.ndarray, of_norm: float) -> float:
    """The least share of the coordinates that holds so much of the gradient's norm."""
    squares = np.sort(derivatives.astype(np.float64) ** 2)[::-1].cumsum()
    return float((np.searchsorted(squares, of_norm**2 * squares[-1]) + 1) / len(squares))


def _optimisers(model: Network, method: str, settings: Settings) -> dict[str, Optimizer]:
    if method not in POINTS:
        lr = settings.lstm_lr if method in GATED else settings.lr
        return adaptive(model, lr, settings.kernel_lr)
    groups = [
        {"params": model.kernel_parameters(), "manifold": Orthogonal(retraction="exp")},
        {"params": model.other_parameters()},
    ]
    lr = settings.descent_lr
    if method == "rgd":
        return {"optimiser": RiemannianSGD(groups, lr=lr)}
    generator = torch.Generator().manual_seed(settings.seed)
    rule = {"selection": "uniform" if method == "srcd-u" else "gauss-southwell", "generator": generator}
    if method.startswith("block"):
        rule |= {"block": settings.block, "disjoint": method.endswith("disjoint")}
    return {"optimiser": CoordinateDescent(groups, lr=lr, **rule)}


def collect(folder: Path) -> dict:
    """Put all methods' results in ``folder`` into ``result.json`` and ``copying.png``."""
    runs = finished(folder, METHODS)
    result: dict = {"runs": runs}
    if kept := derivatives(folder):
        result["derivatives"] = {
            str(i): {f"{100 * norm:g} % of the norm": share(kept[i], norm) for norm in (0.95, 0.99)}
            for i in sorted(kept)
        }
    for name, each in runs.items():
        loss, tenth = each["loss"], each["baseline"] / 10
        median = float(np.median(loss[-100:]))
        below = next((i for i in range(100, len(loss) + 1) if np.median(loss[i - 100 : i]) < tenth), None)
        print(
            f"{name:18} {len(loss):5} iterations {each['seconds']:6.0f} s {each['parameters']:7,} parameters   "
            f"median of the last {len(loss[-100:])} {median:.3g} = {median / each['baseline']:.3g} of the baseline"
            + (f"; below a tenth of it after {below} iterations" if below else "")
        )
    for i, shares in result.get("derivatives", {}).items():
        print(
            f"iteration {i}: "
            + ", ".join(f"{100 * value:.2f} % of the coordinates hold {key}" for key, value in shares.items())
        )
    return report(folder, "copying", result, lambda path: figure(path, runs, kept))


def derivatives(folder: Path) -> dict[int, np.ndarray]:
    """The partial derivatives that rgd left in ``folder``, by iteration."""
    files = {path.stem.split("-")[1]: path for path in folder.glob("derivatives-*.npy")}
    return {int(i): arrays(path) for i, path in files.items() if i.isdigit()}


COLORS = {name: f"C{i % 10}" for i, name in enumerate(METHODS)}


def figure(path: Path, runs: dict[str, dict], kept: dict[int, np.ndarray]) -> None:
    """Loss of the adaptive methods and of the descents, histograms of the partial derivatives: those that there are."""
    kinds = [{name: runs[name] for name in METHODS if name in runs and (name in POINTS) == point} for point in (0, 1)]
    panels = [partial(_losses, runs=kind) for kind in kinds if kind] + (
        [partial(_histograms, kept=kept)] if kept else []
    )
    canvas = Figure(figsize=(5.2 * len(panels), 4.2), dpi=150, layout="constrained")
    for axes, draw in zip(np.atleast_1d(canvas.subplots(1, len(panels))), panels, strict=True):
        draw(axes)
    settings = next(iter(runs.values()))["settings"]
    canvas.suptitle(f"Copying {settings['letters']} letters over {settings['length']} steps", fontsize=13)
    canvas.savefig(path)


def _losses(axes: Axes, runs: dict[str, dict]) -> None:
    for name, each in runs.items():
        loss = np.array(each["loss"])
        width = max(1, len(loss) // 200)
        median = np.median(np.lib.stride_tricks.sliding_window_view(loss, width), -1)
        axes.semilogy(np.arange(1, len(loss) + 1), loss, color=COLORS[name], linewidth=0.5, alpha=0.5)
        axes.semilogy(np.arange(width, len(loss) + 1), median, color=COLORS[name], label=name)
    baseline = next(iter(runs.values()))["baseline"]
    axes.axhline(baseline, color="black", linestyle=":", linewidth=1)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "top"}
    axes.annotate("no memory", (0.99, 0.93 * baseline), fontsize=9, **where)
    axes.set(xlabel="iteration", ylabel="loss (nats a step)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _histograms(axes: Axes, kept: dict[int, np.ndarray]) -> None:
    sizes = {i: np.log10(np.abs(values[values != 0])) for i, values in sorted(kept.items())}
    bins = np.linspace(min(map(np.min, sizes.values())), max(map(np.max, sizes.values())), 60)
    for i, values in sizes.items():
        axes.hist(values, bins=list(bins), alpha=0.6, label=f"iteration {i}")
    axes.set(xlabel="log₁₀ of a partial derivative's size (rgd)", ylabel="coordinates", yscale="log")
    axes.legend(frameon=False)


if __name__ == "__main__":
    command_line.as_program(main)
