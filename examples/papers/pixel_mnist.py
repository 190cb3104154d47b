"""MNIST read one pixel a step, in order or permuted: orthogonal kernels beside an LSTM.

    python -m examples.papers.pixel_mnist --data digits --epochs 20  # 8×8 images, a minute, no network needed
    python -m examples.papers.pixel_mnist --methods dtriv100,cwy,lstm --minutes 30 --out runs/pixel
    python -m examples.papers.pixel_mnist --methods dtriv100,cwy,lstm --minutes 30 --permuted --out runs/pixel-permuted
    python -m examples.papers.pixel_mnist --methods dtriv1,dtriv100,dtriv-inf,exprnn,scornn,scurnn,cwy,lstm,rgd \
        --hidden 512 --device cuda --out runs/pixel-512               # as published: 70 epochs, for a GPU

Settings of Lezcano-Casado (2019): batches of 128, RMSprop, rates 7e-4 and 7e-5, Cayley initialisation, 70 epochs,
hidden 170, 360 or 512, the permutation of numpy's RandomState(92916). An epoch of 55,000 images at N = 170 takes some
minutes on one core of a CPU; --minutes, of the processor, stops each method. The published figures are the best test
accuracy of all epochs; here the last is given beside that of the epoch that is best on held-out training images.

A killed run continues where it was. Methods may run at the same time into one folder; the figure shows all that are
there.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import Optimizer, RMSprop

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import finished, report
from examples.common.data import hold_out, load
from examples.common.training import train
from examples.papers.recurrent import GATED, KERNELS, POINTS, Network, adaptive, parameters
from mnvi.manifolds import Orthogonal
from mnvi.optim import RiemannianSGD

METHODS = (*KERNELS, "rgd", *GATED)


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option("dtriv100,cwy,lstm", f"what to train, of {', '.join(METHODS)}; '' only draws the figure")
    data: Literal["digits", "mnist", "fashion_mnist"] = option("mnist", "images to classify")
    permuted: bool = option(False, "permute the pixels")
    hidden: int = option(170, "states of the recurrent layers")
    lstm_hidden: int = option(None, "states of the LSTM, GRU and plain RNN (default: of an LSTM as large as dtriv)")
    epochs: int = option(70, "passes over the training images")
    minutes: float = option(math.inf, "of the processor, after which each method stops")
    batch_size: int = option(128, "training images a step")
    lr: float = option(7e-4, "rate of ordinary parameters")
    kernel_lr: float = option(7e-5, "rate of what the orthogonal kernel is made from")
    lstm_lr: float = option(1e-3, "rate of the LSTM, GRU and plain RNN")
    clip: float = option(None, "largest norm of the gradient of the LSTM, GRU and plain RNN (default: none)")
    validation: int = option(None, "training images held out (default: 137 for digits, else 5000)")
    every: int = option(100, "steps between two looks at (some of) the held-out images")
    seed: int = option(0, "of initial weights and the order of the images")
    device: str = option("cpu", "cpu, or cuda")
    threads: int = option(2, "CPU threads")
    out: str = option("runs/pixel", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        command_line.names(self.methods, METHODS)
        command_line.at_least(self, LEAST)
        if self.validation is None:
            object.__setattr__(self, "validation", 137 if self.data == "digits" else 5000)
        if self.lstm_hidden is None:
            object.__setattr__(self, "lstm_hidden", same_size(self.hidden))

    @property
    def names(self) -> list[str]:
        return command_line.names(self.methods, METHODS)


LEAST = {
    **dict.fromkeys(("hidden", "lstm_hidden", "epochs", "batch_size", "validation", "every", "threads"), 1),
    **dict.fromkeys(("lr", "kernel_lr", "lstm_lr", "clip", "minutes"), 1e-12),
}
CLASSES = 10
SHOWN = 2000  # of the held-out images, for the curve within an epoch
NOT_OF_THE_RESULT = ("methods", "epochs", "minutes", "device", "threads", "out", "restart")


def same_size(hidden: int) -> int:
    """Units of an LSTM with about as many parameters as a network with a rotation of ``hidden`` rows."""
    wanted = hidden * (hidden - 1) // 2 + 2 * hidden + CLASSES * (hidden + 1)
    return next(n for n in range(1, hidden + 1) if 4 * n * (n + 3) + CLASSES * (n + 1) >= wanted or n == hidden)


def main(argv: list[str] | None = None) -> dict:
    """Train the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # vanishing gradients would slow down the baselines
    folder = checkpoints.prepare(settings.out)
    if settings.names:
        command_line.device(settings.device)
        images = sequences(settings)
    for name in settings.names:
        run(name, settings, images, folder)
    return collect(folder)


def sequences(settings: Settings) -> dict[str, tuple[Tensor, Tensor]]:
    """By "train", "held out" and "test" the pixels from 0 to 1, (time, images, 1), and the labels."""
    data, held_x, held_y = hold_out(load(settings.data), settings.validation)
    low, high = data.train_x.min(), data.train_x.max()
    pixels = data.train_x[0].numel()
    order = np.random.RandomState(92916).permutation(pixels) if settings.permuted else np.arange(pixels)

    def prepare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        flat = ((x - low) / (high - low)).flatten(1)[:, torch.from_numpy(order)]
        return flat.T.unsqueeze(-1).to(settings.device), y.to(settings.device)

    parts = {"train": (data.train_x, data.train_y), "held out": (held_x, held_y), "test": (data.test_x, data.test_y)}
    return {name: prepare(*part) for name, part in parts.items()}


