"""The matrix-normal distribution with a scale of its own for every entry of its noise."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from .base import KroneckerNormal, kronecker, product, triangular_solve
from .matrix_normal import MatrixNormal


class CorrectedMatrixNormal(KroneckerNormal):
    """W = M + A (s ∘ E) Bᵀ, that is `W.flatten()` ~ N(M.flatten(), (A ⊗ B) diag(s²) (A ⊗ B)ᵀ).

    All costs are those of `MatrixNormal`, but for divergences from and to other correlated distributions, which make
    the dense covariance. `row_covariance` and `column_covariance` are those of A E Bᵀ.

    Args:
        loc, scale_tril_row, scale_tril_column, validate_args: as for `MatrixNormal`, with its errors.
        scale: s, shape (..., n, p), a ValueError where not positive; with s = 1 this is `MatrixNormal`.

    Example:
        >>> q = CorrectedMatrixNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(3), torch.full((2, 3), 0.1))
        >>> q.variance  # 0.01 everywhere
        >>> q.log_prob(q.sample((5,)))  # (5,)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = MatrixNormal.arg_constraints | {
        "scale": constraints.independent(constraints.positive, 2)
    }

    scale: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale_tril_row: Tensor,
        scale_tril_column: Tensor,
        scale: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(validate_args, loc, scale_tril_row, scale_tril_column, scale)

    def expand(self, batch_shape, _instance=None):
        return self._expand_into(self._get_checked_instance(CorrectedMatrixNormal, _instance), batch_shape)

    @property
    def variance(self) -> Tensor:
        """The marginal variances (A∘A) s² (B∘B)ᵀ, shape (..., n, p)."""
        return product(self.scale_tril_row.square(), self.scale.square(), self.scale_tril_column.square().mT)

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + A (s ∘ E) Bᵀ, shape `sample_shape` + (..., n, p)."""
        noise = self.scale * self._standard_normal(sample_shape, generator)
        return self.loc + product(self.scale_tril_row, noise, self.scale_tril_column.mT)

    def log_prob(self, value: Tensor) -> Tensor:
        """−½ ‖A⁻¹(W − M)B⁻ᵀ / s‖² − ½ log|Cov| − ½ np log 2π, in nats, for W of shape (..., n, p)."""
        if self._validate_args:
            self._validate_sample(value)
        rows = triangular_solve(self.scale_tril_row, value - self.loc)
        noise = triangular_solve(self.scale_tril_column, rows.mT).mT / self.scale
        standard = torch.distributions.Normal(torch.zeros_like(noise), 1.0, validate_args=False)
        return standard.log_prob(noise).sum((-2, -1)) - self._half_log_det()

    def entropy(self) -> Tensor:
        """½ np (1 + log 2π) + Σ log s_ij + p Σ log A_ii + n Σ log B_jj, in nats, shape (...)."""
        unit = MatrixNormal(self.loc, self.scale_tril_row, self.scale_tril_column, validate_args=False)
        return unit.entropy() + self.scale.log().sum((-2, -1))

    def to_multivariate_normal(self) -> MultivariateNormal:
        """The distribution of `W.flatten(-2)`, row by row, its Cholesky factor being (A ⊗ B) diag(s).

        It holds (np)² numbers for each distribution of the batch.
        """
        factor = kronecker(self.scale_tril_row, self.scale_tril_column) * self.scale.flatten(-2).unsqueeze(-2)
        return MultivariateNormal(self.loc.flatten(-2), scale_tril=factor, validate_args=self._validate_args)

    def _half_log_det(self) -> Tensor:
        unit = MatrixNormal(self.loc, self.scale_tril_row, self.scale_tril_column, validate_args=False)
        return unit._half_log_det() + self.scale.log().sum((-2, -1))
