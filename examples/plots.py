"""The two figures of a run: what training did, and the weights before and after pruning."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

BAYES, PLAIN, LEFT = "#1f5fa8", "#8a8a8a", "#c23b22"
LAYERS_SHOWN = 4


def training_figure(path: Path, title: str, history: list[dict], compressions: list[float], final: dict) -> None:
    """Accuracy, −ELBO and compression over the epochs.

    Args:
        path: the PNG to write.
        history: of each epoch "accuracy", "plain_accuracy" (percent) and "neg_elbo" (nats per example).
        compressions: of each epoch, at the chosen threshold.
        final: of the pruned network "accuracy" and "compression".
    """
    figure = Figure(figsize=(12, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13)
    accuracy, bound, compression = figure.subplots(1, 3)
    epochs = range(1, len(history) + 1)
    for axes, name in ((accuracy, "test accuracy, %"), (bound, "−ELBO, nats per image"), (compression, "compression")):
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    plain, mean = [e["plain_accuracy"] for e in history], [e["accuracy"] for e in history]
    accuracy.plot(epochs, plain, color=PLAIN, label=f"plain network: {plain[-1]:.2f}")
    accuracy.plot(epochs, mean, color=BAYES, label=f"mean weights: {mean[-1]:.2f}")
    accuracy.plot(len(history), final["accuracy"], "*", color=LEFT, ms=13, label=f"pruned: {final['accuracy']:.2f}")
    settled = sorted(plain + mean)[len(plain) // 5]
    accuracy.set_ylim(max(0, settled - 2), min(100.2, max(*plain, *mean) + 1))
    bound.plot(epochs, [e["neg_elbo"] for e in history], color=BAYES)
    bound.set_yscale("log")
    label = f"pruned: {final['compression']:.1f}×"
    compression.plot(epochs, compressions, color=LEFT)
    compression.plot(len(history), final["compression"], "*", color=LEFT, ms=13, label=label)
    compression.axhline(1, color=PLAIN, lw=1)
    compression.set_ylim(bottom=0)
    for axes in (accuracy, compression):
        axes.legend(loc="lower right" if axes is accuracy else "upper left")
    figure.savefig(path)


def weights_figure(path: Path, title: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """|mean| of the weight matrices, before and after pruning, side by side on one colour scale a layer.

    Args:
        path: the PNG to write.
        before, after: the (n, p) matrices by layer; of more than four, four spread over the network are shown.
    """
    names = list(before)
    shown = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), LAYERS_SHOWN)).round().astype(int)]
    figure = Figure(figsize=(13, 0.8 + 2.4 * len(shown)), dpi=150, layout="constrained")
    some = f", {len(shown)} of {len(names)} layers" if len(shown) < len(names) else ""
    figure.suptitle(f"{title}: |mean weight|{some}; rows are outputs, columns inputs", fontsize=13)
    for name, (left, right) in zip(shown, figure.subplots(len(shown), 2, squeeze=False), strict=True):
        _matrix(left, before[name], before[name], f"{name}, before")
        image = _matrix(right, after[name], before[name], f"{name}, after")
        figure.colorbar(image, ax=[left, right], fraction=0.03, extend="min")
    figure.savefig(path)


def _matrix(axes: Axes, weight: Tensor, scale: Tensor, name: str):
    size, left = weight.numel(), int(weight.count_nonzero())
    top = max(scale.abs().max().item(), 1e-9)
    magnitude = np.ma.masked_equal(weight.abs().numpy(), 0)
    image = axes.imshow(magnitude, cmap="viridis_r", norm=LogNorm(top / 1e3, top), aspect="auto", interpolation="nearest")
    axes.set_title(f"{name}: {left:,} of {size:,} weights ({100 * left / size:.1f} %)", fontsize=11)
    return image
