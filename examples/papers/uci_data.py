"""Tables of the UCI repository with their published splits, standardized by what a split may know: its training rows.

They are read from ``$MNVI_DATA/uci/NAME.npz``: ``x`` (n, d), ``y`` (n,) and ``test_mask`` (splits, n), True in the rows
of the test. The splits are those of Hernández-Lobato & Adams (2015, arXiv:1502.05336) and Gal & Ghahramani (2016).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.common.comparison import arrays
from mnvi.likelihoods import Likelihood, Standardized

SETS = ("yacht", "boston", "energy", "concrete", "wine", "kin8nm", "power", "naval", "protein")  # by size


@dataclass(frozen=True)
class Split:
    """Inputs (n, d) and targets (n, 1) with mean 0 and deviation 1 in the training rows; those of the test in units.

    Attributes:
        mean, std: of the training targets, in units.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: Tensor
    std: Tensor

    def in_units(self, likelihood: Likelihood) -> Standardized:
        """The likelihood of the targets in units, of one of the standardized ones."""
        return Standardized(likelihood, self.mean, self.std)


def load(name: str, most: int) -> list[Split]:
    """The first ``most`` splits of a set, or all there are. All have as many training rows as the smallest has.

    Raises:
        ValueError: there is no such file, or it does not hold what it should.
    """
    root = os.environ.get("MNVI_DATA")
    path = Path(root or "", "uci", f"{name}.npz")
    if root is None or not path.exists():
        raise ValueError(f"the set {name} is read from $MNVI_DATA/uci/{name}.npz; MNVI_DATA is {root or 'not set'}")
    table = arrays(path)
    if missing := {"x", "y", "test_mask"} - set(table):
        raise ValueError(f"{path} must hold x (n, d), y (n,) and test_mask (splits, n); {', '.join(missing)} missing")
    masks = table["test_mask"][:most]
    least = (~masks).sum(1).min()
    return [split(table["x"], table["y"], mask, least) for mask in masks]


def split(x: np.ndarray, y: np.ndarray, test: np.ndarray, size: int) -> Split:
    """The rows outside ``test``, the first ``size`` of them, for training, in float32; a constant column becomes 0."""
    train, held = np.flatnonzero(~test)[:size], np.flatnonzero(test)
    mean, std = x[train].mean(0), x[train].std(0)
    center, scale = y[train].mean(), y[train].std()
    inputs = (x - mean) / np.where(std > 0, std, 1.0)
    parts = inputs[train], (y[train, None] - center) / scale, inputs[held], y[held, None], center, scale
    return Split(*(torch.tensor(part, dtype=torch.float32) for part in parts))
