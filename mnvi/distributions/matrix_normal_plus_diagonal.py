"""The matrix-normal distribution with independent noise of its own in every entry."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from .base import KroneckerNormal, kronecker
from .matrix_normal import MatrixNormal


class MatrixNormalPlusDiagonal(KroneckerNormal):
    """W = M + A E Bᵀ + s ∘ E₂, that is `W.flatten()` ~ N(M.flatten(), A Aᵀ ⊗ B Bᵀ + diag(s²)).

    `log_prob`, `entropy` and the divergences that need them factor the dense covariance in O((np)³), for small matrices
    and tests: its determinant has no other closed form. Drawing costs what it costs for `MatrixNormal`.
    `row_covariance` and `column_covariance` are those of A E Bᵀ.

    Args:
        loc, scale_tril_row, scale_tril_column, validate_args: as for `MatrixNormal`, with its errors.
        scale_diagonal: s, shape (..., n, p), a ValueError where negative; with s = 0 this is `MatrixNormal`.

    Example:
        >>> q = MatrixNormalPlusDiagonal(torch.zeros(2, 3), torch.eye(2), torch.eye(3), torch.ones(2, 3))
        >>> q.variance  # 2 everywhere
        >>> q.log_prob(q.sample((5,)))  # (5,)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = MatrixNormal.arg_constraints | {
        "scale_diagonal": constraints.independent(constraints.nonnegative, 2)
    }

    scale_diagonal: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale_tril_row: Tensor,
        scale_tril_column: Tensor,
        scale_diagonal: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(validate_args, loc, scale_tril_row, scale_tril_column, scale_diagonal)

    def expand(self, batch_shape, _instance=None):
        return self._expand_into(self._get_checked_instance(MatrixNormalPlusDiagonal, _instance), batch_shape)

    @property
    def variance(self) -> Tensor:
        """The marginal variances U_ii V_jj + s_ij², shape (..., n, p)."""
        return super().variance + self.scale_diagonal.square()

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + A E Bᵀ + s ∘ E₂, shape `sample_shape` + (..., n, p)."""
        noise = self._standard_normal(sample_shape, generator)
        return super().rsample(sample_shape, generator=generator) + self.scale_diagonal * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(W.flatten(); M.flatten(), U ⊗ V + diag(s²)), in nats, for W of shape (..., n, p). O((np)³)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.to_multivariate_normal().log_prob(value.flatten(-2))

    def entropy(self) -> Tensor:
        """½ np (1 + log 2π) + ½ log|U ⊗ V + diag(s²)|, in nats, shape (...). O((np)³)."""
        return self.to_multivariate_normal().entropy()

    def to_multivariate_normal(self) -> MultivariateNormal:
        """The distribution of `W.flatten(-2)`, row by row: N(M.flatten(-2), U ⊗ V + diag(s²)). O((np)³).

        It holds (np)² numbers for each distribution of the batch.

        Raises:
            torch.linalg.LinAlgError: the covariance is singular in its dtype.
        """
        kron = kronecker(self.row_covariance, self.column_covariance)
        factor = torch.linalg.cholesky(kron + torch.diag_embed(self.scale_diagonal.flatten(-2).square()))
        return MultivariateNormal(self.loc.flatten(-2), scale_tril=factor, validate_args=self._validate_args)
