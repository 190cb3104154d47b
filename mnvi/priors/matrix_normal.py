"""Any matrix-normal prior, such as the posterior of an earlier task."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch.dtypes import Device
from ..linalg.solve import solve_triangular
from ..posteriors import Posterior
from .base import GivenPrior, PriorSpec, expand, finite


@dataclass(frozen=True, eq=False)
class MatrixNormal(PriorSpec):
    """W ~ MN(loc, U₁, V₁).

    KL = ½[tr((U₁⊗V₁)⁻¹ Cov) + tr(V₁⁻¹Δᵀ U₁⁻¹Δ) − n·p + p·log|U₁| + n·log|V₁| − log|Cov|], Δ = loc − M.

    Args:
        loc: mean, shape (n, p), or one that broadcasts to it.
        scale_tril_row: lower Cholesky factor of U₁, shape (n, n).
        scale_tril_column: lower Cholesky factor of V₁, shape (p, p).

    Example:
        >>> task = layer.distribution()  # of a matrix-normal layer: the posterior of one task is the next one's prior
        >>> prior = mnvi.priors.MatrixNormal(task.loc, task.scale_tril_row, task.scale_tril_column)
    """

    loc: Tensor
    scale_tril_row: Tensor
    scale_tril_column: Tensor

    def __post_init__(self) -> None:
        for name in ("loc", "scale_tril_row", "scale_tril_column"):
            finite(name, getattr(self, name))
        for name in ("scale_tril_row", "scale_tril_column"):
            _check_tril(name, getattr(self, name))

    def build(
        self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None
    ) -> "MatrixNormalPrior":
        n, p = shape
        if self.scale_tril_row.shape != (n, n) or self.scale_tril_column.shape != (p, p):
            came = f"{tuple(self.scale_tril_row.shape)} and {tuple(self.scale_tril_column.shape)}"
            raise ValueError(f"a weight of shape {shape} needs factors of shape {(n, n)} and {(p, p)}, got {came}")
        prior = MatrixNormalPrior(
            loc=expand("loc", self.loc, shape).to(dtype=dtype),
            scale_tril_row=self.scale_tril_row.to(dtype=dtype),
            scale_tril_column=self.scale_tril_column.to(dtype=dtype),
        )
        return prior.to(device)


class MatrixNormalPrior(GivenPrior):
    """The prior's mean and factors, buffers."""

    loc: Tensor
    scale_tril_row: Tensor
    scale_tril_column: Tensor

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        row, column = self.scale_tril_row, self.scale_tril_column
        half = solve_triangular(row, mean - self.loc, upper=False)
        white = solve_triangular(column, half.mT, upper=False)  # (L_row⁻¹ Δ L_column⁻ᵀ)ᵀ
        n, p = mean.shape
        prior_log_volume = p * row.diagonal().log().sum() + n * column.diagonal().log().sum()
        quadratic = posterior.mahalanobis(row, column) + white.square().sum()
        return 0.5 * (quadratic - n * p) + prior_log_volume - posterior.log_volume()


def _check_tril(name: str, tril: Tensor) -> None:
    if tril.dim() != 2 or tril.shape[0] != tril.shape[1]:
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(tril.shape)}")
    if bool((tril.triu(1) != 0).any()) or bool((tril.diagonal() <= 0).any()):
        raise ValueError(f"{name} must be lower-triangular with a positive diagonal")
