"""A matrix normal whose every entry has a scale of its own."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import distributions
from .._checks import instance
from .._torch.dtypes import Device
from ..covariance import FactorSpec, Identity, LowRank
from ..covariance.base import DiagonalAndLoading, Split
from ..linalg.elementary import safe_sqrt
from ..linalg.solve import solve_triangular
from .base import Convolve, FlipPart, Noise, Posterior, PosteriorSpec
from .matrix_normal import MatrixNormal


@dataclass(frozen=True)
class ScaledMatrixNormal(PosteriorSpec):
    """W = M + S∘(A E Bᵀ): Cov = diag(s)(U ⊗ V)diag(s), with a free scale s_ij for each weight.

    It holds both ``Diagonal`` (A = B = I) and ``MatrixNormal`` (S = 1), and its KL is exact under every prior:
    log|Cov| = 2 Σ log s_ij + p·log|U| + n·log|V|, and Var_ij = s_ij²·U_ii·V_jj. What correlations cost in volume they
    have to be worth in likelihood, weight by weight; under ARD no rank-one pattern of variances is imposed.

    A linear layer's outputs can be drawn (``estimator="local"``) where either factor is ``Identity``, ``Diagonal`` or
    ``LowRank(r)``, for the price of 1 + r products with the weight's shape for each side; those of a convolution
    where also the row factor is no ``LowRank``. Other factors draw one weight a call: var(y_o) = U_oo·‖Bᵀ(s_o∘x)‖² is
    another quadratic form of p² terms for each output. The default has correlated inputs of each output unit, as the
    exact posterior of linear regression has.
    """

    row: FactorSpec = field(default_factory=Identity)
    column: FactorSpec = field(default_factory=lambda: LowRank(2))

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
    ) -> "ScaledMatrixNormalPosterior":
        return ScaledMatrixNormalPosterior(shape, self, split=split, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        return MatrixNormal(self.row, self.column).num_parameters(shape, split) + shape[0] * shape[1]

    def multiply_adds(self, shape: tuple[int, int], split: Split | None = None, *, outputs: int | None = None) -> int:
        products = 1 + sum(factor.rank for factor in (self.row, self.column) if isinstance(factor, LowRank))
        if outputs is not None:
            return outputs * shape[0] * shape[1] * products
        return MatrixNormal(self.row, self.column).multiply_adds(shape, split) + shape[0] * shape[1]


class ScaledMatrixNormalPosterior(Posterior):
    """``matrix_normal``, times exp(``log_scale``), of shape (n, p), entry by entry.

    Scales of rows and columns can be in either part. ``set_scale_`` puts all of it into ``log_scale``.
    """

    log_scales = ("log_scale",)

    def __init__(
        self,
        shape: tuple[int, int],
        family: ScaledMatrixNormal,
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)
        part = MatrixNormal(family.row, family.column)
        self.matrix_normal = part.build(shape, split=split, device=device, dtype=dtype)
        self.log_scale = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.matrix_normal.set_scale_(1.0)
        self.log_scale.fill_(scale).log_()

    def draw_noise(self) -> Noise:
        return self.matrix_normal.draw_noise()

    def deviation(self, noise: Noise) -> Tensor:
        return self.log_scale.exp() * self.matrix_normal.deviation(noise)

    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp() * self.matrix_normal.variance()

    def log_volume(self) -> Tensor:
        return self.log_scale.sum() + self.matrix_normal.log_volume()

    def distribution(self, loc: Tensor) -> distributions.ScaledMatrixNormal:
        row, column = self.matrix_normal.row.scale_tril(), self.matrix_normal.column.scale_tril()
        return distributions.ScaledMatrixNormal(loc, row, column, self.log_scale.exp())

    def balance_(self) -> None:
        """As :meth:`MatrixNormalPosterior.balance_`, for the matrix-normal part."""
        self.matrix_normal.balance_()

    def provides(self, method: str) -> bool:
        row, column = self.matrix_normal.row.diagonal_and_loading(), self.matrix_normal.column.diagonal_and_loading()
        if method in ("output_deviation", "transposed_output_deviation"):
            return row is not None and column is not None
        if method == "conv_deviation":
            return row is not None and column is not None and row[1].shape[1] == 0
        if method == "flip_parts":
            return row is not None and row[1].shape[1] == 0
        return super().provides(method)

    def flip_parts(self, noise: Noise) -> list[FlipPart]:
        return [(self.deviation(noise), None)]

    def output_deviation(self, x: Tensor) -> Tensor:
        parts = self._parts("output_deviation", "a linear layer's local estimator")
        return _outputs(x, self.log_scale.exp(), *reversed(parts))

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        parts = self._parts("transposed_output_deviation", "a transposed linear layer's local estimator")
        return _outputs(x, self.log_scale.exp().mT, *parts)

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        """Var y_o(l) = U_oo·(Σ_j s_oj²·b_j²·x_j(l)² + Σ_k (Σ_j s_oj·C_jk·x_j(l))²) over the patch j at l."""
        (a, _), (b, loading) = self._parts("conv_deviation", "a convolution's local estimator")
        scale = self.log_scale.exp()
        # A convolution routine may sum in a transformed domain, so a variance near 0 can come out below it.
        variance = convolve(x.square(), (scale * b).square()).clamp_min(0)
        for column in loading.mT:
            variance = variance + convolve(x, scale * column).square()
        return a.view(-1, *[1] * (variance.dim() - 2)) * safe_sqrt(variance) * torch.randn_like(variance)

    def _parts(self, method: str, user: str) -> tuple[DiagonalAndLoading, DiagonalAndLoading]:
        """What the factors of rows and columns are made of."""
        row, column = self.matrix_normal.row.diagonal_and_loading(), self.matrix_normal.column.diagonal_and_loading()
        if row is None or column is None or not self.provides(method):
            raise self._without(method, user)
        return row, column

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        """Σ_ii' (U₁⁻¹∘U)_ii'·(S (V₁⁻¹∘V) Sᵀ)_ii'."""
        row = _inverse(tril_row) * self.matrix_normal.row.covariance()
        column = _inverse(tril_column) * self.matrix_normal.column.covariance()
        scale = self.log_scale.exp()
        return (row * (scale @ column @ scale.mT)).sum()


