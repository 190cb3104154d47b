"""The two figures of a run: what training did, and the weights of the plain and the pruned network."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

PLAIN, BAYES, PRUNED = "#8a8a8a", "#1f5fa8", "#c23b22"
LAYERS_SHOWN = 4
CELLS = 250, 800  # of a matrix, at most


def training_figure(path: Path, title: str, result: dict) -> None:
    """Accuracy, −ELBO and compression over the epochs of ``result`` (see results.py), and where pruning ended."""
    history, weights = result["history"], result["sparsity"]["total"]["weights"]
    figure = Figure(figsize=(12, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(1, 3)
    _accuracy(panels[0], history, {name: row["accuracy"] for name, row in result["metrics"].items()})
    _bound(panels[1], history)
    left = [weights / max(1, epoch["left"]) for epoch in history]
    _compression(panels[2], left, result["sparsity"]["compression"] or weights)
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(history) == 1:  # a curve of one point
            axes.set_xlim(0, 2)
            axes.lines[0].set_marker("o")
    figure.savefig(path)


def _accuracy(axes: Axes, history: list[dict], ends: Mapping[str, float]) -> None:
    values = [epoch["accuracy"] for epoch in history]
    axes.plot(range(1, len(values) + 1), values, color=BAYES, label=f"while training: {values[-1]:.2f}")
    axes.axhline(ends["plain network"], color=PLAIN, label=f"plain network: {ends['plain network']:.2f}")
    marks = {"pruned": "*", "fine-tuned": "P"}
    for name in [name for name in marks if name in ends]:
        label = f"{name}: {ends[name]:.2f}"
        axes.plot(len(values), ends[name], marks[name], color=PRUNED, ms=12, clip_on=False, label=label)
    low, high = min(np.quantile(values, 0.05), *ends.values()), max(*values, *ends.values())
    margin = max(0.5, 0.7 * (high - low))  # room for the legend; the first epochs may start below
    axes.set_ylim(low - margin, min(100, high + 0.2 * margin))
    axes.set_title("test accuracy, %")
    axes.legend(loc="lower right")


def _bound(axes: Axes, history: list[dict]) -> None:
    key, name = ("neg_elbo", "−ELBO") if "neg_elbo" in history[0] else ("nll", "NLL")
    values = [epoch[key] for epoch in history]
    axes.plot(range(1, len(values) + 1), values, color=BAYES, label=f"at the end: {values[-1]:.3g}")
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{name}, nats per training image")
    axes.legend(loc="upper right")


def _compression(axes: Axes, values: list[float], pruned: float) -> None:
    axes.plot(range(1, len(values) + 1), values, color=PRUNED, label="while training")
    axes.plot(len(values), pruned, "*", color=PRUNED, ms=14, clip_on=False, label=f"pruned: {pruned:.1f}×")
    axes.axhline(1, color=PLAIN, label="plain network: 1×")
    axes.set_ylim(0, 1.35 * max(*values, pruned))
    axes.set_title("compression: weights / weights left")
    axes.legend(loc="upper left")


def weights_figure(path: Path, title: str, plain: Mapping[str, Tensor], pruned: Mapping[str, Tensor]) -> None:
    """|weight| of the plain and |mean| of the pruned network, side by side on one colour scale a layer.

    Args:
        path: the PNG to write.
        plain, pruned: the (n, p) matrices by layer; of more than four, four spread over the network are shown.
    """
    names = list(plain)
    shown = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), LAYERS_SHOWN)).round().astype(int)]
    figure = Figure(figsize=(13, 0.8 + 2.3 * len(shown)), dpi=150, layout="constrained")
    some = f" ({len(shown)} of {len(names)} layers)" if len(shown) < len(names) else ""
    figure.suptitle(f"{title}: weights{some}, white where 0", fontsize=13)
    for name, (left, right) in zip(shown, figure.subplots(len(shown), 2, squeeze=False), strict=True):
        top = max(weight[name].abs().max().item() for weight in (plain, pruned))
        _matrix(left, plain[name], top, f"layer {name}, plain network")
        image = _matrix(right, pruned[name], top, f"layer {name}, pruned")
        left.set_ylabel("output")
        bar = figure.colorbar(image, ax=[left, right], fraction=0.03, pad=0.01, extend="min", label="|weight|")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel("input", fontsize=11)
    figure.savefig(path)


def _matrix(axes: Axes, weight: Tensor, top: float, name: str) -> AxesImage:
    """White where a weight is 0; the colours span three decades below ``top``."""
    size, left = weight.numel(), int(weight.count_nonzero())
    rows, columns = weight.shape
    # A matrix of more cells than pixels shows the largest of each block, so that no lonely weight is lost.
    cells = F.adaptive_max_pool2d(weight.abs()[None], (min(rows, CELLS[0]), min(columns, CELLS[1])))[0]
    shown = np.ma.masked_equal(cells.numpy(), 0)
    options = {"cmap": "magma_r", "norm": LogNorm(top / 1000, top), "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(shown, extent=(0, columns, rows, 0), **options)
    axes.set_title(f"{name}: {left:,} of {size:,} weights ({100 * left / size:.1f} %)", fontsize=11)
    return image
