"""The next frame of speech: orthogonal kernels beside an LSTM and a plain RNN.

    python -m examples.papers.speech --data tones --minutes 0.5 --methods dtriv100,lstm --out runs/tones  # a minute
    python -m examples.papers.speech --out runs/speech  # spoken digits; five minutes a method, on one core
    python -m examples.papers.speech --data timit --folder TIMIT --decibels \
        --minutes inf --device cuda --out runs/timit \
        --nonlinearity modrelu --lr 1e-3 --kernel-lr 1e-4 --gated-lr 1e-3 \
        --methods dtriv1,dtriv100,dtriv-inf,exprnn,scornn,scurnn,cwy,lstm    # as published: 1,200 epochs, for a GPU

The protocol is that of Wisdom et al. (2016), whose settings are those of Lezcano-Casado (2019) in the last of these
commands; the defaults, tanh and higher rates, suit spoken digits better. Recordings at 8 kHz become
frames of 129 log-magnitudes, in dB, 16 ms apart (frames.py, ``log_magnitudes``), and from the frames up to t a
recurrent layer and a linear one predict frame t + 1. The error is the squared difference in dB², averaged over the 129
bins and over all frames that have a frame before them. No sequence is padded, neither for the network nor for the
error: an average that counts padding is too small. The published table is of the same average, of data whose unit its
paper does not say.

Networks with an orthogonal kernel have --hidden states, those of scurnn, lstm, gru and rnn so many that there are about
as many parameters as for a rotation. Adam trains all parameters but those of the kernel, which RMSprop does (as
published, but for the LSTM, which had RMSprop). All have the same budget: --epochs or --minutes, whichever ends first;
the minutes include validating after each epoch. The test error is of the weights that were best in validation. Beside
it are the errors of repeating the previous frame and of the mean frame of the training recordings.

Spoken digits are read from $MNVI_DATA/fsdd.npz or a folder of WAV files; TIMIT, which is not free, from a user's own
folder (frames.py, ``digits`` and ``timit``). The networks see each bin shifted and scaled to mean 0 and variance 1;
those of Wisdom et al. saw the decibels themselves (--decibels), which gates and tanh hardly learn from, so that it
makes an LSTM look worse than it is. The error is in dB² in both cases.

A killed run continues where it was. Methods may run at the same time into one folder; the figure shows all there are.
"""

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import arrays, finished, report
from examples.common.training import Best, train
from examples.papers.frames import BINS, HOP, RATE, Recordings, Speech, load
from examples.papers.recurrent import COMPLEX, GATED, KERNELS, Network, adaptive, parameters

