"""The figures of a comparison: quality against the strength of corruptions, and reliability diagrams."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.common.scores import by_strength

FEWEST = 5  # images in a bin, below which its accuracy says nothing
SHARES = (0.01, 0.1, 0.5)  # of the images, in the legend
PANELS = {"accuracy": "accuracy, %", "nll": "NLL, nats", "ece": "calibration error, %"}


def shifts_figure(path: Path, runs: Sequence[dict]) -> None:
    """Accuracy, NLL and calibration error over the strength, 0 for the test images as they are; means over seeds."""
    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    figure.suptitle(f"{runs[0]['title']}: test images, corrupted (means over {', '.join(_kinds(runs))})", fontsize=13)
    for axes, (key, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for i, row in enumerate(_rows(runs)):
            values = by_strength(runs, row, key)
            mean, strengths = values.mean(0), np.arange(values.shape[1])
            axes.plot(strengths, mean, _style(row), color=f"C{i}", label=row)
            if len(values) > 1:
                spread = values.std(0, ddof=1)
                axes.fill_between(strengths, mean - spread, mean + spread, color=f"C{i}", alpha=0.15, lw=0)
        axes.set(xlabel="strength of the corruption", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def reliability_figure(path: Path, runs: Sequence[dict]) -> None:
    """Accuracy over confidence on the test images of all seeds, a panel a row.

    A point is a bin of confidence, its area the number of images in it; bins of fewer than 5 are left out.
    """
    rows = _rows(runs)
    across = min(5, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(2.7 * across, 3.0 * down + 0.5), dpi=150, layout="constrained")
    figure.suptitle(f"{runs[0]['title']}: reliability", fontsize=13)
    panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for i, (axes, row) in enumerate(zip(panels, rows, strict=False)):
        count, confidence, accuracy = _pooled([run["rows"][row]["reliability"] for run in runs if row in run["rows"]])
        seen = count >= FEWEST
        axes.plot([0, 1], [0, 1], color="0.7", lw=1)
        axes.plot(confidence[seen], accuracy[seen], color=f"C{i}", lw=1)
        axes.scatter(confidence[seen], accuracy[seen], _areas(count[seen] / count.sum()), color=f"C{i}", zorder=3)
        axes.set(title=row, xlim=(0, 1.08), ylim=(0, 1.08))
        axes.title.set_fontsize(9)
        if i + across >= len(rows):  # the lowest of its column
            axes.set_xlabel("confidence")
            axes.tick_params(labelbottom=True)
    for axes in panels[len(rows) :]:
        axes.axis("off")
    figure.supylabel("accuracy", fontsize=11)
    shares = [axes.scatter([], [], _areas(share), color="0.5") for share in SHARES]
    words = [f"{100 * share:g} % of the images" for share in SHARES]
    title = f"images in a bin of confidence; bins of fewer than {FEWEST} images are left out"
    figure.legend(shares, words, title=title, loc="outside lower center", ncols=len(words), frameon=False)
    figure.savefig(path)


def _areas(share: np.ndarray | float) -> np.ndarray:
    """Of points that stand for these shares of the images, in square points."""
    return 6 + 300 * np.asarray(share)


def _pooled(seeds: list[list[list[float]]]) -> np.ndarray:
    """Counts, mean confidences and accuracies (3, bins) of all seeds together."""
    found = np.array(seeds)  # (seeds, bins, 3)
    count = found[:, :, 0]
    total = count.sum(0)
    means = (count[:, :, None] * found[:, :, 1:]).sum(0) / np.maximum(total, 1)[:, None]
    return np.vstack([total, means.T])


def _rows(runs: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(row for run in runs for row in run["rows"]))


def _kinds(runs: Sequence[dict]) -> list[str]:
    return list(next(iter(runs[0]["rows"].values()))["corrupted"])


def _style(row: str) -> str:
    return "s--" if row.endswith("temperature") else "o-"
