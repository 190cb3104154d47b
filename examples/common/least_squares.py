"""Least squares as a likelihood's prediction: what a network on a table has to be better than."""

import torch
from torch import Tensor, nn

from mnvi.likelihoods import Gaussian, Prediction, Standardized


def least_squares(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, test_x: Tensor) -> Prediction:
    """Of targets (n, 1) at ``test_x``, from rows (x, y), with the noise that held-out rows have.

    In double precision and about the mean, as targets may vary little around a large number.
    """
    a, held, test = (nn.functional.pad(each.double(), (0, 1), value=1.0) for each in (x, held_x, test_x))
    center, size = y.mean(0), y.std(0)
    solution = torch.linalg.lstsq(a, (y - center) / size, driver="gelsd").solution  # of any rank
    noise = ((held_y - center) / size - held @ solution).square().mean().sqrt()
    return Standardized(Gaussian(noise), center, size).prediction((test @ solution).float()[None])
