"""Predictions of real numbers by mixtures of equal parts: means and intervals, and how good these are."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from examples.common import checkpoints
from mnvi.likelihoods import Prediction

SAMPLES = 2000  # of an observation, for intervals


def interval(parts: Sequence[Prediction], level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the mixture, and the ends of its central interval of this probability, in the shape of the targets."""
    draws = torch.cat([part.sample(max(1, SAMPLES // len(parts))) for part in parts])
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=draws.dtype)
    low, high = draws.quantile(ends, 0)
    return torch.stack([part.mean for part in parts]).mean(0), low, high


def scores(parts: Sequence[Prediction], y: Tensor) -> dict[str, float]:
    """Of targets (n, 1): RMSE, mean negative log-likelihood in nats, share in 95 % intervals, and their width."""
    mean, low, high = interval(parts)
    density = torch.stack([part.log_prob(y) for part in parts]).logsumexp(0) - math.log(len(parts))
    return {
        "rmse": (mean - y).double().square().mean().sqrt().item(),
        "nll": -density.double().mean().item(),
        "coverage": ((low <= y) & (y <= high)).double().mean().item(),
        "width": (high - low).double().mean().item(),
    }


def write(path: Path, rows: np.ndarray, y: Tensor, parts: Sequence[Prediction]) -> None:
    """CSV of the rows' numbers, their targets (n, 1), the means and the ends of 95 % intervals."""
    checkpoints.prepare(path.parent)
    columns = torch.cat([y, *interval(parts)], 1).numpy()
    pd.DataFrame(columns, rows, ["y", "mean", "lower", "upper"]).to_csv(path, index_label="row")  # type: ignore[arg-type]
