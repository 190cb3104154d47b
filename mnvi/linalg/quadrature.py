"""Gauss-Legendre quadrature, for matrix functions that are integrals of inverses, as logarithms are."""

import numpy as np
import torch
from torch import Tensor

GAUSS_LEGENDRE = [each.tolist() for each in np.polynomial.legendre.leggauss(12)]  # nodes and weights on [−1, 1]


def gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule of twelve points on [0, 1], each of shape (12, 1, 1)."""
    rule = torch.tensor(GAUSS_LEGENDRE, dtype=like.real.dtype, device=like.device)[..., None, None]
    return (rule[0] + 1) / 2, rule[1] / 2
