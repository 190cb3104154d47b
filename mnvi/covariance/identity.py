"""The identity covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch.dtypes import Device
from .base import Convolve, DiagonalAndLoading, Factor, FactorSpec, Split
from .diagonal import independent_patch_norm


@dataclass(frozen=True)
class Identity(FactorSpec):
    """Independent coordinates of unit variance; nothing is held, so the other factor carries the scale."""

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "IdentityFactor":
        return IdentityFactor(size, device=device, dtype=dtype)

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        return 0


class IdentityFactor(Factor):
    """F = I, shape (n, n)."""

    has_scale = False

    def __init__(self, size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(size)
        # Carries the dtype and the device through .to(), which a module without parameters cannot otherwise know.
        self.register_buffer("anchor", torch.zeros((), device=device, dtype=dtype))
        self.anchor: Tensor

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        """No scale to set; ``anchor`` gets its value, which ``to_empty`` takes from it."""
        self.anchor.zero_()

    def multiply(self, e: Tensor) -> Tensor:
        return e

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return x

    def multiply_squared(self, e: Tensor) -> Tensor:
        return e

    def patch_norm(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        return independent_patch_norm(x, self.variance(), convolve, groups)

    def variance(self) -> Tensor:
        return self.anchor.new_ones(self.size)

    def log_volume(self) -> Tensor:
        return self.anchor.new_zeros(())

    def rescale_(self, log_scale: Tensor) -> None:
        raise ValueError("an Identity factor has no scale to change")

    def log_cholesky_diagonal(self) -> Tensor:
        return self.anchor.new_zeros(self.size)

    def diagonal_and_loading(self) -> DiagonalAndLoading:
        return self.anchor.new_ones(self.size), self.anchor.new_zeros(self.size, 0)

    def matrix(self) -> Tensor:
        return torch.eye(self.size, device=self.anchor.device, dtype=self.anchor.dtype)

    def scale_tril(self) -> Tensor:
        return self.matrix()

    @property
    def like(self) -> Tensor:
        return self.anchor