METHODS = (*KERNELS, *GATED)
# What a checkpoint is not bound to:
TRANSIENT = ("methods", "folder", "epochs", "minutes", "threads", "device", "out", "restart")


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option(
        "dtriv100,exprnn,cwy,lstm,rnn", f"what to run, of {', '.join(METHODS)}; '' only draws the figure"
    )
    data: Literal["tones", "fsdd", "timit"] = option("fsdd", "gliding tones, spoken digits or TIMIT")
    folder: str | None = option(None, "with the recordings (default: $MNVI_DATA for fsdd, $MNVI_DATA/timit for timit)")
    decibels: bool = option(False, "show the networks decibels, as published, not bins of mean 0 and variance 1")
    hidden: int = option(224, "states of a layer with an orthogonal kernel")
    nonlinearity: Literal["modrelu", "tanh", "relu", "abs"] = option("tanh", "of such a layer; published modrelu")
    epochs: int = option(1200, "passes over the training recordings, at most")
    minutes: float = option(5.0, "of the processor, for each method, at most")
    batch_size: int = option(128, "recordings a step")
    lr: float = option(3e-3, "rate of ordinary parameters; published 1e-3")
    kernel_lr: float = option(1e-3, "rate of what the orthogonal kernel is made from; published 1e-4")
    gated_lr: float = option(3e-3, "rate of the LSTM, GRU and plain RNN; published 1e-3")
    seed: int = option(0, "of initial weights, the order of the recordings, and the tones")
    device: str = option("cpu", "where to train")
    threads: int = option(1, "CPU threads")
    out: str = option("runs/speech", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        command_line.names(self.methods, METHODS)
        command_line.at_least(self, LEAST)

    @property
    def names(self) -> list[str]:
        return command_line.names(self.methods, METHODS)


RATES = ("lr", "kernel_lr", "gated_lr")
LEAST = {
    "hidden": 2,
    "epochs": 1,
    "minutes": 1e-9,
    "batch_size": 1,
    "threads": 1,
    **dict.fromkeys(RATES, 1e-12),
}


def main(argv: list[str] | None = None) -> dict:
    """Run the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # vanishing states would slow down the baselines
    folder = checkpoints.prepare(settings.out)
    if settings.names:
        command_line.device(settings.device)
        speech = load(settings.data, settings.folder, settings.seed)
        for name in settings.names:
            run(name, settings, speech, folder)
    return collect(folder)


class Predictor(Network):
    """A recurrent layer and a linear one, from frames in dB to the following frames in dB.

    Args:
        method: one of ``METHODS``.
        hidden_size: states.
        nonlinearity: of a layer with an orthogonal kernel.
        mean, std: of each bin, (129,), which the layers do not see; by default they see dB.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        method: str,
        hidden_size: int,
        nonlinearity: str = "tanh",
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__(method, BINS, hidden_size, BINS, init="henaff", nonlinearity=nonlinearity)
        self.register_buffer("mean", torch.zeros(BINS) if mean is None else mean)
        self.register_buffer("std", torch.ones(BINS) if std is None else std)

    def forward(self, x: PackedSequence) -> Tensor:
        """Predictions for all frames, packed as ``x`` is, (total, 129)."""
        states = self.recurrent(x._replace(data=(x.data - self.mean) / self.std))[0].data
        outputs = self.head(torch.view_as_real(states).flatten(-2) if states.is_complex() else states)
        return outputs * self.std + self.mean


@cache
def size(method: str, hidden: int) -> int:
    """States with which a network has about as many parameters as one with a rotation of ``hidden`` states."""
    if method not in (*GATED, *COMPLEX):
        return hidden
    count = lambda method, n: parameters(Network(method, BINS, n, BINS))  # noqa: E731
    wanted = count("exprnn", hidden)
    above = bisect_left(range(1, 4 * hidden), wanted, key=lambda n: count(method, n)) + 1
    return min((max(above - 1, 1), above), key=lambda n: abs(count(method, n) - wanted))


def run(method: str, settings: Settings, speech: Speech, folder: Path) -> None:
    """Train one network and write ``method.json`` and ``method.npz``, a recording and its prediction."""
    hidden = size(method, settings.hidden)
    torch.manual_seed(settings.seed)
    frames = speech.train.frames
    scale = () if settings.decibels else (frames.mean(0), frames.std(0).clamp_min(1.0))
    model = Predictor(method, hidden, settings.nonlinearity, *scale).to(settings.device)
    lr = settings.gated_lr if method in GATED else settings.lr
    optimisers, best = adaptive(model, lr, settings.kernel_lr, adam=True), Best(model)
    data, validation, test = (part.to(settings.device) for part in (speech.train, speech.validation, speech.test))
    steps = math.ceil(len(data) / settings.batch_size)
    evaluate = lambda part: mean_squared_error(model, part, settings.batch_size)  # noqa: E731

    @lru_cache(maxsize=1)
    def batches(epoch: int) -> tuple[Tensor, ...]:
        return data.batches(settings.batch_size, torch.Generator().manual_seed(1_000_003 * settings.seed + epoch))

    def step(i: int) -> dict[str, float]:
        epoch, place = divmod(i, steps)
        batch = data.batch(batches(epoch)[place])
        loss = F.mse_loss(model(batch.frames), batch.following)
        model.zero_grad()
        loss.backward()
        for optimiser in optimisers.values():
            optimiser.step()
        row = {"loss": loss.item()}
        if place == steps - 1:
            row["validation"] = best.compare(evaluate(validation))
        return row

    fixed = {k: v for k, v in asdict(settings).items() if k not in TRANSIENT}
    finished(folder, [name for name in METHODS if name != method], fixed)
    limits = {"title": method, "minutes": settings.minutes, "restart": settings.restart}
    everything = {"model": model, "best": best, **optimisers}
    progress = train(folder / f"{method}.pt", everything, fixed, settings.epochs * steps, step, **limits)
    if best.error == math.inf:  # the time was up before the first validation
        best.compare(evaluate(validation))
    model.load_state_dict(best.weights)
    rows = {key: [round(row[key], 4) for row in progress["history"] if key in row] for key in ("loss", "validation")}
    result = {
        **{"method": method, "data": speech.title, "settings": {**fixed, "threads": settings.threads}},
        **{"versions": checkpoints.versions(), "hidden": hidden, "parameters": parameters(model)},
        **{"seconds": progress["seconds"], "epochs": len(progress["history"]) / steps, "validation error": best.error},
        **{"test error": evaluate(test), "baselines": baselines(speech), **rows},
    }
    shown: dict = sample(model, test)
    checkpoints.write(folder / f"{method}.npz", lambda path: np.savez_compressed(path, **shown))
    checkpoints.write_json(folder / f"{method}.json", result)


@torch.no_grad()
def mean_squared_error(model: nn.Module, recordings: Recordings, batch_size: int) -> float:
    """The squared error in dB², averaged over bins and all predicted frames."""
    total = frames = 0
    for numbers in recordings.batches(batch_size):
        batch = recordings.batch(numbers)
        total += F.mse_loss(model(batch.frames), batch.following, reduction="sum").item()
        frames += len(batch.following)
    return total / (frames * BINS)


def baselines(speech: Speech) -> dict[str, float]:
    """The test errors of two predictions that need no network."""
    test, mean = speech.test.batch(torch.arange(len(speech.test))), speech.train.frames.mean(0)
    previous = F.mse_loss(test.frames.data, test.following)
    return {
        "previous frame": previous.item(),
        "mean frame": F.mse_loss(mean.expand_as(test.following), test.following).item(),
    }


@torch.no_grad()
def sample(model: nn.Module, recordings: Recordings) -> dict[str, np.ndarray]:
    """A long test recording without its first frame, and the prediction of it, (time, 129)."""
    number = recordings.lengths.argsort(stable=True)[len(recordings) * 9 // 10]
    batch = recordings.batch(number[None])
    return {"frames": batch.following.cpu().numpy(), "prediction": model(batch.frames).cpu().numpy()}


def collect(folder: Path) -> dict:
    """Put all methods' results in ``folder`` into ``result.json`` and ``speech.png``."""
    runs = finished(folder, METHODS)
    for name, each in runs.items():
        print(
            f"{name:10} {each['hidden']:4} states {each['parameters']:8,} parameters {each['epochs']:7.1f} epochs "
            f"{each['seconds']:6.0f} s   dB²: validation {each['validation error']:.2f}, test {each['test error']:.2f}"
        )
    for name, error in next(iter(runs.values()), {"baselines": {}})["baselines"].items():
        print(f"{name:80} test {error:.2f}")
    return report(folder, "speech", {"runs": runs}, lambda path: figure(path, folder, runs))


COLORS = {name: f"C{i % 10}" for i, name in enumerate(METHODS)}
ACROSS = 5  # spectrograms beside each other, at most


def figure(path: Path, folder: Path, runs: dict[str, dict]) -> None:
    """Validation errors over epochs and over time; a test recording and its predictions, where they are kept."""
    sounds = {name: arrays(kept) for name in runs if (kept := folder / f"{name}.npz").exists()}
    heights = [4.2] + [2.4 * math.ceil((len(sounds) + 1) / ACROSS)] * bool(sounds)
    canvas = Figure(figsize=(12, sum(heights)), dpi=150, layout="constrained")
    first = next(iter(runs.values()))
    canvas.suptitle(f"The next frame of {first['data']}", fontsize=13)
    upper, *lower = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    by_epoch, by_time = upper.subplots(1, 2, sharey=True)
    for name, each in runs.items():
        _curves(by_epoch, by_time, name, each)
    errors = [error for each in runs.values() for error in each["validation"]]
    top = 1.02 * np.quantile(errors, 0.98) if errors else None  # without single spikes
    for axes, label in ((by_epoch, "epoch"), (by_time, "minutes of the processor")):
        axes.set(xlabel=label, xlim=(0, None), yscale="log", ylim=(None, top))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    by_epoch.set_ylabel("mean squared error, dB² (validation)")
    by_time.legend(frameon=False)
    if sounds:
        _spectrograms(lower[0], sounds)
    canvas.savefig(path)


def _spectrograms(lower: SubFigure, sounds: dict[str, dict]) -> None:
    pictures = {"recording": next(iter(sounds.values()))["frames"]} | {k: v["prediction"] for k, v in sounds.items()}
    across = min(ACROSS, len(pictures))
    down = math.ceil(len(pictures) / across)
    panels = [*lower.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    for axes, (name, frames) in zip(panels, pictures.items(), strict=False):
        extent = (0, len(frames) * HOP / RATE, 0, RATE / 2000)
        options = {
            "aspect": "auto",
            "origin": "lower",
            "extent": extent,
            "vmin": -50,
            "vmax": pictures["recording"].max(),
        }
        image = axes.imshow(frames.T, **options)
        axes.set(title=name, xlabel="seconds", ylabel="kHz")
        axes.label_outer()
    lower.colorbar(image, ax=list(lower.axes), label="dB")
    for axes in panels[len(pictures) :]:
        axes.set_axis_off()


def _curves(by_epoch: Axes, by_time: Axes, name: str, each: dict) -> None:
    errors = np.array(each["validation"] or [each["validation error"]])
    epochs = np.arange(1, len(errors) + 1) if each["validation"] else np.array([each["epochs"]])
    options = {"color": COLORS[name], "label": f"{name}: test {each['test error']:.2f}", "marker": ".", "markersize": 3}
    by_epoch.plot(epochs, errors, **options)
    by_time.plot(epochs * each["seconds"] / each["epochs"] / 60, errors, **options)


if __name__ == "__main__":
    command_line.as_program(main)
