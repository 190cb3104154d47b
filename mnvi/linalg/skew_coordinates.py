"""Skew-Hermitian matrices by as many real numbers as they have degrees of freedom."""

import torch
from torch import Tensor


def below_diagonal(n: int, device: torch.device) -> Tensor:
    """The places of the entries below the diagonal, row by row, in a flattened matrix; shape (n(n−1)/2,)."""
    rows, columns = torch.tril_indices(n, n, -1, device=device)
    return rows * n + columns


def to_skew(x: Tensor, places: Tensor, n: int) -> Tensor:
    """The skew-symmetric (..., n, n) of its entries below the diagonal, x of shape (..., n(n−1)/2)."""
    lower = x.new_zeros(*x.shape[:-1], n * n).index_copy(-1, places, x).unflatten(-1, (n, n))
    return lower - lower.mT


def from_skew(a: Tensor, places: Tensor) -> Tensor:
    """The entries below the diagonal of a skew-symmetric (..., n, n), row by row."""
    return a.flatten(-2)[..., places]


def to_skew_hermitian(x: Tensor) -> Tensor:
    """The skew-Hermitian matrix with the real parts below the diagonal of x (..., n, n), the others on and above it."""
    real, imaginary = x.tril(-1), x.triu()
    return torch.complex(real - real.mT, imaginary + imaginary.triu(1).mT)


def from_skew_hermitian(a: Tensor) -> Tensor:
    """The real (..., n, n) that :func:`to_skew_hermitian` maps to ``a``."""
    return a.real.tril(-1) + a.imag.triu()
