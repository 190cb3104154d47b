"""The matrix-normal family: one covariance for the rows, one for the columns."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import distributions
from .._checks import instance
from .._torch.dtypes import Device
from ..covariance import Dense, FactorSpec
from ..covariance.base import NaturalPart, Split
from ..linalg.elementary import safe_sqrt
from ..linalg.solve import solve_triangular
from .base import Convolve, FlipPart, Noise, Posterior, PosteriorSpec, Spread


@dataclass(frozen=True)
class MatrixNormal(PosteriorSpec):
    """W = M + A E Bᵀ with standard normal E: Cov = U ⊗ V, U = A Aᵀ over rows (outputs), V = B Bᵀ over columns (inputs).

    ``row`` and ``column`` describe A and B; where both are ``Identity``, every variance stays 1. Two ``Dense`` factors
    hold about (n² + p²)/2 numbers. Sources: Louizos & Welling (2016, arXiv:1603.04733), the family; Rudnev & Kropotov
    (2019), dense factors.
    """

    row: FactorSpec = field(default_factory=Dense)
    column: FactorSpec = field(default_factory=Dense)

    def __post_init__(self) -> None:
        instance("row", self.row, FactorSpec)
        instance("column", self.column, FactorSpec)

    def build(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> "MatrixNormalPosterior":
        return MatrixNormalPosterior(shape, self.row, self.column, split=split, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        return self.row.num_parameters(shape[0]) + self.column.num_parameters(shape[1], split)

    def multiply_adds(self, shape: tuple[int, int], split: Split | None = None, *, outputs: int | None = None) -> int:
        row, column = self.row.multiply_adds(shape[0]), self.column.multiply_adds(shape[1], split)
        return shape[0] * column + shape[1] * row if outputs is None else outputs * (row + column)


class MatrixNormalPosterior(Posterior):
    """Cov = (A Aᵀ) ⊗ (B Bᵀ) with factors A = ``row`` and B = ``column``.

    (c·A, B/c) is the same posterior. ``set_scale_`` gives both factors the same scale and ``balance_`` does so at
    any later time, without changing the distribution.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        row: FactorSpec,
        column: FactorSpec,
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)
        self.row = row.build(shape[0], device=device, dtype=dtype)
        self.column = column.build(shape[1], split=split, device=device, dtype=dtype)

    def set_scale_(self, scale: float) -> None:
        count = self.row.has_scale + self.column.has_scale
        for factor in (self.row, self.column):
            factor.set_scale_(scale ** (1 / max(count, 1)))

    def draw_noise(self) -> Noise:
        like = self.row.like
        return (torch.randn(self.row.width, self.column.width, device=like.device, dtype=like.dtype),)

    def deviation(self, noise: Noise) -> Tensor:
        return self.row.multiply(self.column.multiply(noise[0]).mT).mT

    def variance(self) -> Tensor:
        return torch.outer(self.row.variance(), self.column.variance())

    def log_volume(self) -> Tensor:
        return torch.add(self.shape[1] * self.row.log_volume(), self.column.log_volume(), alpha=self.shape[0])

    def distribution(self, loc: Tensor) -> distributions.MatrixNormal:
        return distributions.MatrixNormal(loc, self.row.scale_tril(), self.column.scale_tril())

    def total_variance(self) -> Tensor:
        return self.row.trace() * self.column.trace()

    def scaled_variance(self, row: Tensor, column: Tensor) -> Tensor:
        return (row * self.row.variance()).sum() * (column * self.column.variance()).sum()

    @torch.no_grad()
    def balance_(self) -> None:
        """Rescale (A, B) to (c·A, B/c) so that log|U|/n = log|V|/p; the distribution stays as it is."""
        if self.row.has_scale and self.column.has_scale:
            excess = 0.25 * (self.row.log_det() / self.shape[0] - self.column.log_det() / self.shape[1])
            self.row.rescale_(-excess)
            self.column.rescale_(excess)

    def output_deviation(self, x: Tensor) -> Tensor:
        return self.column.transpose_norm(x) * self.row.multiply(
            torch.randn(*x.shape[:-1], self.row.width, device=x.device, dtype=x.dtype)
        )

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        return self.row.transpose_norm(x) * self.column.multiply(
            torch.randn(*x.shape[:-1], self.column.width, device=x.device, dtype=x.dtype)
        )

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        norm = self.column.patch_norm(x, convolve, groups).movedim(1, -1)  # (N, *locations, groups)
        noise = self.row.multiply(torch.randn(*norm.shape[:-1], self.row.width, device=x.device, dtype=x.dtype))
        return (norm.unsqueeze(-1) * noise.unflatten(-1, (groups, -1))).flatten(-2).movedim(-1, 1)

    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        """Var y_o(l) = Σ_kk' V_(o,k)(o,k')·z(l−k)ᵀz(l−k'), z = Aᵀx: a K×K Gram matrix at every output location."""
        z = self._project_channels(x, groups)  # (N, groups, m, *locations)
        moved = spread(z.flatten(0, 2).unsqueeze(1)).unflatten(0, z.shape[:3])  # (N, groups, m, K, *out)
        gram = torch.einsum("ngak...,ngaj...->ngkj...", moved, moved)
        outputs = self.shape[1] // moved.shape[3]
        blocks = self.column.covariance().unflatten(0, (outputs, -1)).unflatten(-1, (outputs, -1))
        blocks = blocks.diagonal(dim1=0, dim2=2)  # (K, K, out/groups)
        variance = torch.einsum("kjo,ngkj...->ngo...", blocks, gram).flatten(1, 2).clamp_min(0)
        return safe_sqrt(variance) * torch.randn_like(variance)

    def flip_parts(self, noise: Noise) -> list[FlipPart]:
        """A·(E Bᵀ), or (A E Bᵀ) as it is where A mixes no rows."""
        parts = self.row.diagonal_and_loading()
        if parts is not None and not parts[1].shape[1]:
            return [(self.deviation(noise), None)]
        return [(self.column.multiply(noise[0]), self.row)]

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        row = solve_triangular(tril_row, self.row.matrix(), upper=False)
        column = solve_triangular(tril_column, self.column.matrix(), upper=False)
        return row.square().sum() * column.square().sum()

    def natural_parts(self) -> list[tuple[NaturalPart, int]]:
        return self.row.natural_parts(self.shape[1]) + self.column.natural_parts(self.shape[0])

    def whitened(self, gradient: Tensor) -> Tensor:
        return self.row.multiply_transpose(self.column.multiply_transpose(gradient).mT).mT

    def unwhitened(self, step: Tensor) -> Tensor:
        return self.deviation((step,))

    def _project_channels(self, x: Tensor, groups: int) -> Tensor:  # Aᵀ x restricted to each group of input channels
        member = torch.eye(groups, device=x.device, dtype=x.dtype).repeat_interleave(x.shape[1] // groups, 1)
        parts = x.movedim(1, -1).unsqueeze(1) * member.view(groups, *[1] * (x.dim() - 2), -1)
        return self.row.multiply_transpose(parts).movedim(-1, 2)
