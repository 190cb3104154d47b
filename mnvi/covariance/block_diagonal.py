"""A block-diagonal covariance by the Cholesky factors of its blocks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import positive_int
from .._torch.dtypes import Device
from ..linalg.contraction import contract, mirrored
from .base import Factor, FactorSpec, NaturalPart, Split


@dataclass(frozen=True)
class BlockDiagonal(FactorSpec):
    """Dense blocks of ``block_size`` neighbouring coordinates, independent of each other.

    About ``size``·``block_size`` numbers are held. The last block is smaller where ``block_size`` does not divide
    ``size``.
    """

    block_size: int

    def __post_init__(self) -> None:
        positive_int("block_size", self.block_size)

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "BlockDiagonalFactor":
        return BlockDiagonalFactor(size, min(self.block_size, size), device=device, dtype=dtype)

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        block = min(self.block_size, size)
        return size + -(-size // block) * block * block


class BlockDiagonalFactor(Factor):
    """Blocks diag(exp ``log_diagonal``) + tril(``off_diagonal``, −1); ``off_diagonal`` has shape (blocks, b, b)."""

    log_scales = ("log_diagonal",)

    def __init__(self, size: int, block_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(size)
        self.num_blocks = -(-size // block_size)
        self.block_size = block_size
        self.padding = self.num_blocks * block_size - size
        self.log_diagonal = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        shape = (self.num_blocks, block_size, block_size)
        self.off_diagonal = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_diagonal.fill_(scale).log_()
        self.off_diagonal.zero_()

    def multiply(self, e: Tensor) -> Tensor:
        return self._join(torch.einsum("kij,...kj->...ki", self._blocks(), self._split(e)))

    def multiply_transpose(self, x: Tensor) -> Tensor:
        return self._join(torch.einsum("kji,...kj->...ki", self._blocks(), self._split(x)))

    def multiply_squared(self, e: Tensor) -> Tensor:
        return self._join(torch.einsum("kij,...kj->...ki", self._blocks().square(), self._split(e)))

    def variance(self) -> Tensor:
        return self._join(self._blocks().square().sum(-1))

    def log_volume(self) -> Tensor:
        return self.log_diagonal.sum()

    @torch.no_grad()
    def rescale_(self, log_scale: Tensor) -> None:
        self.log_diagonal.add_(log_scale)
        self.off_diagonal.mul_(log_scale.exp())

    def log_cholesky_diagonal(self) -> Tensor:
        return self.log_diagonal

    def matrix(self) -> Tensor:
        return torch.block_diag(*self._blocks())[: self.size, : self.size]

    def scale_tril(self) -> Tensor:
        return self.matrix()

    def natural_parts(self, count: int) -> list[tuple[NaturalPart, int]]:
        return [(self, count)]

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        log_diagonal, off_diagonal = gradients
        gradient = off_diagonal.tril(-1) + self._split(log_diagonal / self.log_diagonal.exp()).diag_embed()
        return mirrored(self._blocks().mT @ gradient)

    @torch.no_grad()
    def contract_(self, step: Tensor) -> None:
        blocks = contract(self._blocks(), step)
        self.off_diagonal.copy_(blocks.tril(-1))
        self.log_diagonal.copy_(self._join(blocks.diagonal(dim1=-2, dim2=-1)).log())

    @property
    def like(self) -> Tensor:
        return self.log_diagonal

    def _blocks(self) -> Tensor:
        diagonal = self._split(self.log_diagonal.exp())
        return self.off_diagonal.tril(-1) + diagonal.diag_embed()

    def _split(self, x: Tensor) -> Tensor:  # (..., n) -> (..., blocks, b), zeros behind the last block
        return F.pad(x, (0, self.padding)).unflatten(-1, (self.num_blocks, self.block_size))

    def _join(self, x: Tensor) -> Tensor:  # (..., blocks, b) -> (..., n)
        return x.flatten(-2)[..., : self.size]
