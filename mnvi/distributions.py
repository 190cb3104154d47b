"""Matrix-normal distributions as `torch.distributions`.

A random matrix W of shape (n, p) is W = M + A E Bᵀ with E iid standard normal, A (n, n) and B (p, p) lower-triangular
with a positive diagonal. With the row covariance U = A Aᵀ and the column covariance V = B Bᵀ, the row-major
`W.flatten()` is N(M.flatten(), U ⊗ V).

Source: Gupta and Nagar, Matrix Variate Distributions (1999), chapter 2.
"""

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints
from torch.distributions.kl import register_kl

from .linalg.solve import solve_triangular

__all__ = ["MatrixNormal", "MatrixNormalPlusDiagonal"]


class _KroneckerNormal(Distribution):
    """What the two families share: W = M + A E Bᵀ + independent noise; every argument is a batch of matrices."""

    has_rsample = True
    support: ClassVar[constraints.Constraint] = constraints.independent(constraints.real, 2)
    loc: Tensor
    scale_tril_row: Tensor
    scale_tril_column: Tensor

    def __init__(self, validate_args: bool | None, *values: Tensor):
        arguments = dict(zip(self.arg_constraints, values, strict=True))
        batch_shape = _broadcast_batch_shape(**arguments)
        for name, value in arguments.items():
            setattr(self, name, value.expand((*batch_shape, -1, -1)))
        super().__init__(batch_shape, self.loc.shape[-2:], validate_args=validate_args)
        if self._validate_args:
            for name, value in arguments.items():
                if not value.isfinite().all():
                    raise ValueError(f"{name} must be finite, got {value}")

    mean = mode = property(lambda self: self.loc, doc="M, shape (..., n, p).")

    @property
    def variance(self) -> Tensor:
        """The marginal variances U_ii V_jj, shape (..., n, p)."""
        rows, columns = self.scale_tril_row.square().sum(-1), self.scale_tril_column.square().sum(-1)
        return rows.unsqueeze(-1) * columns.unsqueeze(-2)

    @property
    def row_covariance(self) -> Tensor:
        """U = A Aᵀ, shape (..., n, n)."""
        return _product(self.scale_tril_row, self.scale_tril_row.mT)

    @property
    def column_covariance(self) -> Tensor:
        """V = B Bᵀ, shape (..., p, p)."""
        return _product(self.scale_tril_column, self.scale_tril_column.mT)

    def rsample(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + A E Bᵀ, shape `sample_shape` + (..., n, p)."""
        noise = self._standard_normal(sample_shape, generator)
        return self.loc + _product(self.scale_tril_row, noise, self.scale_tril_column.mT)

    def _standard_normal(self, sample_shape, generator) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)

    def _expand_into(self, new, batch_shape):
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand((*batch_shape, -1, -1)))
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class MatrixNormal(_KroneckerNormal):
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

    def __init__(self, loc, scale_tril_row, scale_tril_column, validate_args=None):
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

    def _whiten(self, x: Tensor) -> Tensor:
        """A⁻¹ x B⁻ᵀ."""
        return _solve(self.scale_tril_column, _solve(self.scale_tril_row, x).mT).mT

    def _half_log_det(self) -> Tensor:
        """½ log|U ⊗ V|."""
        n, p = self.event_shape
        rows, columns = self.scale_tril_row.diagonal(0, -2, -1), self.scale_tril_column.diagonal(0, -2, -1)
        return p * rows.log().sum(-1) + n * columns.log().sum(-1)


class MatrixNormalPlusDiagonal(_KroneckerNormal):
    """W = M + A E Bᵀ + s ∘ E₂, that is `W.flatten()` ~ N(M.flatten(), A Aᵀ ⊗ B Bᵀ + diag(s²)).

    `log_prob` and `entropy` have no closed form: they factor the dense covariance in O((np)³), for small matrices and
    tests. Drawing costs what it costs for `MatrixNormal`. `row_covariance` and `column_covariance` are those of A E Bᵀ.

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

    def __init__(self, loc, scale_tril_row, scale_tril_column, scale_diagonal, validate_args=None):
        super().__init__(validate_args, loc, scale_tril_row, scale_tril_column, scale_diagonal)

    def expand(self, batch_shape, _instance=None):
        return self._expand_into(self._get_checked_instance(MatrixNormalPlusDiagonal, _instance), batch_shape)

    @property
    def variance(self) -> Tensor:
        """The marginal variances U_ii V_jj + s_ij², shape (..., n, p)."""
        return super().variance + self.scale_diagonal.square()

    def rsample(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + A E Bᵀ + s ∘ E₂, shape `sample_shape` + (..., n, p)."""
        noise = self._standard_normal(sample_shape, generator)
        return super().rsample(sample_shape, generator=generator) + self.scale_diagonal * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(W.flatten(); M.flatten(), U ⊗ V + diag(s²)), in nats, for W of shape (..., n, p). O((np)³)."""
        if self._validate_args:
            self._validate_sample(value)
        return self._dense().log_prob(value.flatten(-2))

    def entropy(self) -> Tensor:
        """½ np (1 + log 2π) + ½ log|U ⊗ V + diag(s²)|, in nats, shape (...). O((np)³)."""
        return self._dense().entropy()

    def _dense(self) -> MultivariateNormal:
        U, V = self.row_covariance, self.column_covariance
        blocks = U[..., :, None, :, None] * V[..., None, :, None, :]  # (..., n, p, n, p)
        covariance = blocks.flatten(-2).flatten(-3, -2) + torch.diag_embed(self.scale_diagonal.flatten(-2).square())
        return MultivariateNormal(self.loc.flatten(-2), covariance, validate_args=False)


@register_kl(MatrixNormal, MatrixNormal)
def _kl_matrix_normal(q: MatrixNormal, r: MatrixNormal) -> Tensor:
    """½ [‖A₁⁻¹A₀‖² ‖B₁⁻¹B₀‖² + ‖A₁⁻¹(M₀ − M₁)B₁⁻ᵀ‖² − np + log|U₁ ⊗ V₁| − log|U₀ ⊗ V₀|], q = 0, r = 1."""
    if q.event_shape != r.event_shape:
        raise ValueError(f"event shapes must be the same, got {tuple(q.event_shape)} and {tuple(r.event_shape)}")
    rows = _solve(r.scale_tril_row, q.scale_tril_row).square().sum((-2, -1))
    columns = _solve(r.scale_tril_column, q.scale_tril_column).square().sum((-2, -1))
    distance = r._whiten(q.loc - r.loc).square().sum((-2, -1))
    return 0.5 * (rows * columns + distance - q.event_shape.numel()) + r._half_log_det() - q._half_log_det()


@register_kl(MatrixNormal, Independent)
def _kl_matrix_normal_independent(q: MatrixNormal, r: Independent) -> Tensor:
    """½ Σ [(U_ii V_jj + (M_ij − m_ij)²) / σ_ij² − 1 + 2 log σ_ij] − ½ log|U ⊗ V|, r = Independent(Normal(m, σ), 2)."""
    if not isinstance(r.base_dist, Normal) or r.reinterpreted_batch_ndims != 2:
        raise NotImplementedError(f"KL from MatrixNormal is known to Independent(Normal, 2) only, got {r}")
    if q.event_shape != r.event_shape:
        raise ValueError(f"event shapes must be the same, got {tuple(q.event_shape)} and {tuple(r.event_shape)}")
    loc, scale = r.base_dist.loc, r.base_dist.scale
    ratio = (q.variance + (q.loc - loc).square()) / scale.square()
    return (0.5 * (ratio - 1) + scale.log()).sum((-2, -1)) - q._half_log_det()


def _broadcast_batch_shape(**arguments: Tensor) -> torch.Size:
    values = list(arguments.values())
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values):
        raise TypeError(f"expected floating-point tensors, got {[getattr(x, 'dtype', type(x)) for x in values]}")
    if len({(x.dtype, x.device) for x in values}) > 1:
        raise ValueError(f"expected one dtype and one device, got {[(x.dtype, str(x.device)) for x in values]}")
    shapes = {name: tuple(x.shape) for name, x in arguments.items()}
    n, p = shapes["loc"][-2:] if len(shapes["loc"]) > 1 else (0, 0)
    if n * p == 0:
        raise ValueError(f"loc must have shape (..., n, p) with n, p > 0, got {shapes['loc']}")
    expected = {"loc": (n, p), "scale_tril_row": (n, n), "scale_tril_column": (p, p), "scale_diagonal": (n, p)}
    for name, shape in shapes.items():
        if shape[-2:] != expected[name]:
            raise ValueError(f"{name} must end in {expected[name]} for loc of shape {shapes['loc']}, got {shape}")
    try:
        return torch.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
    except RuntimeError as error:
        raise ValueError(f"the batch shapes must broadcast, got {shapes}") from error


def _product(*matrices: Tensor) -> Tensor:
    """The matrix product in its factors' own precision, also under autocast."""
    with torch.autocast(matrices[0].device.type, enabled=False):
        return functools.reduce(torch.matmul, matrices)


def _solve(tril: Tensor, x: Tensor) -> Tensor:
    """L⁻¹ x for lower-triangular L."""
    if tril.dim() > 2:
        return solve_triangular(tril, x, upper=False)
    # Torch would copy a single factor for every matrix of the batch: set them side by side instead.
    columns = x.movedim(-2, 0)
    return solve_triangular(tril, columns.flatten(1), upper=False).view(columns.shape).movedim(0, -2)
