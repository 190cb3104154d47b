"""Scores over splits beside what was published, and tables of both."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from examples.common import intervals
from mnvi.likelihoods import Prediction

# RMSE and log-likelihood of VMG: Louizos & Welling, 2016, arXiv:1603.04733, table 1.
PUBLISHED = {
    "boston": (2.81, -2.54), "concrete": (4.70, -2.98), "energy": (1.16, -1.45), "kin8nm": (0.08, 1.14),
    "naval": (0.00, 5.84), "power": (3.88, -2.78), "protein": (4.14, -2.84), "wine": (0.61, -0.93),
    "yacht": (0.77, -1.29),
}  # fmt: skip
SCORES = ("rmse", "log_likelihood", "coverage")


def scores(parts: Sequence[Prediction], y: Tensor) -> dict[str, float]:
    """Those of SCORES, of the mixture of a split's predictions, on its test targets (n, 1)."""
    found = intervals.scores(parts, y)
    return {"rmse": found["rmse"], "log_likelihood": -found["nll"], "coverage": found["coverage"]}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard error over splits, of each score."""
    found = {}
    for name in SCORES:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
        found[name] = [values.mean().item(), error]
    return found


def table(runs: dict[str, dict[str, Any]], score: str) -> str:
    """Markdown: a row for each set, a column for each method that any set has, mean ± standard error.

    Args:
        runs: ``runs[set][method]`` has a ``summary``.
        score: one of ``SCORES``.
    """
    methods = list(dict.fromkeys(method for run in runs.values() for method in run))
    lines = ["| | " + " | ".join([*methods, "VMG, published"]) + " |", "|---" * (len(methods) + 2) + "|"]
    for name, run in runs.items():
        cells = [_cell(run[method]["summary"][score], name) if method in run else "" for method in methods]
        lines.append(f"| {name} | " + " | ".join([*cells, _published(name, score)]) + " |")
    return "\n".join(lines)


def reached(runs: dict[str, dict[str, Any]], method: str) -> tuple[int, int, int]:
    """On how many sets a method reaches VMG's RMSE, and its log-likelihood, as rounded there; of how many sets."""
    found = [
        (run[method]["summary"], PUBLISHED[name]) for name, run in runs.items() if method in run and name in PUBLISHED
    ]
    errors = sum(round(each["rmse"][0], 2) <= published[0] for each, published in found)
    densities = sum(round(each["log_likelihood"][0], 2) >= published[1] for each, published in found)
    return errors, densities, len(found)


def _cell(pair: Sequence[float], name: str) -> str:
    digits = 5 if name == "naval" and abs(pair[0]) < 0.1 else 3 if abs(pair[0]) < 1 else 2
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def _published(name: str, score: str) -> str:
    return f"{PUBLISHED[name][SCORES.index(score)]:.2f}" if name in PUBLISHED and score != "coverage" else ""
