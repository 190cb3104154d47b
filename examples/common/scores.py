"""The table of a comparison: what each row has on test images, strange ones and corrupted ones, over all seeds."""

from collections.abc import Sequence

import numpy as np

COLUMNS = {  # of the table: heading, digits after the point
    "accuracy": ("acc. %", 2),
    "nll": ("NLL", 4),
    "ece": ("ECE %", 2),
    "brier": ("Brier", 4),
    "entropy": ("AUROC H", 2),
    "information": ("AUROC MI", 2),
    "shifted accuracy": ("acc. %", 2),
    "shifted nll": ("NLL", 4),
    "shifted ece": ("ECE %", 2),
    "cost": ("cost", 1),
}
Cell = list[float] | None  # mean and standard deviation over the seeds


def table(runs: Sequence[dict]) -> dict[str, dict[str, Cell]]:
    """By row and column the mean and standard deviation over the seeds; None where a row has no such number."""
    rows: dict[str, list[dict]] = {}
    for run in runs:
        for row, found in run["rows"].items():
            rows.setdefault(row, []).append(flat(found) | {"cost": run["cost"]})
    return {row: {key: _cell([each[key] for each in found]) for key in COLUMNS} for row, found in rows.items()}


def flat(row: dict) -> dict[str, float | None]:
    """The columns of one seed, but the cost: of corrupted images the means over kinds and strengths."""
    shifted = [each for kind in row["corrupted"].values() for each in kind]
    means = {f"shifted {key}": float(np.mean([each[key] for each in shifted])) for key in ("accuracy", "nll", "ece")}
    return {**row["test"], **row["outside"], **means}


def by_strength(runs: Sequence[dict], row: str, key: str) -> np.ndarray:
    """Of the row and one of its metrics, (seeds, strengths): first of test images, then means over corruptions."""
    found = [run["rows"][row] for run in runs if row in run["rows"]]
    corrupted = [np.mean([[each[key] for each in kind] for kind in one["corrupted"].values()], 0) for one in found]
    return np.array([[one["test"][key], *means] for one, means in zip(found, corrupted, strict=True)])


def text(table: dict[str, dict[str, Cell]]) -> str:
    """The means as lines; their standard deviations are in ``result.json``."""
    width = max(map(len, table))
    above = f"{'':{width}}{'test images':>20}{'other images':>40}{'corrupted images':>30}"
    head = f"{'':{width}}" + "".join(f"{name:>10}" for name, _ in COLUMNS.values())
    lines = [f"{row:{width}}" + "".join(_shown(row_[key], key) for key in COLUMNS) for row, row_ in table.items()]
    notes = [
        "AUROC in %, by H, the predictive entropy, and by MI, the mutual information with the weights;",
        "cost: the processor's time of all training, in multiples of the plain network's.",
    ]
    return "\n".join([above, head, *lines, *notes])


def _cell(values: list[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return [float(np.mean(known)), float(np.std(known, ddof=1)) if known[1:] else 0.0]


def _shown(cell: Cell, key: str) -> str:
    return f"{'–':>10}" if cell is None else f"{cell[0]:10.{COLUMNS[key][1]}f}"
