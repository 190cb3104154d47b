"""A diagonal covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch.dtypes import Device
from ..linalg.contraction import contract_diagonal
from ..linalg.elementary import safe_sqrt
from .base import Convolve, DiagonalAndLoading, Factor, FactorSpec, NaturalPart, Split


@dataclass(frozen=True)
class Diagonal(FactorSpec):
    """Independent coordinates: F = diag(exp ``log_diagonal``); ``size`` numbers are held."""

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "DiagonalFactor":
        return DiagonalFactor(size, device=device, dtype=dtype)

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        return size


class DiagonalFactor(Factor):
    """F = diag(exp ``log_diagonal``), shape (n, n)."""

    log_scales = ("log_diagonal",)

    def __init__(self, size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(size)
        self.log_diagonal = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()

    def multiply(self, e: Tensor) -> Tensor:
        return e * self.log_diagonal.exp()

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return x * self.log_diagonal.exp()

    def multiply_squared(self, e: Tensor) -> Tensor:
        return e * self.variance()

    def patch_norm(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        return independent_patch_norm(x, self.variance(), convolve, groups)

    def variance(self) -> Tensor:
        return (2 * self.log_diagonal).exp()

    def log_volume(self) -> Tensor:
        return self.log_diagonal.sum()

    @torch.no_grad()
    def rescale_(self, log_scale: Tensor) -> None:
        self.log_diagonal.add_(log_scale)

    def log_cholesky_diagonal(self) -> Tensor:
        return self.log_diagonal

    def diagonal_and_loading(self) -> DiagonalAndLoading:
        return self.log_diagonal.exp(), self.log_diagonal.new_zeros(self.size, 0)

    def matrix(self) -> Tensor:
        return self.log_diagonal.exp().diag_embed()

    def scale_tril(self) -> Tensor:
        return self.matrix()

    def natural_parts(self, count: int) -> list[tuple[NaturalPart, int]]:
        return [(self, count)]

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        return gradients[0]  # the diagonal of FᵀG, which is all of it

    @torch.no_grad()
    def contract_(self, step: Tensor) -> None:
        self.log_diagonal.copy_(contract_diagonal(self.log_diagonal, step))

    @property
    def like(self) -> Tensor:
        return self.log_diagonal


def independent_patch_norm(x: Tensor, variance: Tensor, convolve: Convolve, groups: int) -> Tensor:
    """:meth:`Factor.patch_norm` of a diagonal F Fᵀ, from one kernel, ``variance``, of the squared input."""
    # A convolution routine may sum in a transformed domain, so a square near 0 can come out below it.
    return safe_sqrt(convolve(x.square(), variance.expand(groups, -1)).clamp_min(0))
