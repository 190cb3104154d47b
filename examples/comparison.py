"""A trained CNN made Bayesian beside what people use instead: calibration, strange and corrupted images, cost.

    python -m examples.comparison                                               # handwritten digits, a minute
    python -m examples.comparison --data fashion_mnist --images 2000 --seeds 1 --out runs/comparison-small
    python -m examples.comparison --data fashion_mnist --out runs/comparison-fashion
    python -m examples.comparison --data mnist --network noisy-mlp --images 60000 --epochs 30 --out runs/comparison-mlp

A network is trained for --epochs. Every method starts from its weights and trains for as many more, the plain network
too. The members of the ensemble are trained from scratch for all of them. So is IVON in a second try; the held-out
images choose between the two. `make compare` installs what IVON and Laplace's approximation need: without it they are
left out.

Every method and seed has a JSON file of its own when it is done, and a killed run goes on with the next one.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from examples.baselines.contest import INSTALL, METHODS, Contest
from examples.baselines.draws import Training
from examples.baselines.networks import NETWORKS
from examples.common import checkpoints, command_line, comparison, scores, shift_plots
from examples.common.command_line import check, option, parse
from examples.common.trial import Trial


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option(",".join(METHODS), "what to compare; '' only draws the figures")
    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = option("digits", "images to classify")
    network: Literal["cnn", "mlp", "noisy-mlp"] = option(
        "cnn", "convolutions of 16 and 32 channels before 64 units; 400-400; or the latter trained with noise"
    )
    images: int = option(20_000, "training images at most", 1)
    held_out: int = option(None, "training images held out (default: 300 of digits, else 2000)", 10)
    test: int = option(None, "test images at most (default: all)", 10)
    shifted: int = option(
        None, "images of each corruption, and of no known class (default: 180 of digits, else 1000)", 10
    )
    epochs: int = option(None, "of the first training, and of the second one (default: 12 for digits, else 4)", 1)
    batch_size: int = option(None, "images a step (default: 32 for digits, else 128)", 1)
    lr: float = option(1e-2, "first learning rate of Adam, as mnvi.fit takes it", 1e-12)
    kl_weight: float = option(None, "of the Bayesian networks (default: that of mnvi.fit)", 0)
    draws: int = option(None, "of the weights, for predictions (default: 32 for digits, else 64)", 2)
    members: int = option(5, "of the ensemble", 2)
    dropout: float = option(0.25, "probability of MC dropout", 0, 0.99)
    seeds: int = option(None, "repetitions (default: 1 for digits, else 5)", 1)
    threads: int = option(1, "CPU threads", 1)
    out: str = option("runs/comparison", "folder for the results")

    def __post_init__(self) -> None:
        command_line.names(self.methods, tuple(METHODS))
        check(self, DIGITS if self.data == "digits" else OTHERS)

    @property
    def names(self) -> list[str]:
        """The methods, in the order of the table."""
        wanted = command_line.names(self.methods, tuple(METHODS))
        return [name for name in METHODS if name in wanted]


DIGITS = {"held_out": 300, "shifted": 180, "epochs": 12, "batch_size": 32, "draws": 32, "seeds": 1}
OTHERS = {"held_out": 2000, "shifted": 1000, "epochs": 4, "batch_size": 128, "draws": 64, "seeds": 5}
NOT_OF_THE_RESULT = ("methods", "seeds", "threads", "out")


def main(argv: list[str] | None = None) -> dict:
    """Train and measure what is not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    folder = checkpoints.prepare(settings.out)
    fixed = {name: value for name, value in asdict(settings).items() if name not in NOT_OF_THE_RESULT}
    done = finished(folder, settings, fixed)
    left = [(seed, name) for seed in range(settings.seeds) for name in present(settings) if (seed, name) not in done]
    if left:
        trial = Trial.load(settings.data, settings.images, settings.held_out, settings.test, settings.shifted)
    for seed, name in left:
        run(name, seed, settings, fixed, trial, folder)
    return collect(folder, finished(folder, settings, fixed))


def present(settings: Settings) -> list[str]:
    """The methods whose packages are installed; for the others a line says how that is done."""
    for name in settings.names:
        if not METHODS[name].is_here:
            print(f"{name} is left out, its package is not installed: make compare, or {INSTALL}")
    return [name for name in settings.names if METHODS[name].is_here]


def finished(folder: Path, settings: Settings, fixed: dict) -> dict[tuple[int, str], dict]:
    """The results that there are, by seed and method."""
    units = {f"{name}-{seed}": (seed, name) for name in METHODS for seed in range(settings.seeds)}
    found = comparison.finished(folder, list(units), fixed, needs=("seed", "cost", "rows"))
    return {units[unit]: run for unit, run in found.items()}


def run(name: str, seed: int, settings: Settings, fixed: dict, trial: Trial, folder: Path) -> None:
    """Train one method, measure it, write its file."""
    print(f"{name}, seed {seed}", flush=True)
    contest = prepared(seed, settings, fixed, trial, folder / f"networks-{seed}.pt")
    torch.manual_seed(1000 * seed + list(METHODS).index(name))
    entry = METHODS[name].run(contest)
    result = {
        **{"method": name, "seed": seed, "settings": {**fixed, "threads": settings.threads}},
        **{"versions": checkpoints.versions(), "title": trial.title, "outside": trial.outside_title},
        **{"seconds": entry.seconds, "cost": entry.seconds / sum(contest.seconds)},
        "rows": trial.measure(entry.draws, entry.rows, seed),
    }
    checkpoints.write_json(folder / f"{name}-{seed}.json", result)


def prepared(seed: int, settings: Settings, fixed: dict, trial: Trial, path: Path) -> Contest:
    """The trained network and the plain one, from their file, or trained and then kept in it."""
    training = Training(trial.train, trial.held_out, settings.epochs, settings.batch_size, settings.lr, seed)
    build = partial(NETWORKS[settings.network], trial.shape, trial.classes)
    torch.manual_seed(seed)
    parts = {"trained": build(), "plain": build()}
    progress = checkpoints.resume(path, parts, fixed, "give another --out, or delete it")
    if progress is None:
        seconds = []
        for part, model in parts.items():
            if part == "plain":
                model.load_state_dict(parts["trained"].state_dict())
            start = time.process_time()
            training.fit(model)
            seconds.append(time.process_time() - start)
        progress = {"seconds": seconds}
        checkpoints.save(path, parts, fixed, progress)
    options = {"draws": settings.draws, "members": settings.members, "dropout": settings.dropout}
    options |= {"kl_weight": settings.kl_weight}
    models = {part: model.eval() for part, model in parts.items()}
    return Contest(build, training, **models, seconds=tuple(progress["seconds"]), **options)


def collect(folder: Path, runs: dict[tuple[int, str], dict]) -> dict:
    """The table of all rows, printed and in ``result.json`` with the runs, and two figures."""
    ordered = [runs[seed, name] for name in METHODS for seed, method in sorted(runs) if method == name]
    result = {"runs": {f"{run['method']}-{run['seed']}": run for run in ordered}, "table": scores.table(ordered)}
    if ordered:
        print(scores.text(result["table"]))
        checkpoints.write(folder / "shifts.png", lambda path: shift_plots.shifts_figure(path, ordered))
    return comparison.report(folder, "reliability", result, lambda path: shift_plots.reliability_figure(path, ordered))


if __name__ == "__main__":
    command_line.as_program(main)
