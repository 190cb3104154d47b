"""Regression on the tables of the UCI repository: matrix-normal posteriors beside what else is used.

    python -m examples.papers.uci --sets yacht --splits 3 --steps 2000 --out runs/uci-try    # a minute or two
    python -m examples.papers.uci --out runs/uci                                             # everything; 8 hours

Nine sets with their published splits, 20 of each (5 of protein), of which a tenth is the test. The networks have one
hidden layer of 50 units on the five small sets, two on the large ones (100 units for protein), and learnt noise. All
splits train at once. Everything that is chosen is chosen
on held-out parts of a split's training rows alone, by the same rule for every method (uci_choice.py), at most two
things for a method, and the scale of the noise for each. Laplace has its prior and noise from the marginal likelihood.

    method      rows of the table       chosen
    mn          mn, mn-ensemble         the weight of the KL; matrix-normal posteriors with diagonal factors
    dropout     dropout                 the share that is dropped, and how long (Gal & Ghahramani, 2016)
    plain       plain, ensemble         how long a network without a posterior trains; it overfits
                laplace                 the linearized Laplace approximation around these (Immer et al., 2021), but
                                        of protein, where a matrix of 11,301 weights squared is needed
    diagonal    diagonal                the weight of the KL; one scale for each weight
    ivon        ivon                    rate and first Hessian (Shen et al., 2024); needs ivon-opt

An ensemble is the mixture of five networks of a split (Lakshminarayanan et al., 2017, arXiv:1612.01474), of which the
first alone is the row above.

Beside them is what Louizos & Welling (2016, arXiv:1603.04733) published for VMG, which has matrix-normal posteriors
with pseudo-data and one hidden layer on every set, on such splits. Means and standard errors over splits; RMSE in the
targets' units, log-likelihood in nats per row.

The first three methods on the five small sets come first (three hours of one core), then these on the large ones (two
and a half), then the other methods (two and a half). A step of a hundred networks takes some 22 ms for mn, 19 for
diagonal, 7 for the others. What is done is not done again, and a killed run goes on where it was; `seconds` in a JSON
file are those of the last process that worked on it.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import finished, report
from examples.papers import uci_choice, uci_data, uci_ivon, uci_networks
from examples.papers.uci_choice import Recipe, Train
from examples.papers.uci_data import SETS
from examples.papers.uci_laplace import laplace
from examples.papers.uci_scores import PUBLISHED, SCORES, reached, scores, summary, table

MEMBERS = 5  # of an ensemble,
JUDGES = 2  # of which so many are trained for each fold


@dataclass(frozen=True)
class Method:
    """What it chooses from, and the row of one network of a split, and that of an ensemble of them, if there is one."""

    candidates: Sequence[Train]
    row: str
    ensemble: str | None = None


METHODS = {
    "mn": Method(uci_networks.MATRIX_NORMAL, "mn", "mn-ensemble"),
    "dropout": Method(uci_networks.DROPOUT, "dropout"),
    "plain": Method(uci_networks.PLAIN, "plain", "ensemble"),
    "diagonal": Method(uci_networks.DIAGONAL, "diagonal"),
    "ivon": Method(uci_ivon.CANDIDATES, "ivon"),
}
FIRST = ("mn", "dropout", "plain")  # to run
ROWS = ("mn", "mn-ensemble", "dropout", "plain", "ensemble", "laplace", "diagonal", "ivon")


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    sets: str = option(",".join(SETS), f"which tables, of {', '.join(SETS)}; '' only shows what there is")
    methods: str = option(",".join(METHODS), f"what to run, of {', '.join(METHODS)}")
    splits: int = option(20, "of each set, or as many as it has")
    steps: int = option(Recipe.steps, "of the longest training; half as many again on the four large sets")
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
    for name, method in order(settings.tables, command_line.names(settings.methods, [*METHODS])):
        if method == "ivon" and (advice := uci_ivon.missing()):
            print(f"{name}, ivon is left out: {advice}", flush=True)
        else:
            run(name, method, settings, folder)
    return collect(folder)


def order(tables: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every set with every method: the first methods on small sets, on large ones, then the others likewise."""
    small = [name for name in SETS[:5] if name in tables]
    large = [name for name in SETS[5:] if name in tables]
    first, others = [m for m in METHODS if m in methods and m in FIRST], [m for m in methods if m not in FIRST]
    return [(name, method) for ms in (first, others) for names in (small, large) for name in names for method in ms]


def recipe(name: str, settings: Settings) -> Recipe:
    """How a set is trained: as published 50 units, 100 for protein; large sets have two layers and more steps."""
    units, small = 100 if name == "protein" else 50, name in SETS[:5]
    steps = settings.steps if small else 3 * settings.steps // 2
    return Recipe(hidden=(units,) if small else (units, units), steps=steps, seed=settings.seed)


def run(name: str, method: str, settings: Settings, folder: Path) -> None:
    """Choose, train and test one method on one set, unless it is done, and write ``SET/ROW.json`` of each row."""
    chosen, which = recipe(name, settings), METHODS[method]
    kept = {"splits": settings.splits, **asdict(chosen), "hidden": [*chosen.hidden]}
    place = checkpoints.prepare(folder / name)
    extra = "laplace" if method == "plain" and name != "protein" else None
    rows = [row for row in (which.row, which.ensemble, extra) if row]
    if len(finished(place, rows, kept, needs=("summary",))) == len(rows):
        return
    splits = uci_data.load(name, settings.splits)
    print(f"{name}, {method}: {len(splits)} splits of {len(splits[0].x)} training rows", flush=True)
    start, unfinished = time.process_time(), place / f"{method}.{fingerprint(kept)}"
    choices = uci_choice.choose(splits, chosen, which.candidates, unfinished, JUDGES if which.ensemble else 1)
    members = MEMBERS if which.ensemble else 1
    final = uci_choice.finish(splits, chosen, which.candidates, choices, members, unfinished)
    found = {which.row: final.alone}
    if which.ensemble:
        found[which.ensemble] = final.predictions
    if extra:
        found[extra] = laplace(splits, final)
    common = {
        "set": name, "settings": kept, "versions": checkpoints.versions(), "seconds": time.process_time() - start,
        "candidates": [str(each) for each in which.candidates], "chosen": [asdict(each) for each in choices],
    }  # fmt: skip
    for row, predictions in found.items():
        torch.manual_seed(settings.seed)
        progress = tqdm(zip(predictions, splits, strict=True), row, len(splits), delay=2, leave=False)
        of_splits = [scores(each, split.test_y) for each, split in progress]
        means = summary(of_splits)
        checkpoints.write_json(place / f"{row}.json", {"method": row, **common, "summary": means, "splits": of_splits})
        print(f"  {row}: " + ", ".join(f"{s} {m:.4g} ± {e:.2g}" for s, (m, e) in means.items()), flush=True)
    for path in place.glob(f"{unfinished.name}.*"):
        path.unlink()


def fingerprint(settings: dict) -> str:
    """Eight digits that tell unfinished runs of different settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def collect(folder: Path) -> dict:
    """Put the results in ``folder`` into ``result.json`` and ``uci.png``, and print the tables."""
    runs = {name: found for name in SETS if (found := finished(folder / name, ROWS, needs=("summary",)))}
    for score in SCORES if runs else ():
        print(f"\n{score}\n\n{table(runs, score)}")
    for row in ROWS if runs else ():
        errors, densities, sets = reached(runs, row)
        print(f"{row}: reaches VMG's RMSE on {errors} of {sets} sets, its log-likelihood on {densities}")
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
