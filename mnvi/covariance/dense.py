"""A dense covariance by its Cholesky factor."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch.dtypes import Device
from ..linalg import triangular
from ..linalg.contraction import contract, mirrored
from .base import Factor, FactorSpec, NaturalPart, Split


@dataclass(frozen=True)
class Dense(FactorSpec):
    """Any positive definite covariance: F is lower-triangular, its diagonal stored as a logarithm.

    ``size``²/2 numbers are held for large sizes, ``size``² below 300; whatever they
    are, they are a covariance (see :mod:`mnvi.linalg.triangular`). Source: Rudnev & Kropotov (2019),
    'Parameterization'.
    """

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "DenseFactor":
        return DenseFactor(size, device=device, dtype=dtype)

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        return size + triangular.packed_size(size)


class DenseFactor(Factor):
    """F = diag(exp ``log_diagonal``) + the strictly lower-triangular matrix packed in ``off_diagonal``."""

    log_scales = ("log_diagonal",)

    def __init__(self, size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(size)
        self.log_diagonal = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        self.off_diagonal = nn.Parameter(torch.zeros(triangular.packed_size(size), device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()
        self.off_diagonal.zero_()

    def multiply(self, e: Tensor) -> Tensor:
        return triangular.transposed_product(e, self.off_diagonal, self.log_diagonal)

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return triangular.product(x, self.off_diagonal, self.log_diagonal)

    def multiply_squared(self, e: Tensor) -> Tensor:
        return triangular.transposed_product(e, self.off_diagonal.square(), 2 * self.log_diagonal)

    def transpose_norm(self, x: Tensor) -> Tensor:
        return triangular.norm(x, self.off_diagonal, self.log_diagonal)

    def variance(self) -> Tensor:
        return triangular.variance(self.off_diagonal, self.log_diagonal)

    def trace(self) -> Tensor:
        return triangular.trace(self.off_diagonal, self.log_diagonal)

    def log_volume(self) -> Tensor:
        return self.log_diagonal.sum()

    @torch.no_grad()
    def rescale_(self, log_scale: Tensor) -> None:
        self.log_diagonal.add_(log_scale)
        self.off_diagonal.mul_(log_scale.exp())

    def log_cholesky_diagonal(self) -> Tensor:
        return self.log_diagonal

    def matrix(self) -> Tensor:
        return triangular.unpack(self.off_diagonal, self.log_diagonal)

    def scale_tril(self) -> Tensor:
        return self.matrix()

    def natural_parts(self, count: int) -> list[tuple[NaturalPart, int]]:
        return [(self, count)]

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        # tril(FᵀG) needs only the lower triangle of G, which is what F's parameters have; FᵀG itself is symmetric.
        log_diagonal, off_diagonal = gradients
        gradient = triangular.unpack_strict(off_diagonal, self.size)
        gradient.diagonal().copy_(log_diagonal / self.log_diagonal.exp())
        return mirrored(self.matrix().mT @ gradient)

    @torch.no_grad()
    def contract_(self, step: Tensor) -> None:
        off_diagonal, log_diagonal = triangular.pack(contract(self.matrix(), step))
        self.off_diagonal.copy_(off_diagonal)
        self.log_diagonal.copy_(log_diagonal)

    @property
    def like(self) -> Tensor:
        return self.log_diagonal
