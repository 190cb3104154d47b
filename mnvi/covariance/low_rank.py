"""A diagonal plus a low-rank covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._checks import positive_int
from .._torch.dtypes import Device
from .base import DiagonalAndLoading, Factor, FactorSpec, Split


@dataclass(frozen=True)
class LowRank(FactorSpec):
    """diag(d²) + C Cᵀ with C of shape (size, ``rank``); ``size``·(``rank`` + 1) numbers are held."""

    rank: int

    def __post_init__(self) -> None:
        positive_int("rank", self.rank)

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "LowRankFactor":
        return LowRankFactor(size, self.rank, device=device, dtype=dtype)

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        return size * (self.rank + 1)


class LowRankFactor(Factor):
    """F = [diag(exp ``log_diagonal``), ``loading``], shape (n, n + rank).

    log|F Fᵀ| = 2 Σ log d + log|I + Cᵀ diag(d)⁻² C| (the matrix-determinant lemma), O(n·rank²).
    """

    log_scales = ("log_diagonal",)

    def __init__(self, size: int, rank: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(size, size + rank)
        self.rank = rank
        self.log_diagonal = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        self.loading = nn.Parameter(torch.zeros(size, rank, device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()
        # C = 0 is a saddle point: its gradient vanishes there. A row of C adds a hundredth of its variance.
        self.loading.normal_(std=0.1 * scale / self.rank**0.5)

    def multiply(self, e: Tensor) -> Tensor:
        return e[..., : self.size] * self.log_diagonal.exp() + e[..., self.size :] @ self.loading.mT

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.log_diagonal.exp(), x @ self.loading], -1)

    def variance(self) -> Tensor:
        return (2 * self.log_diagonal).exp() + self.loading.square().sum(-1)

    def log_volume(self) -> Tensor:
        # |det R| of a QR factorisation, where a Cholesky factor would need the squares of what may be large.
        if self.rank >= self.size:  # then F Fᵀ itself is the smaller matrix, and well conditioned where d is small
            return _log_volume(self.matrix().mT)
        scaled = self.loading * (-self.log_diagonal).exp().unsqueeze(-1)
        identity = torch.eye(self.rank, device=scaled.device, dtype=scaled.dtype)
        return self.log_diagonal.sum() + _log_volume(torch.cat([scaled, identity]))

    @torch.no_grad()
    def rescale_(self, log_scale: Tensor) -> None:
        self.log_diagonal.add_(log_scale)
        self.loading.mul_(log_scale.exp())

    def diagonal_and_loading(self) -> DiagonalAndLoading:
        return self.log_diagonal.exp(), self.loading

    def matrix(self) -> Tensor:
        return torch.cat([self.log_diagonal.exp().diag_embed(), self.loading], -1)

    @property
    def like(self) -> Tensor:
        return self.log_diagonal


def _log_volume(tall: Tensor) -> Tensor:
    """½ log |Gᵀ G| for a tall matrix G of full rank."""
    return torch.linalg.qr(tall).R.diagonal().abs().log().sum()
