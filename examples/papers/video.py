"""The next frame of a film: ConvNERU with its transition on the Stiefel manifold, free, or zero, and ConvLSTM.

    python -m examples.papers.video  # small digits, a minute a method: what it does
    python -m examples.papers.video --data moving-mnist --out runs/video  # ten minutes a method
    python -m examples.papers.video --data kth --folder KTH --action walking --methods tcwy,own \
        --minutes 600 --out runs/kth

From the frames up to t the network predicts frame t + 1; loss and metric are the absolute error summed over the pixels
and averaged over the frames. Every method gets the same time, ``--minutes``, validation included, and is tested with
the weights that were best on the validation clips. The results also tell the error of predicting a black frame and of
predicting the last frame again. The layout of a folder of KTH clips is in clips.py, ``kth``; the published runs are
150 epochs of the clips of one action with the settings that ``--data kth`` has, which is for a GPU (``--device cuda``).

The network is a stack of recurrent units of 1, 2, 4, 2 and 1 × width channels, at a quarter of the frame's height and
width, an eighth, a sixteenth, and back, with strided and transposed convolutions between them and skip connections.
The units are ConvNERU with a kernel by T-CWY (tcwy) or OWN (own), free from a Glorot (glorot) or an orthonormal start
(orth), always zero (zeros), stepped by Riemannian gradient descent for the canonical (c) or Euclidean (e) metric with
Cayley (c) or QR retractions (rgd-c-c, rgd-e-c, rgd-c-qr, rgd-e-qr) or by Cayley Adam (cayley-adam); or ConvLSTM with
instance normalisation (convlstm). Everything else is trained by Adam.

A killed run continues where it was; a longer time continues a finished one. Methods may run at the same time into one
folder; the figure shows all that are there.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import arrays, finished, report
from examples.common.training import Best, train
from examples.papers.clips import ACTIONS, Batch, Clips, Split, kth, moving
from examples.papers.convolutional import METHODS, Network, optimisers

DEFAULTS = {
    "digits": {"width": 4, "batch_size": 4, "frames": 10, "minutes": 1.0},
    "moving-mnist": {"width": 8, "batch_size": 4, "frames": 10, "minutes": 10.0},
    "kth": {"width": 32, "batch_size": 3, "frames": None, "minutes": math.inf},
}
# What a checkpoint is not bound to:
TRANSIENT = ("methods", "folder", "iterations", "minutes", "threads", "device", "out", "restart")


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option(
        "tcwy,zeros,glorot,convlstm", f"what to run, of {', '.join(METHODS)}; '' only draws the figure"
    )
    data: Literal["digits", "moving-mnist", "kth"] = option("digits", "films to predict")
    folder: str | None = option(None, "folder with the clips of kth (default: $MNVI_DATA/kth)")
    action: str | None = option(None, f"only this one of kth's actions: {', '.join(ACTIONS)}")
    frames: int | None = option(None, "of a clip (default: all for kth, else 10)")
    width: int = option(None, "channels of the outermost units (default: 4 for digits, 8 for moving-mnist, 32 for kth)")
    kernel_size: int = option(3, "of the recurrent units")
    batch_size: int = option(None, "clips a step (default: 3 for kth, else 4)")
    lr: float = option(1e-3, "rate of Adam and Cayley Adam")
    rgd_lr: float = option(1e-4, "rate of Riemannian gradient descent")
    iterations: int = option(100_000, "steps at most")
    minutes: float = option(
        None, "of the processor, for each method (default: 1 for digits, 10 for moving-mnist, none for kth)"
    )
    every: int = option(100, "steps between two validations")
    validation: int = option(64, "clips of bouncing digits to validate with")
    test: int = option(256, "clips of bouncing digits to test with")
    seed: int = option(0, "of initial weights and training clips")
    device: str = option("cpu", "where to train")
    threads: int = option(2, "CPU threads")
    out: str = option("runs/video", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        for name, value in DEFAULTS[self.data].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        command_line.names(self.methods, METHODS)
        if self.action not in (None, *ACTIONS):
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {self.action}")
        command_line.at_least(self, LEAST)

    @property
    def names(self) -> list[str]:
        return command_line.names(self.methods, METHODS)


COUNTS = ("width", "kernel_size", "batch_size", "iterations", "every", "validation", "test", "threads")
LEAST = {**dict.fromkeys(COUNTS, 1), "frames": 2, "minutes": 1e-9, "seed": 0, "lr": 1e-12, "rgd_lr": 1e-12}


def main(argv: list[str] | None = None) -> dict:
    """Run the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # vanishing states would slow down the baselines
    folder = checkpoints.prepare(settings.out)
    if settings.names:
        command_line.device(settings.device)
        films = _films(settings)
        for name in settings.names:
            run(name, settings, films, folder)
    return collect(folder)


