"""Regression on a table: intervals in the target's own units, and how often they hold what they should.

    python examples/regression.py              # concrete in $MNVI_DATA, else the diabetes patients of scikit-learn
    python examples/regression.py table.csv --target price --noise heteroscedastic    # or .npz with x and y

The mixture of five Bayesian networks, trained in one vmap, beside a plain one of the same layers, MC dropout and least
squares. A fifth of the rows, at random, is the test. Networks learn the noise, one for all rows or one for each, and a
seventh of the other rows says how much wider it is. All columns must be numbers; a constant one does no harm. Where
--target names none it is the last one. The predictions of the test go to runs/regression.csv.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

if not __package__:  # python examples/regression.py, where only mnvi is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import mnvi
from examples.common import command_line, intervals, tables
from examples.common.least_squares import least_squares


@dataclass(frozen=True)
class Settings:
    table: str | None = None
    target: str | None = None
    noise: str = "learnt"  # or heteroscedastic
    kl_weight: float | None = 0.3  # a cold posterior; None: chosen by mnvi.fit, in more than twice the time
    networks: int = 5  # Bayesian ones
    hidden: int = 50
    epochs: int | None = None  # None: as many as mnvi.fit takes for real targets
    seed: int = 0
    out: str = "runs/regression.csv"


def main(settings: Settings) -> pd.DataFrame:
    """Train and test all; returns a row of scores for each, and writes the last one's predictions."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    table = tables.read(settings.table, settings.target)
    rows = np.random.default_rng(settings.seed).permutation(len(table))
    test, train = torch.tensor(table.to_numpy(np.float64)[rows]).tensor_split([len(rows) // 5])
    mean, std = train[:, :-1].mean(0), train[:, :-1].std(0)
    x, test_x = (((part[:, :-1] - mean) / std.where(std > 0, 1.0)).float() for part in (train, test))
    y, test_y = train[:, -1:], test[:, -1:]
    held = len(y) // 7  # rows that set the noise, the first ones of a random order
    kind, outputs = ("gaussian", 1) if settings.noise == "learnt" else ("heteroscedastic_gaussian", 2)

    def networks(count: int, linear: type, weight: float | None = 0.0, *dropout: nn.Module) -> mnvi.Prediction:
        n, m = x.shape[1], settings.hidden
        models = [mnvi.Sequential(linear(n, m), nn.ReLU(), *dropout, linear(m, outputs)) for _ in range(count)]
        plan = {"kl_weight": weight, "epochs": settings.epochs, "seed": settings.seed}
        learnt = mnvi.fit(models, (x[held:], y[held:]), kind, **plan).likelihood
        noise = learnt[0] if isinstance(learnt, list) else learnt

        def draws(inputs: Tensor) -> Tensor:
            nn.ModuleList(models).train()  # in which dropout drops and layers draw weights
            with torch.no_grad():
                return torch.stack([model(inputs) for model in models for _ in range(64)])

        noise.calibrate_(draws(x[:held]), y[:held], spread=1.0)  # of the mixture of all networks
        return noise.prediction(draws(test_x))

    scores = {}
    for name, predicted in {
        "plain network": lambda: networks(1, nn.Linear),
        "least squares": lambda: least_squares(x[held:], y[held:], x[:held], y[:held], test_x),
        "MC dropout": lambda: networks(1, nn.Linear, 0.0, nn.Dropout(0.1)),
        "Bayesian networks": lambda: networks(settings.networks, mnvi.MNLinear, settings.kl_weight),
    }.items():
        start, prediction = time.process_time(), None
        try:
            prediction = predicted()
        except ValueError as error:  # such as a loss that is not finite
            print(f"{name}: {error}", flush=True)
            continue
        scores[name] = {"seconds": time.process_time() - start} | intervals.scores([prediction], test_y)
    found = pd.DataFrame(scores).T.assign(cost=lambda each: each.seconds / each.seconds.get("plain network", np.nan))
    print(found.to_string(float_format="%.2f"))
    Path(settings.out).unlink(missing_ok=True)  # it may be another run's
    if prediction is not None:
        intervals.write(Path(settings.out), rows[: len(test)], test_y, [prediction])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?")
    parser.add_argument("--target")
    parser.add_argument("--noise", choices=("learnt", "heteroscedastic"), default="learnt")
    command_line.as_program(lambda: main(Settings(**vars(parser.parse_args()))))