def _outputs(x: Tensor, scale: Tensor, inputs: DiagonalAndLoading, outputs: DiagonalAndLoading) -> Tensor:
    """A draw of (S∘(A E Bᵀ)) x for each x, with B = [diag b, C] of the inputs j and A = [diag a, P] of the outputs o.

    a_o·(Σ_j s_oj²·b_j²·x_j² + Σ_k t_ok²)^½·ε_o + Σ_l P_ol·(Σ_j s_oj·b_j·x_j·e_lj + Σ_k f_lk·t_ok) with
    t_ok = Σ_j s_oj·C_jk·x_j and standard normal ε, e and f.
    """
    (b, c), (a, p) = inputs, outputs
    scaled = x * b
    shared = (x @ (c.mT.unsqueeze(1) * scale).flatten(0, 1).mT).unflatten(
        -1, (c.shape[1], len(scale))
    )  # t, (..., k, o)
    variance = scaled.square() @ scale.square().mT + shared.square().sum(-2)
    output = a * safe_sqrt(variance) * torch.randn_like(variance)
    if not p.shape[1]:
        return output
    each = (scaled.unsqueeze(-2) * _noise(x, p.shape[1], x.shape[-1])) @ scale.mT + _noise(
        x, p.shape[1], c.shape[1]
    ) @ shared
    return output + (each * p.mT).sum(-2)


def _noise(x: Tensor, *shape: int) -> Tensor:
    return torch.randn(*x.shape[:-1], *shape, device=x.device, dtype=x.dtype)


def _inverse(tril: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹."""
    identity = torch.eye(len(tril), device=tril.device, dtype=tril.dtype)
    half = solve_triangular(tril, identity, upper=False)
    return half.mT @ half
