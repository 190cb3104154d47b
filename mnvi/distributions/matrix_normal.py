"""The matrix-normal distribution.

Source: Gupta & Nagar (1999), Matrix Variate Distributions, Chapman & Hall/CRC, chapter 2.
"""

import math
from typing import ClassVar

from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from .base import KroneckerNormal, kronecker, triangular_solve


class MatrixNormal(KroneckerNormal):
    """The matrix normal W = M + A E Bᵀ, that is `W.flatten()` ~ N(M.flatten(), A Aᵀ ⊗ B Bᵀ).

    (c A, B / c) is the same distribution for every c > 0. Batch shapes of the arguments broadcast.

    Args:
        loc: M, shape (..., n, p).
        scale_tril_row: A, shape (..., n, n), lower-triangular with a positive diagonal.
        scale_tril_column: B, shape (..., p, p), lower-triangular with a positive diagonal.
        validate_args: check the values as well as the shapes; default: torch's own setting.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes, dtypes or devices do not fit together, or a value is not finite or not as above.

    Example:
        >>> q = MatrixNormal(torch.zeros(2, 3), torch.eye(2), 0.1 * torch.eye(3))
        >>> w = q.rsample((5,))  # (5, 2, 3)
        >>> kl = kl_divergence(q, Independent(Normal(torch.zeros(2, 3), 1.0), 2))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.independent(constraints.real, 2),
        "scale_tril_row": constraints.lower_cholesky,
        "scale_tril_column": constraints.lower_cholesky,
    }

    def __init__(
        self, loc: Tensor, scale_tril_row: Tensor, scale_tril_column: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(validate_args, loc, scale_tril_row, scale_tril_column)

    def expand(self, batch_shape, _instance=None):
        return self._expand_into(self._get_checked_instance(MatrixNormal, _instance), batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """−½ ‖A⁻¹(W − M)B⁻ᵀ‖² − ½ np log 2π − p Σ log A_ii − n Σ log B_jj, in nats, for W of shape (..., n, p)."""
        if self._validate_args:
            self._validate_sample(value)
        distance = self._whiten(value - self.loc).square().sum((-2, -1))
        return -0.5 * (distance + self.event_shape.numel() * math.log(2 * math.pi)) - self._half_log_det()

    def entropy(self) -> Tensor:
        """½ np (1 + log 2π) + p Σ log A_ii + n Σ log B_jj, in nats, shape (...)."""
        return 0.5 * self.event_shape.numel() * (1 + math.log(2 * math.pi)) + self._half_log_det()

    def to_multivariate_normal(self) -> MultivariateNormal:
        """The distribution of `W.flatten(-2)`, row by row: N(M.flatten(-2), U ⊗ V), its Cholesky factor being A ⊗ B.

        It holds (np)² numbers for each distribution of the batch.
        """
        factor = kronecker(self.scale_tril_row, self.scale_tril_column)
        return MultivariateNormal(self.loc.flatten(-2), scale_tril=factor, validate_args=self._validate_args)

    def _whiten(self, x: Tensor) -> Tensor:
        """A⁻¹ x B⁻ᵀ."""
        return triangular_solve(self.scale_tril_column, triangular_solve(self.scale_tril_row, x).mT).mT

    def _half_log_det(self) -> Tensor:
        """½ log|U ⊗ V|."""
        n, p = self.event_shape
        rows, columns = self.scale_tril_row.diagonal(0, -2, -1), self.scale_tril_column.diagonal(0, -2, -1)
        return p * rows.log().sum(-1) + n * columns.log().sum(-1)