def run(method: str, settings: Settings, films: Clips, folder: Path) -> None:
    """Train one network and write ``method.json`` and ``method.npz``, a film and its prediction."""
    torch.manual_seed(settings.seed)
    model = Network(method, settings.width, settings.kernel_size).to(settings.device)
    parts = optimisers(model, method, settings.lr, settings.rgd_lr)
    best = Best(model)

    def step(i: int) -> dict[str, float]:
        numbers = np.random.default_rng((settings.seed, i)).integers(len(films.train), size=settings.batch_size)
        error, frames = absolute_error(model, films.train.batch(numbers))
        model.zero_grad()
        (error / frames).backward()
        for optimiser in parts.values():
            optimiser.step()
        row = {"loss": error.item() / frames}
        if (i + 1) % settings.every == 0:
            row["validation"] = best.compare(evaluate(model, films.validation, settings.batch_size))
        return row

    fixed = {k: v for k, v in asdict(settings).items() if k not in TRANSIENT}
    finished(folder, [name for name in METHODS if name != method], fixed)
    limits = {"title": method, "minutes": settings.minutes, "restart": settings.restart}
    everything = {"model": model, "best": best, **parts}
    progress = train(folder / f"{method}.pt", everything, fixed, settings.iterations, step, **limits)
    if best.error == math.inf:  # the time was up before the first validation
        best.compare(evaluate(model, films.validation, settings.batch_size))
    model.load_state_dict(best.weights)
    history = list(enumerate(progress["history"], 1))
    result = {
        "method": method,
        "data": films.title,
        "settings": {**fixed, "threads": settings.threads},
        "versions": checkpoints.versions(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "iterations": len(history),
        "seconds": progress["seconds"],
        "validation error": best.error,
        "test error": evaluate(model, films.test, settings.batch_size),
        "baselines": baselines(films.test),
        **{key: [[i, round(row[key], 4)] for i, row in history if key in row] for key in ("loss", "validation")},
    }
    sample = films.test.batch([0])
    with torch.no_grad():
        prediction = model(sample.frames[:-1].to(settings.device))
    arrays = {"film": sample.frames[1:, 0, 0].numpy(), "prediction": prediction[:, 0, 0].cpu().numpy()}
    checkpoints.write(folder / f"{method}.npz", lambda path: np.savez_compressed(path, **arrays))
    checkpoints.write_json(folder / f"{method}.json", result)


def absolute_error(model: Network, batch: Batch) -> tuple[Tensor, int]:
    """|prediction − frame| summed over the pixels of all predicted frames, and how many these are."""
    device = next(model.parameters()).device
    frames, mask = batch.frames.to(device), batch.mask[1:].to(device)
    errors = (model(frames[:-1]) - frames[1:]).abs().sum((2, 3, 4))
    return (errors * mask).sum(), int(mask.sum())


@torch.no_grad()
def evaluate(model: Network, split: Split, batch_size: int) -> float:
    """The absolute error of a frame, averaged over all predicted frames."""
    model.eval()
    parts = [absolute_error(model, batch) for batch in _batches(split, batch_size)]
    model.train()
    return sum(error.item() for error, _ in parts) / sum(frames for _, frames in parts)


def baselines(split: Split) -> dict[str, float]:
    """The absolute error of two predictions that need no network."""
    black = again = frames = 0.0
    for x, mask in _batches(split, 16):
        black += (x[1:].sum((2, 3, 4)) * mask[1:]).sum().item()
        again += ((x[1:] - x[:-1]).abs().sum((2, 3, 4)) * mask[1:]).sum().item()
        frames += mask[1:].sum().item()
    return {"black frame": black / frames, "last frame": again / frames}


def _batches(split: Split, size: int):
    return (split.batch(range(start, min(start + size, len(split)))) for start in range(0, len(split), size))


def _films(settings: Settings) -> Clips:
    if settings.data == "kth":
        return kth(settings.folder, settings.action, settings.frames)
    name = "mnist" if settings.data == "moving-mnist" else "digits"
    return moving(name, settings.frames or 10, settings.validation, settings.test, settings.seed)


def collect(folder: Path) -> dict:
    """Put all methods' results in ``folder`` into ``result.json`` and ``video.png``."""
    runs = finished(folder, METHODS)
    for name, each in runs.items():
        print(
            f"{name:12} {each['iterations']:6} iterations {each['seconds']:6.0f} s {each['parameters']:9,} parameters"
            f"   absolute error of a frame: validation {each['validation error']:.2f}, test {each['test error']:.2f}"
        )
    for name, error in next(iter(runs.values()), {"baselines": {}})["baselines"].items():
        print(f"{name:12} {'test':>64} {error:.2f}")
    return report(folder, "video", {"runs": runs}, lambda path: figure(path, folder, runs))


COLORS = {name: f"C{i}" for i, name in enumerate(METHODS[:10])} | {"convlstm": "black"}
SHOWN = 9  # frames of the film, at most


def figure(path: Path, folder: Path, runs: dict[str, dict]) -> None:
    """Validation errors over steps and over time; a test clip and what each method predicts of it, where it is kept."""
    films = {name: arrays(kept) for name in runs if (kept := folder / f"{name}.npz").exists()}
    heights = [4.4] + [1.25 * (len(films) + 1)] * bool(films)
    canvas = Figure(figsize=(12, sum(heights)), dpi=150, layout="constrained")
    canvas.suptitle(f"One frame ahead: {next(iter(runs.values()))['data']}", fontsize=13)
    upper, *lower = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    by_step, by_time = upper.subplots(1, 2, sharey=True)
    for name, each in runs.items():
        steps, errors = np.array(each["validation"] or [[each["iterations"], each["validation error"]]]).T
        options = {
            "color": COLORS[name],
            "label": f"{name}: test {each['test error']:.1f}",
            "marker": ".",
            "markersize": 3,
        }
        by_step.plot(steps, errors, **options)
        by_time.plot(steps * each["seconds"] / each["iterations"] / 60, errors, **options)
    _finish(by_step, runs, "iteration")
    _finish(by_time, runs, "minutes of the processor")
    by_step.set_ylabel("absolute error of a frame, validation")
    by_time.legend(frameon=False)
    if films:
        _clip(lower[0], films)
    canvas.savefig(path)


def _clip(lower: SubFigure, films: dict[str, dict]) -> None:
    film = next(iter(films.values()))["film"]
    shown = np.linspace(0, len(film) - 1, min(SHOWN, len(film))).round().astype(int)
    rows = {"film": film} | {name: each["prediction"] for name, each in films.items()}
    for (name, frames), axes in zip(rows.items(), lower.subplots(len(rows), len(shown), squeeze=False), strict=True):
        for i, panel in zip(shown, axes, strict=True):
            panel.imshow(frames[i], cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[], title=f"frame {i + 2}" if name == "film" else "")
        axes[0].set_ylabel(name)


def _finish(axes: Axes, runs: dict[str, dict], label: str) -> None:
    baseline = next(iter(runs.values()))["baselines"]["last frame"]
    axes.axhline(baseline, color="black", linestyle=":", linewidth=1)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate("last frame again", (0.99, baseline), fontsize=9, **where)
    axes.set(xlabel=label, xlim=(0, None))
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    command_line.as_program(main)
