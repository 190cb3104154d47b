"""The matrix-normal distribution with a scale of its own for every entry."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from .base import KroneckerNormal
from .matrix_normal import MatrixNormal


class ScaledMatrixNormal(KroneckerNormal):
    """W = M + s ∘ (A E Bᵀ), that is `W.flatten()` ~ N(M.flatten(), diag(s)(A Aᵀ ⊗ B Bᵀ)diag(s)).

    All costs are those of `MatrixNormal`, but for divergences from and to other correlated distributions, which make
    the dense covariance. `row_covariance` and `column_covariance` are those of A E Bᵀ.

    Args:
        loc, scale_tril_row, scale_tril_column, validate_args: as for `MatrixNormal`, with its errors.
        scale: s, shape (..., n, p), a ValueError where not positive; with s = 1 this is `MatrixNormal`.

    Example:
        >>> q = ScaledMatrixNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(3), torch.full((2, 3), 0.1))
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
        return self._expand_into(self._get_checked_instance(ScaledMatrixNormal, _instance), batch_shape)

    @property
    def variance(self) -> Tensor:
        """The marginal variances s_ij² U_ii V_jj, shape (..., n, p)."""
        return super().variance * self.scale.square()

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + s ∘ (A E Bᵀ), shape `sample_shape` + (..., n, p)."""
        return self.loc + self.scale * self._unscaled().rsample(sample_shape, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """log MN((W − M)/s; 0, U, V) − Σ log s, in nats, for W of shape (..., n, p)."""
        if self._validate_args:
            self._validate_sample(value)
        return self._unscaled().log_prob((value - self.loc) / self.scale) - self.scale.log().sum((-2, -1))

    def entropy(self) -> Tensor:
        """½ np (1 + log 2π) + Σ log s_ij + p Σ log A_ii + n Σ log B_jj, in nats, shape (...)."""
        return self._unscaled().entropy() + self.scale.log().sum((-2, -1))

    def to_multivariate_normal(self) -> MultivariateNormal:
        """The distribution of `W.flatten(-2)`, row by row, its Cholesky factor being diag(s)(A ⊗ B).

        It holds (np)² numbers for each distribution of the batch.
        """
        factor = self.scale.flatten(-2).unsqueeze(-1) * self._unscaled().to_multivariate_normal().scale_tril
        return MultivariateNormal(self.loc.flatten(-2), scale_tril=factor, validate_args=self._validate_args)

    def _unscaled(self) -> MatrixNormal:
        """That of (W − M)/s."""
        zero = torch.zeros_like(self.loc)
        return MatrixNormal(zero, self.scale_tril_row, self.scale_tril_column, validate_args=False)
