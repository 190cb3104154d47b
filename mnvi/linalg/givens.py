"""Coordinates of the orthogonal group at W: derivatives along W·H_jl, H_jl = (e_j e_lᵀ − e_l e_jᵀ)/√2, and moves there.

Pairs (j, l) of columns, j < l, are index tensors of shape (2, k). W exp(θH_jl) turns the columns j and l by the angle
θ/√2: a Givens rotation. Source: Massart & Abrol (2022), equations 5, 9, 12 and 13,
arXiv:2108.00051.
"""

import torch
from torch import Tensor

from .elementary import skew
from .exponential import times_exponential
from .polar import corrected


def partial_derivatives(x: Tensor, grad: Tensor, pairs: Tensor) -> Tensor:
    """⟨grad, x H_jl⟩ = (x_jᵀg_l − x_lᵀg_j)/√2 of k pairs, shape (k,), from their columns alone; O(dk)."""
    (x_j, x_l), (g_j, g_l) = _columns(x, pairs), _columns(grad, pairs)
    return (x_j * g_l - x_l * g_j).sum(0) / 2**0.5


def all_partial_derivatives(x: Tensor, grad: Tensor) -> Tensor:
    """The derivatives along all x H_jl: skew-symmetric, shape (d, d); O(d³)."""
    return skew(x.mT @ grad) * 2**0.5


def rotate_(x: Tensor, pairs: Tensor, theta: Tensor) -> None:
    """x ← x exp(Σ θH) in place, for disjoint pairs: k Givens rotations; O(dk).

    They add (cos φ − 1, ± sin φ) times the columns, from the half angle: a rounded cos φ would make cos²φ + sin²φ
    always too large, or always too small, for φ of one size, and the columns would drift with the number of steps.
    """
    (x_j, x_l), half = _columns(x, pairs), theta / 8**0.5
    sine = half.sin()
    less, sine = 2 * sine * sine, 2 * sine * half.cos()
    x.index_copy_(1, pairs.flatten(), torch.cat([x_j - (less * x_j + sine * x_l), x_l + (sine * x_j - less * x_l)], 1))


def exponential_(x: Tensor, pairs: Tensor, theta: Tensor) -> None:
    """x ← x exp(Σ θH) in place, for any pairs; O(d³)."""
    a = torch.zeros_like(x)
    a[pairs[0], pairs[1]] = theta / 2**0.5
    x.copy_(corrected(times_exponential(x, a - a.mT)))


def _columns(x: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.index_select(1, pairs.flatten()).chunk(2, 1)
    return first, second
