"""Draw the figures again from the JSON of finished runs, without training.

    python -m examples.figures                                # those of figures/, into runs/figures
    python -m examples.figures --folder runs --out runs/again

Of runs of sparsify.py with the same images and network also what they show together: `pareto-…png`, accuracy against
what is left; `families-…png`, accuracy and bound over training; `layers-…md`, what is left of every layer.

A run's folder has a `result.json`. What only its other files hold is left out where they are missing, as they are in
figures/: the weights (`weights.png`), histograms of derivatives (copying), and predicted recordings and films.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.common import checkpoints, plots, results, shift_plots, sparse_figures
from examples.common.command_line import as_program, option, parse
from examples.papers import (
    conjugate_regression,
    copying,
    natural_gradient,
    pixel_mnist,
    riemannian,
    speech,
    translation,
    uci,
    video,
)


@dataclass(frozen=True)
class Settings:
    folder: str = option("figures", "folder with the folders of finished runs")
    out: str = option("runs/figures", "folder for the figures, by the names of the runs")


def main(argv: list[str] | None = None) -> list[Path]:
    """Draw every figure; returns their paths."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    drawn = []
    paths = sorted(Path(settings.folder).glob("*/result.json"))
    for path in paths:
        name, draw = figure(path)
        folder = checkpoints.prepare(Path(settings.out, path.parent.name))
        checkpoints.write(folder / name, draw)
        print(folder / name, flush=True)
        drawn.append(folder / name)
    sparse = [result for path in paths if "sparsity" in (result := json.loads(path.read_text()))]
    for name, draw in sparse_figures.together(sparse).items():
        checkpoints.write(checkpoints.prepare(settings.out) / name, draw)
        print(Path(settings.out, name), flush=True)
        drawn.append(Path(settings.out, name))
    if not drawn:
        raise ValueError(f"{settings.folder} has no folder with a result.json")
    return drawn


def figure(path: Path) -> tuple[str, Callable[[Path], None]]:
    """The name of the figure of the run whose ``result.json`` is at ``path``, and what draws it."""
    result, folder = json.loads(path.read_text()), path.parent
    if "sparsity" in result:
        return "training.png", lambda out: plots.training_figure(out, results.title(result), result)
    if "experiments" in result:
        return "riemannian.png", lambda out: riemannian.figure(out, result["experiments"])
    if "problems" in result:
        return "natural_gradient.png", lambda out: conjugate_regression.regression_figure(out, result)
    if "target" in result:
        return "natural_gradient.png", lambda out: natural_gradient.images_figure(out, result)
    runs = result["runs"]
    if "table" in result:
        return "reliability.png", lambda out: shift_plots.reliability_figure(out, list(runs.values()))
    first = next(iter(runs.values()))
    if any("summary" in run for run in first.values() if isinstance(run, dict)):
        return "uci.png", lambda out: uci.figure(out, runs)
    if "baseline" in first:
        return "copying.png", lambda out: copying.figure(out, runs, copying.derivatives(folder))
    if "steps_per_epoch" in first:
        return "pixel_mnist.png", lambda out: pixel_mnist.figure(out, runs)
    if "translations" in first:
        return "translation.png", lambda out: translation.figure(out, runs)
    module, name = (video, "video.png") if "iterations" in first else (speech, "speech.png")
    return name, lambda out: module.figure(out, folder, runs)


if __name__ == "__main__":
    as_program(main)
