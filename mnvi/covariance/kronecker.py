"""A Kronecker product of two covariances."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._checks import instance
from .._torch.dtypes import Device
from .base import Factor, FactorSpec, NaturalPart, Split
from .dense import Dense


@dataclass(frozen=True)
class Kronecker(FactorSpec):
    """``left`` ⊗ ``right`` on a vector made of two axes, the right one varying fastest.

    For the columns of a convolution the axes are (channels, kernel positions). Elsewhere, where a layer has no such
    axes, ``size`` is split into its most nearly square pair of divisors, the smaller first (784 = 28·28, 300 = 15·20,
    7 = 1·7). What the two parts hold is held: for two Dense parts about a² + b² numbers instead of (a·b)².
    """

    left: FactorSpec = field(default_factory=Dense)
    right: FactorSpec = field(default_factory=Dense)

    def __post_init__(self) -> None:
        instance("left", self.left, FactorSpec)
        instance("right", self.right, FactorSpec)

    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "KroneckerFactor":
        a, b = split or most_square(size)
        left = self.left.build(a, device=device, dtype=dtype)
        return KroneckerFactor(left, self.right.build(b, device=device, dtype=dtype))

    def num_parameters(self, size: int, split: Split | None = None) -> int:
        a, b = split or most_square(size)
        return self.left.num_parameters(a) + self.right.num_parameters(b)

    def multiply_adds(self, size: int, split: Split | None = None) -> int:
        a, b = split or most_square(size)
        return b * self.left.multiply_adds(a) + a * self.right.multiply_adds(b)


class KroneckerFactor(Factor):
    """F = F_left ⊗ F_right, shape (n_left·n_right, m_left·m_right)."""

    def __init__(self, left: Factor, right: Factor) -> None:
        super().__init__(left.size * right.size, left.width * right.width)
        self.left, self.right = left, right
        self.has_scale = left.has_scale or right.has_scale

    def set_scale_(self, scale: float) -> None:
        count = self.left.has_scale + self.right.has_scale
        for part in (self.left, self.right):
            part.set_scale_(scale ** (1 / max(count, 1)))

    def multiply(self, e: Tensor) -> Tensor:
        grid = self.right.multiply(e.unflatten(-1, (self.left.width, self.right.width)))
        return self.left.multiply(grid.mT).mT.flatten(-2)

    def multiply_transpose(self, x: Tensor) -> Tensor:
        grid = self.right.multiply_transpose(x.unflatten(-1, (self.left.size, self.right.size)))
        return self.left.multiply_transpose(grid.mT).mT.flatten(-2)

    def multiply_squared(self, e: Tensor) -> Tensor:
        grid = self.right.multiply_squared(e.unflatten(-1, (self.left.width, self.right.width)))
        return self.left.multiply_squared(grid.mT).mT.flatten(-2)

    def variance(self) -> Tensor:
        return torch.outer(self.left.variance(), self.right.variance()).flatten()

    def log_volume(self) -> Tensor:
        return self.right.size * self.left.log_volume() + self.left.size * self.right.log_volume()

    def rescale_(self, log_scale: Tensor) -> None:
        (self.left if self.left.has_scale else self.right).rescale_(log_scale)

    def log_cholesky_diagonal(self) -> Tensor | None:
        left, right = self.left.log_cholesky_diagonal(), self.right.log_cholesky_diagonal()
        return None if left is None or right is None else (left.unsqueeze(-1) + right).flatten()

    def natural_parts(self, count: int) -> list[tuple[NaturalPart, int]]:
        left = self.left.natural_parts(count * self.right.size)
        return left + self.right.natural_parts(count * self.left.size)

    def matrix(self) -> Tensor:
        return torch.kron(self.left.matrix(), self.right.matrix())

    def scale_tril(self) -> Tensor:
        # torch.kron refuses the column-major strides that a Cholesky factor comes with.
        return torch.kron(self.left.scale_tril().contiguous(), self.right.scale_tril().contiguous())

    @property
    def like(self) -> Tensor:
        return self.left.like


def most_square(size: int) -> tuple[int, int]:
    """The divisors (a, b) of ``size`` with a·b = ``size``, a ≤ b, as close to each other as there are."""
    a = next(a for a in range(math.isqrt(size), 0, -1) if size % a == 0)
    return a, size // a
