"""A matrix normal plus independent noise on every weight."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import distributions
from .._checks import instance, positive_float
from .._torch.dtypes import Device
from ..covariance import Dense, FactorSpec
from ..covariance.base import Split
from .base import Convolve, FlipPart, Noise, Posterior, PosteriorSpec, Spread
from .diagonal import Diagonal
from .matrix_normal import MatrixNormal


@dataclass(frozen=True)
class MatrixNormalPlusDiagonal(PosteriorSpec):
    """W = M + A E Bᵀ + S∘E₂: Cov = U ⊗ V + diag(s²), with n·p numbers more than the matrix normal.

    Marginal variances, draws and local reparametrisation are exact. log|Cov| has no closed form; 2·``log_volume`` is a
    lower bound of it, so the **KL is an upper bound** and the ELBO a lower bound still:

    - chain rule, where both factors have a Cholesky diagonal: Σ_ij log(A_ii²·B_jj² + s_ij²), exact where either part
      vanishes. A ⊗ B is the Cholesky factor of U ⊗ V, whose squared diagonal holds the variances given the past;
      knowing the past of both parts cannot raise a variance.
    - Minkowski's determinant inequality otherwise (``LowRank``): d·log(e^{log|U⊗V|/d} + e^{Σ log s²/d}), d = n·p.

    ``ratio``: the initial scale of the matrix-normal part relative to the diagonal part. Small, since the scale
    u_i·v_j, a product of two parameters, grows at twice the rate of s_ij; single weights find their own scales first
    and correlations come in where they pay (README, 'Which family').
    """

    row: FactorSpec = field(default_factory=Dense)
    column: FactorSpec = field(default_factory=Dense)
    ratio: float = 0.01

    def __post_init__(self) -> None:
        instance("row", self.row, FactorSpec)
        instance("column", self.column, FactorSpec)
        positive_float("ratio", self.ratio)

    def build(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> "MatrixNormalPlusDiagonalPosterior":
        return MatrixNormalPlusDiagonalPosterior(shape, self, split=split, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        return MatrixNormal(self.row, self.column).num_parameters(shape, split) + shape[0] * shape[1]

    def multiply_adds(self, shape: tuple[int, int], split: Split | None = None, *, outputs: int | None = None) -> int:
        of_diagonal = Diagonal().multiply_adds(shape, split, outputs=outputs)
        return MatrixNormal(self.row, self.column).multiply_adds(shape, split, outputs=outputs) + of_diagonal


class MatrixNormalPlusDiagonalPosterior(Posterior):
    """The sum of two independent parts, ``matrix_normal`` and ``diagonal``."""

    exact = False

    def __init__(
        self,
        shape: tuple[int, int],
        family: MatrixNormalPlusDiagonal,
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)
        self.ratio = family.ratio
        part = MatrixNormal(family.row, family.column)
        self.matrix_normal = part.build(shape, split=split, device=device, dtype=dtype)
        self.diagonal = Diagonal().build(shape, device=device, dtype=dtype)

    def set_scale_(self, scale: float) -> None:
        total = (1 + self.ratio**2) ** 0.5
        self.matrix_normal.set_scale_(scale * self.ratio / total)
        self.diagonal.set_scale_(scale / total)

    def draw_noise(self) -> Noise:
        return self.matrix_normal.draw_noise() + self.diagonal.draw_noise()

    def deviation(self, noise: Noise) -> Tensor:
        return self.matrix_normal.deviation(noise[:1]) + self.diagonal.deviation(noise[1:])

    def variance(self) -> Tensor:
        return self.matrix_normal.variance() + self.diagonal.variance()

    def log_volume(self) -> Tensor:
        """A lower bound of ½ log|U ⊗ V + diag(s²)|; which one, the family's docstring says."""
        row, column = self.matrix_normal.row.log_cholesky_diagonal(), self.matrix_normal.column.log_cholesky_diagonal()
        log_scale = self.diagonal.log_scale
        if row is not None and column is not None:
            return 0.5 * torch.logaddexp(2 * (row.unsqueeze(-1) + column), 2 * log_scale).sum()
        size = self.shape[0] * self.shape[1]
        return 0.5 * size * torch.logaddexp(2 * self.matrix_normal.log_volume() / size, 2 * log_scale.mean())

    def distribution(self, loc: Tensor) -> distributions.MatrixNormalPlusDiagonal:
        row, column = self.matrix_normal.row.scale_tril(), self.matrix_normal.column.scale_tril()
        return distributions.MatrixNormalPlusDiagonal(loc, row, column, self.diagonal.log_scale.exp())

    def total_variance(self) -> Tensor:
        return self.matrix_normal.total_variance() + self.diagonal.total_variance()

    def scaled_variance(self, row: Tensor, column: Tensor) -> Tensor:
        return self.matrix_normal.scaled_variance(row, column) + self.diagonal.scaled_variance(row, column)

    def balance_(self) -> None:
        """As :meth:`MatrixNormalPosterior.balance_`, for the matrix-normal part."""
        self.matrix_normal.balance_()

    def flip_parts(self, noise: Noise) -> list[FlipPart]:
        return self.matrix_normal.flip_parts(noise[:1]) + self.diagonal.flip_parts(noise[1:])

    def output_deviation(self, x: Tensor) -> Tensor:
        return self.matrix_normal.output_deviation(x) + self.diagonal.output_deviation(x)

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        matrix_normal = self.matrix_normal.transposed_output_deviation(x)
        return matrix_normal + self.diagonal.transposed_output_deviation(x)

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        diagonal = self.diagonal.conv_deviation(x, convolve, groups)
        return self.matrix_normal.conv_deviation(x, convolve, groups) + diagonal

    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        diagonal = self.diagonal.conv_transpose_deviation(x, convolve, spread, groups)
        return self.matrix_normal.conv_transpose_deviation(x, convolve, spread, groups) + diagonal

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        diagonal = self.diagonal.mahalanobis(tril_row, tril_column)
        return self.matrix_normal.mahalanobis(tril_row, tril_column) + diagonal
