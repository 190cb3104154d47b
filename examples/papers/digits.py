"""A small network on 1,797 digits, by the defaults of mnvi.fit, beside a plain one and what else gives draws.

    python -m examples.papers.digits  # 64-100-100-10, five splits, some minutes

Each split holds 360 digits out for the test. The others train for 2,000 steps on all the rest, at the rate of
`mnvi.fit` (IVON at its own); `mnvi.fit` for as many steps as its defaults say, a tenth held out to choose the weight of
the KL. The plain network's temperature is the best one for the test's own labels, which nobody has. The cost is the
processor's time of all training, in multiples of the plain network's of the same split.

Each method has a JSON file when it is done, and a killed run goes on with the next one.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mnvi
from examples.baselines.draws import Draws, Training, outputs, single
from examples.baselines.ensemble import ensemble
from examples.baselines.ivon import ivon
from examples.baselines.mc_dropout import mc_dropout
from examples.baselines.temperature import best
from examples.common import checkpoints, command_line, comparison
from examples.common.command_line import check, option, parse
from examples.common.quality import describe
from mnvi.posteriors import Diagonal, MatrixNormal, PosteriorSpec


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option("plain,dropout,ensemble,ivon,matrix-normal,mixture,dense,diagonal", "what to compare")
    splits: int = option(5, "random splits", 1)
    epochs: int = option(167, "of all but mnvi.fit's own, of 12 steps each", 1)
    draws: int = option(64, "of the weights, for predictions", 2)
    out: str = option("runs/digits", "folder for the results")

    def __post_init__(self) -> None:
        command_line.names(self.methods, tuple(METHODS))
        check(self, {})


LR = 1e-2  # of Adam at the start, for all; it is that of mnvi.fit
LINE = "{:32} {accuracy:6.2f} %  NLL {nll:.4f} (± {error:.4f})  ECE {ece:5.2f} %  cost {cost:5.1f}"
Split = tuple[Training, Tensor, Tensor]
Found = dict[str, Draws]  # rows of a method


def main(argv: list[str] | None = None) -> dict:
    """Train and measure what is not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(1)
    folder = checkpoints.prepare(settings.out)
    fixed = {name: value for name, value in asdict(settings).items() if name not in ("methods", "out")}
    done = comparison.finished(folder, list(METHODS), fixed, needs=("splits",))
    for name in ["plain", *command_line.names(settings.methods, tuple(METHODS))]:
        if name not in done and (name != "ivon" or find_spec("ivon")):
            splits = [run(name, k, settings) for k in range(settings.splits)]
            done[name] = {"method": name, "settings": fixed, "versions": checkpoints.versions(), "splits": splits}
            checkpoints.write_json(folder / f"{name}.json", done[name])
    result = {"settings": fixed, "rows": table({name: done[name] for name in METHODS if name in done})}
    checkpoints.write_json(folder / "result.json", result)
    for row, cells in result["rows"].items():
        print(LINE.format(row, **cells))
    return result


def run(name: str, k: int, settings: Settings) -> dict:
    """One method on one split: its rows and the processor's seconds of its training."""
    print(f"{name}, split {k}", flush=True)
    split = data(k, settings.epochs)
    _, x, y = split
    torch.manual_seed(k)
    start = time.process_time()
    rows = METHODS[name](split, settings.draws)
    seconds = time.process_time() - start
    return {"seconds": seconds, "rows": {row: describe(outputs(draws, x, seed=k), y) for row, draws in rows.items()}}


def data(k: int, epochs: int) -> Split:
    """The training of split ``k``, and its test images (360, 64) and labels."""
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x, order = x.float() / 16, torch.randperm(len(y), generator=torch.Generator().manual_seed(k))
    train, test = order[360:], order[:360]
    return Training((x[train], y[train]), (x[test], y[test]), epochs, lr=LR, seed=k), x[test], y[test]


def network(linear: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(linear(64, 100), nn.ReLU(), linear(100, 100), nn.ReLU(), linear(100, 10))


def plain(split: Split, samples: int) -> Found:
    training, x, y = split
    model = network(nn.Linear)
    training.fit(model, calibrate=False)
    with torch.no_grad():
        temperature = best(model(x)[None], y)
    return {"plain": single(model), "plain, temperature in hindsight": lambda x: model(x)[None] / temperature}


def bayesian(posterior: PosteriorSpec | None) -> Callable[[Split, int], Found]:
    """``mnvi.fit`` as it comes: neither rates nor steps nor the weight of the KL are given."""

    def method(split: Split, samples: int) -> Found:
        training, _, _ = split
        model = network(lambda n, p: mnvi.MNLinear(n, p, posterior=posterior))
        history = mnvi.fit(model, training.data, seed=training.seed)

        def draws(x: Tensor) -> Tensor:
            found = mnvi.predict(model, x, samples).draws
            assert isinstance(found, Tensor)
            return found / history.likelihood.temperature

        return {TITLES[posterior]: draws}

    return method


def mixture(split: Split, samples: int) -> Found:
    """Five networks by ``mnvi.fit`` in one vmap, and the draws of all."""
    training, _, _ = split
    models = [network(mnvi.MNLinear) for _ in range(5)]
    history = mnvi.fit(models, training.data, seed=training.seed)

    def draws(x: Tensor) -> Tensor:
        found: list = [mnvi.predict(model, x, samples).draws for model in models]
        return torch.cat([each / noise.temperature for each, noise in zip(found, history.likelihood, strict=True)])

    return {"matrix normal, five networks": draws}


TITLES = {None: "matrix normal, default factors", MatrixNormal(): "matrix normal, dense", Diagonal(): "diagonal"}
METHODS: dict[str, Callable[[Split, int], Found]] = {
    "plain": plain,
    "dropout": lambda split, samples: {"MC dropout": mc_dropout(network(nn.Linear), split[0], p=0.1, samples=samples)},
    "ensemble": lambda split, samples: {"ensemble of 5": ensemble(lambda: network(nn.Linear), split[0])},
    "ivon": lambda split, samples: {"IVON": ivon(network(nn.Linear), split[0], hess_init=0.5, samples=samples)},
    "matrix-normal": bayesian(None),
    "mixture": mixture,
    "dense": bayesian(MatrixNormal()),
    "diagonal": bayesian(Diagonal()),
}


def table(runs: dict[str, dict]) -> dict[str, dict[str, float]]:
    """By row the means over the splits, and the standard error of the NLL's."""
    rows = {}
    of_plain = [split["seconds"] for split in runs["plain"]["splits"]]
    for each in runs.values():
        cost = float(np.mean([split["seconds"] / base for split, base in zip(each["splits"], of_plain, strict=True)]))
        for row in each["splits"][0]["rows"]:
            found = [split["rows"][row] for split in each["splits"]]
            cells = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            spread = np.std([one["nll"] for one in found], ddof=1) if found[1:] else 0.0
            rows[row] = {**cells, "error": float(spread / len(found) ** 0.5), "cost": cost}
    return rows


if __name__ == "__main__":
    command_line.as_program(main)
