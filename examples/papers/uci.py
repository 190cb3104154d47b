"""Regression on the tables of the UCI repository: matrix-normal posteriors beside what else is used.

    python -m examples.papers.uci --sets yacht --splits 3 --steps 2000 --out runs/uci-try    # a minute or two
    python -m examples.papers.uci --threads 2 --out runs/uci                                 # everything; hours

Nine sets with their published splits, 20 of each (5 of protein), of which a tenth is the test. The networks, one hidden
layer of 50 units (100 for protein) with learnt noise, train on all splits at once. Everything that is chosen is chosen
on a part of the training rows alone, by the same rule for every method (uci_methods.py): the weight of the KL, the
length of a training without one, the share of dropout, rate and first Hessian of IVON, and for each the scale of the
noise. Laplace has its prior and noise from the marginal likelihood.

    mn, diagonal             Bayesian networks: matrix-normal posteriors with diagonal factors, and one scale a weight
    mn-ensemble              the mixture of five of these
    plain, ensemble          networks without a posterior, and the mixture of five (Lakshminarayanan et al., 2017)
    dropout                  MC dropout, of the share of three that held-out rows choose (Gal & Ghahramani, 2016)
    laplace                  the linearized Laplace approximation around plain networks (Immer et al., 2021)
    ivon                     IVON (Shen et al., 2024); needs ivon-opt

Beside them is what Louizos & Welling (2016, arXiv:1603.04733) published for VMG, which has matrix-normal posteriors of
one hidden layer of as many units with pseudo-data, on such splits. Means and standard errors over splits; RMSE in the
targets' units, log-likelihood in nats per row.

A set and method that is done is not done again, and a killed one goes on where it was.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import finished, report
from examples.papers import uci_data, uci_ivon
from examples.papers.uci_data import SETS, Split
from examples.papers.uci_laplace import laplace
from examples.papers.uci_methods import POSTERIORS, Outcome, Recipe, bayesian, dropout, plain
from examples.papers.uci_scores import PUBLISHED, SCORES, reached, scores, summary, table

MEMBERS = 5  # of an ensemble
METHODS: dict[str, Callable[[Sequence[Split], Recipe, Path], Outcome]] = {
    "mn": partial(bayesian, posterior=POSTERIORS["mn"], each=1),
    "mn-ensemble": partial(bayesian, posterior=POSTERIORS["mn"], each=MEMBERS),
    "diagonal": partial(bayesian, posterior=POSTERIORS["diagonal"], each=1),
    "plain": partial(plain, each=1),
    "ensemble": partial(plain, each=MEMBERS),
    "dropout": dropout,
    "laplace": laplace,
    "ivon": uci_ivon.ivon,
}


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    sets: str = option(",".join(SETS), f"which tables, of {', '.join(SETS)}; '' only shows what there is")
    methods: str = option(",".join(METHODS), f"what to run, of {', '.join(METHODS)}")
    splits: int = option(20, "of each set, or as many as it has")
    steps: int = option(Recipe.steps, "of the longest training")
    seed: int = option(0, "of initial weights, batches, and which rows choose")
    threads: int = option(1, "CPU threads")
    out: str = option("runs/uci", "folder for the results")

    def __post_init__(self) -> None:
        command_line.names(self.methods, [*METHODS])
        if unknown := sorted(set(self.tables) - set(SETS)):
            raise ValueError(f"sets must be of {', '.join(SETS)}, got {', '.join(unknown)}")
        command_line.at_least(self, {"splits": 1, "steps": 1, "threads": 1})

    @property
    def tables(self) -> list[str]:
        return [name.strip() for name in self.sets.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> dict:
    """Run the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    folder = checkpoints.prepare(settings.out)
    for name in settings.tables:
        for method in command_line.names(settings.methods, [*METHODS]):
            if method == "ivon" and (advice := uci_ivon.missing()):
                print(f"{name}, ivon is left out: {advice}", flush=True)
            else:
                run(name, method, settings, folder)
    return collect(folder)


def recipe(name: str, settings: Settings) -> Recipe:
    """How a set is trained: as published 50 units, 100 for protein."""
    return Recipe(hidden=(100,) if name == "protein" else (50,), steps=settings.steps, seed=settings.seed)


def run(name: str, method: str, settings: Settings, folder: Path) -> None:
    """Train and test one method on one set, unless it is done, and write ``SET/METHOD.json``."""
    chosen = recipe(name, settings)
    kept = {"splits": settings.splits, **asdict(chosen), "hidden": [*chosen.hidden], "kl_weights": [*chosen.kl_weights]}
    place = checkpoints.prepare(folder / name)
    if method in finished(place, [method], kept):
        return
    splits = uci_data.load(name, settings.splits)
    began, checkpoint = time.process_time(), place / f"{method}.pt"
    print(f"{name}, {method}: {len(splits)} splits of {len(splits[0].x)} training rows", flush=True)
    outcome = METHODS[method](splits, chosen, checkpoint)
    torch.manual_seed(settings.seed)
    rows = [scores(each, split.test_y) for each, split in zip(outcome.predictions, splits, strict=True)]
    found = summary(rows)
    result = {
        **{"method": method, "set": name, "settings": kept, "versions": checkpoints.versions()},
        **{"seconds": time.process_time() - began, "chosen": outcome.chosen, "summary": found, "splits": rows},
    }
    checkpoints.write_json(place / f"{method}.json", result)
    checkpoint.unlink(missing_ok=True)
    print("  " + ", ".join(f"{score} {mean:.4g} ± {error:.2g}" for score, (mean, error) in found.items()), flush=True)


def collect(folder: Path) -> dict:
    """Put the results in ``folder`` into ``result.json`` and ``uci.png``, and print the tables."""
    runs = {name: found for name in SETS if (found := finished(folder / name, [*METHODS]))}
    for score in SCORES if runs else ():
        print(f"\n{score}\n\n{table(runs, score)}")
    for method in METHODS if runs else ():
        errors, densities, sets = reached(runs, method)
        print(f"{method}: reaches VMG's RMSE on {errors} of {sets} sets, its log-likelihood on {densities}")
    return report(folder, "uci", {"runs": runs}, lambda path: figure(path, runs))


def figure(path: Path, runs: dict[str, dict]) -> None:
    """Differences from VMG's published log-likelihoods, and ratios to its RMSE, with standard errors."""
    canvas = Figure(figsize=(12, 7), dpi=150, layout="constrained")
    upper, lower = canvas.subplots(2, 1, sharex=True)
    names, methods = [*runs], list(dict.fromkeys(method for run in runs.values() for method in run))
    for number, method in enumerate(methods):
        for place, name in enumerate(names):
            if method not in runs[name]:
                continue
            found, (rmse, density) = runs[name][method]["summary"], PUBLISHED[name]
            at = place + 0.08 * (number - (len(methods) - 1) / 2)
            style = {"color": f"C{number}", "fmt": ".", "label": method if place == 0 else None}
            upper.errorbar(at, found["log_likelihood"][0] - density, found["log_likelihood"][1], **style)
            if rmse > 0:
                lower.errorbar(at, found["rmse"][0] / rmse, found["rmse"][1] / rmse, **style)
    upper.set(ylabel="log-likelihood less VMG's, nats", xticks=range(len(names)), xticklabels=names)
    lower.set(ylabel="RMSE beside VMG's")
    for axes, level in ((upper, 0), (lower, 1)):
        axes.axhline(level, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
    upper.set_ylim(max(upper.get_ylim()[0], -1.5), None)
    upper.legend(frameon=False, ncols=4)
    canvas.savefig(path)


if __name__ == "__main__":
    command_line.as_program(main)