def run(method: str, settings: Settings, images: dict[str, tuple[Tensor, Tensor]], folder: Path) -> None:
    """Train one network and write ``method.json``."""
    torch.manual_seed(settings.seed)
    hidden = settings.lstm_hidden if method in GATED else settings.hidden
    model = Network(method, 1, hidden, CLASSES, init="cayley").to(settings.device)
    optimisers = _optimisers(model, method, settings)
    x, y = images["train"]
    steps = math.ceil(len(y) / settings.batch_size)

    def step(i: int) -> dict[str, float]:
        epoch, place = divmod(i, steps)
        generator = torch.Generator().manual_seed(100_000 * settings.seed + epoch)
        batch = torch.randperm(len(y), generator=generator).split(settings.batch_size)[place].to(settings.device)
        loss = F.cross_entropy(model.last(x[:, batch]), y[batch])
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        loss.backward()
        if method in GATED and settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for optimiser in optimisers.values():
            optimiser.step()
        record = {"loss": loss.item()}
        if place == steps - 1:
            record |= {name: accuracy(model, *images[name]) for name in ("held out", "test")}
        elif (i + 1) % settings.every == 0:
            held_x, held_y = images["held out"]
            record["some held out"] = accuracy(model, held_x[:, :SHOWN], held_y[:SHOWN])
        return record

    fixed = {name: value for name, value in asdict(settings).items() if name not in NOT_OF_THE_RESULT}
    finished(folder, [name for name in METHODS if name != method], fixed)
    progress = train(
        folder / f"{method}.pt",
        {"model": model, **optimisers},
        fixed,
        settings.epochs * steps,
        step,
        title=method,
        minutes=settings.minutes,
        restart=settings.restart,
    )
    history = progress["history"]
    result = {
        **{"method": method, "settings": {**fixed, "minutes": str(settings.minutes), "threads": settings.threads}},
        **{"versions": checkpoints.versions(), "hidden": hidden, "parameters": parameters(model)},
        **{"seconds": progress["seconds"], "steps": len(history), "steps_per_epoch": steps},
        "last": {name: accuracy(model, *images[name]) for name in ("held out", "test")},
        "epochs": [each for each in history if "test" in each],
        "curve": [
            [i + 1, each.get("held out", each.get("some held out"))] for i, each in enumerate(history) if len(each) > 1
        ],
        "loss": [round(each["loss"], 6) for each in history],
    }
    checkpoints.write_json(folder / f"{method}.json", result)


@torch.no_grad()
def accuracy(model: Network, x: Tensor, y: Tensor) -> float:
    """Per cent of the images that are classified right."""
    model.eval()
    right = sum(int((model.last(a).argmax(1) == b).sum()) for a, b in zip(x.split(500, 1), y.split(500), strict=True))
    model.train()
    return 100 * right / len(y)


def _optimisers(model: Network, method: str, settings: Settings) -> dict[str, Optimizer]:
    if method not in POINTS:
        return adaptive(model, settings.lstm_lr if method in GATED else settings.lr, settings.kernel_lr)
    group = {"params": model.kernel_parameters(), "manifold": Orthogonal(retraction="cayley")}
    rest = RMSprop(model.other_parameters(), lr=settings.lr)
    return {"optimiser": rest, "kernel optimiser": RiemannianSGD([group], lr=settings.kernel_lr)}


def collect(folder: Path) -> dict:
    """Put all methods' results in ``folder`` into ``result.json`` and ``pixel_mnist.png``."""
    runs = finished(folder, METHODS)
    for name, each in runs.items():
        epochs = each["epochs"]
        chosen = max(epochs, key=lambda epoch: epoch["held out"], default=None)
        best = max((epoch["test"] for epoch in epochs), default=None)
        each["chosen test"], each["best test"] = chosen and chosen["test"], best
        chosen_text = (
            f", at the best epoch on held-out images {chosen['test']:.2f}, best of all {best:.2f}" if chosen else ""
        )
        print(
            f"{name:10} {each['parameters']:7,} parameters, {each['seconds'] / 60:5.1f} min, "
            f"{each['steps'] / each['steps_per_epoch']:5.2f} epochs: "
            f"test accuracy {each['last']['test']:.2f} %{chosen_text}"
        )
    return report(folder, "pixel_mnist", {"runs": runs}, lambda path: figure(path, runs))


def figure(path: Path, runs: dict[str, dict]) -> None:
    """Loss and held-out accuracy over the epochs."""
    canvas = Figure(figsize=(10.4, 4.2), dpi=150, layout="constrained")
    left, right = canvas.subplots(1, 2)
    for i, name in enumerate(each for each in METHODS if each in runs):
        each = runs[name]
        loss, width = np.array(each["loss"]), max(1, len(each["loss"]) // 100)
        smooth = np.convolve(loss, np.full(width, 1 / width), "valid")
        left.plot(np.arange(width, len(loss) + 1) / each["steps_per_epoch"], smooth, color=f"C{i}", label=name)
        if each["curve"]:
            steps, values = np.array(each["curve"]).T
            right.plot(steps / each["steps_per_epoch"], values, color=f"C{i}", label=name)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    right.set(xlabel="epoch", ylabel="accuracy on held-out images (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    settings = next(iter(runs.values()))["settings"]
    permuted = ", permuted" if settings["permuted"] else ""
    canvas.suptitle(f"{settings['data']} pixel by pixel{permuted}, N = {settings['hidden']}", fontsize=13)
    canvas.savefig(path)


if __name__ == "__main__":
    command_line.as_program(main)
