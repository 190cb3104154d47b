"""A dense covariance by its Cholesky factor."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Covariance, Factor
from .triangular import lower_product, lower_transposed_product, row_squares


@dataclass(frozen=True)
class Dense(Covariance):
    """Any positive definite covariance: F is lower-triangular, its diagonal stored as a logarithm.

    ``size``² numbers are held. Source: Rudnev & Kropotov (2019), 'Parameterization'.
    """

    def build(self, size: int, *, split: tuple[int, int] | None = None, device=None, dtype=None) -> "DenseFactor":
        return DenseFactor(size, device=device, dtype=dtype)

    def num_parameters(self, size: int, split: tuple[int, int] | None = None) -> int:
        return size * (size + 1)


class DenseFactor(Factor):
    """F = diag(exp ``log_diagonal``) + ``off_diagonal``, the latter strictly lower-triangular, shape (n, n)."""

    def __init__(self, size: int, *, device=None, dtype=None) -> None:
        super().__init__(size)
        self.log_diagonal = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        self.off_diagonal = nn.Parameter(torch.zeros(size, size, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()
        self.off_diagonal.zero_()

    def multiply(self, e: Tensor) -> Tensor:
        return lower_transposed_product(e, self.off_diagonal, self.log_diagonal.exp())

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return lower_product(x, self.off_diagonal, self.log_diagonal.exp())

    def variance(self) -> Tensor:
        return (2 * self.log_diagonal).exp() + row_squares(self.off_diagonal)

    def log_det(self) -> Tensor:
        return 2 * self.log_diagonal.sum()

    @torch.no_grad()
    def rescale_(self, log_scale: Tensor) -> None:
        self.log_diagonal.add_(log_scale)
        self.off_diagonal.mul_(log_scale.exp())

    def log_cholesky_diagonal(self) -> Tensor:
        return self.log_diagonal

    def matrix(self) -> Tensor:
        return self.off_diagonal.tril(-1) + self.log_diagonal.exp().diag_embed()

    def scale_tril(self) -> Tensor:
        return self.matrix()
