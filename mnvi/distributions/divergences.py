"""Kullback-Leibler divergences between normal distributions of matrices, registered with `torch.distributions`.

Every pair in which q or r is a distribution of this package and the other one of these, an
`Independent(Normal, 2)`, or a `MultivariateNormal` or `LowRankMultivariateNormal` of the row-major `W.flatten()`, of
event shape (n·p,). With H the entropy and M_q, Σ_q the moments of q,

    KL(q ‖ r) = ½ tr(Σ_r⁻¹ Σ_q) − log r(M_q) − H(q),

in nats, of the batches' broadcast shape, differentiable in both. An np×np matrix is made only where

- q or r is another one than `MatrixNormal`: O((np)³), but for the traces of a `MatrixNormalPlusDiagonal` q;
- r is a `MultivariateNormal`, which has one itself: O((np)³); where q is, the trace costs O((np)²(n + p)).

Raises ValueError where the shapes do not fit, NotImplementedError for an `Independent` of another kind.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.distributions.kl import register_kl

from .._torch.autocast import full_precision
from ..linalg.solve import inverse_diagonal
from .base import KroneckerNormal, product, triangular_solve
from .corrected_matrix_normal import CorrectedMatrixNormal
from .matrix_normal import MatrixNormal
from .matrix_normal_plus_diagonal import MatrixNormalPlusDiagonal
from .scaled_matrix_normal import ScaledMatrixNormal


@register_kl(MatrixNormal, MatrixNormal)
def _kl_matrix_normal(q: MatrixNormal, r: MatrixNormal) -> Tensor:
    """½ [‖A₁⁻¹A₀‖² ‖B₁⁻¹B₀‖² + ‖A₁⁻¹(M₀ − M₁)B₁⁻ᵀ‖² − np + log|U₁ ⊗ V₁| − log|U₀ ⊗ V₀|], q = 0, r = 1."""
    _check_shapes(q, r)
    distance = r._whiten(q.loc - r.loc).square().sum((-2, -1))
    return 0.5 * (_kronecker_trace(q, r) + distance - q.event_shape.numel()) + r._half_log_det() - q._half_log_det()


@register_kl(MatrixNormal, Independent)
def _kl_matrix_normal_independent(q: MatrixNormal, r: Independent) -> Tensor:
    """½ Σ [(U_ii V_jj + (M_ij − m_ij)²) / σ_ij² − 1 + 2 log σ_ij] − ½ log|U ⊗ V|, r = Independent(Normal(m, σ), 2)."""
    loc, scale = _entries(r)
    _check_shapes(q, r)
    ratio = (q.variance + (q.loc - loc).square()) / scale.square()
    return (0.5 * (ratio - 1) + scale.log()).sum((-2, -1)) - q._half_log_det()


@register_kl(CorrectedMatrixNormal, Independent)
@register_kl(ScaledMatrixNormal, Independent)
@register_kl(MatrixNormalPlusDiagonal, Independent)
def _kl_to_independent(q: KroneckerNormal, r: Independent) -> Tensor:
    _, scale = _entries(r)
    return _kl(q, r, lambda: (q.variance / scale.square()).sum((-2, -1)))


@register_kl(MatrixNormalPlusDiagonal, MatrixNormal)
def _kl_plus_diagonal_matrix_normal(q: MatrixNormalPlusDiagonal, r: MatrixNormal) -> Tensor:
    return _kl(q, r, lambda: _kronecker_trace(q, r) + _diagonal_trace(q.scale_diagonal.square(), r))


@register_kl(Independent, MatrixNormal)
def _kl_independent_matrix_normal(q: Independent, r: MatrixNormal) -> Tensor:
    _, scale = _entries(q)
    return _kl(q, r, lambda: _diagonal_trace(scale.square(), r))


@register_kl(MultivariateNormal, MatrixNormal)
def _kl_multivariate_normal_matrix_normal(q: MultivariateNormal, r: MatrixNormal) -> Tensor:
    return _kl(q, r, lambda: _columns_trace(q.scale_tril, r))


@register_kl(LowRankMultivariateNormal, MatrixNormal)
def _kl_low_rank_matrix_normal(q: LowRankMultivariateNormal, r: MatrixNormal) -> Tensor:
    """The covariance is W Wᵀ + diag(d)."""

    def trace() -> Tensor:
        return _columns_trace(q.cov_factor, r) + _diagonal_trace(q.cov_diag.unflatten(-1, r.event_shape), r)

    return _kl(q, r, trace)


@register_kl(MatrixNormal, LowRankMultivariateNormal)
@register_kl(MatrixNormalPlusDiagonal, LowRankMultivariateNormal)
def _kl_to_low_rank(q: KroneckerNormal, r: LowRankMultivariateNormal) -> Tensor:
    """With Woodbury's Σ_r⁻¹ = D⁻¹ − XᵀX, X = C⁻¹WᵀD⁻¹, C Cᵀ = I + WᵀD⁻¹W: tr(Σ_r⁻¹ Σ_q) = tr D⁻¹Σ_q − tr X Σ_q Xᵀ."""

    def trace() -> Tensor:
        weighted = r.cov_factor / r.cov_diag.unsqueeze(-1)
        gram = product(r.cov_factor.mT, weighted)
        c = torch.linalg.cholesky(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        x = triangular_solve(c, weighted.mT).unflatten(-1, q.event_shape)  # (..., k, n, p)
        row, column = q.scale_tril_row.unsqueeze(-3), q.scale_tril_column.unsqueeze(-3)
        known = product(row.mT, x, column).square().sum((-3, -2, -1))
        if isinstance(q, MatrixNormalPlusDiagonal):
            known = known + (x * q.scale_diagonal.unsqueeze(-3)).square().sum((-3, -2, -1))
        return (q.variance.flatten(-2) / r.cov_diag).sum(-1) - known

    return _kl(q, r, trace)


@register_kl(MatrixNormal, MultivariateNormal)
@register_kl(MatrixNormal, MatrixNormalPlusDiagonal)
@register_kl(MatrixNormalPlusDiagonal, MultivariateNormal)
@register_kl(MatrixNormalPlusDiagonal, MatrixNormalPlusDiagonal)
@register_kl(Independent, MatrixNormalPlusDiagonal)
@register_kl(MultivariateNormal, MatrixNormalPlusDiagonal)
@register_kl(LowRankMultivariateNormal, MatrixNormalPlusDiagonal)
def _kl_dense(q: Distribution, r: Distribution) -> Tensor:
    """That of the multivariate normals."""
    if isinstance(q, Independent):
        _entries(q)
    _check_shapes(q, r)
    with full_precision(q.mean):
        return kl_divergence(_flat(q), _flat(r))


for one in (CorrectedMatrixNormal, ScaledMatrixNormal):
    for other in (MatrixNormal, MatrixNormalPlusDiagonal, MultivariateNormal, LowRankMultivariateNormal):
        register_kl(one, other)(_kl_dense)
        register_kl(other, one)(_kl_dense)
    register_kl(Independent, one)(_kl_dense)
    for other in (CorrectedMatrixNormal, ScaledMatrixNormal):
        register_kl(one, other)(_kl_dense)


def _kl(q: Distribution, r: Distribution, trace: Callable[[], Tensor]) -> Tensor:
    """½ tr(Σ_r⁻¹ Σ_q) − log r(M_q) − H(q), ``trace`` being a function that returns the first."""
    _check_shapes(q, r)
    mean = q.mean
    if len(q.event_shape) != len(r.event_shape):
        mean = mean.flatten(-2) if len(r.event_shape) == 1 else mean.unflatten(-1, r.event_shape)
    with full_precision(mean):
        return 0.5 * trace() - r.log_prob(mean) - q.entropy()


def _kronecker_trace(q: KroneckerNormal, r: MatrixNormal) -> Tensor:
    """tr((U_r ⊗ V_r)⁻¹ (U_q ⊗ V_q))."""
    rows = triangular_solve(r.scale_tril_row, q.scale_tril_row).square().sum((-2, -1))
    columns = triangular_solve(r.scale_tril_column, q.scale_tril_column).square().sum((-2, -1))
    return rows * columns


def _diagonal_trace(variance: Tensor, r: MatrixNormal) -> Tensor:
    """tr((U ⊗ V)⁻¹ diag(variance)) = Σ variance_ij (U⁻¹)_ii (V⁻¹)_jj."""
    rows, columns = (inverse_diagonal(tril) for tril in (r.scale_tril_row, r.scale_tril_column))
    return (rows.unsqueeze(-1) * variance * columns.unsqueeze(-2)).sum((-2, -1))


def _columns_trace(columns: Tensor, r: MatrixNormal) -> Tensor:
    """tr((U ⊗ V)⁻¹ X Xᵀ) for X of shape (..., np, k), from A⁻¹xB⁻ᵀ of every column as a matrix."""
    p = r.event_shape[-1]
    x = columns.unflatten(-2, r.event_shape).flatten(-2)  # (..., n, p·k)
    x = triangular_solve(r.scale_tril_row, x).unflatten(-1, (p, -1)).transpose(-3, -2).flatten(-2)  # (..., p, n·k)
    return triangular_solve(r.scale_tril_column, x).square().sum((-2, -1))


def _entries(d: Independent) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of `Independent(Normal, 2)`; NotImplementedError for any other."""
    if not isinstance(d.base_dist, Normal) or d.reinterpreted_batch_ndims != 2:
        raise NotImplementedError(f"of Independent distributions KL is known for Independent(Normal, 2) only, got {d}")
    return d.base_dist.loc, d.base_dist.scale


def _flat(d: Distribution) -> MultivariateNormal | LowRankMultivariateNormal:
    """The distribution of the row-major flattened matrix."""
    if isinstance(d, (MatrixNormal, MatrixNormalPlusDiagonal, ScaledMatrixNormal, CorrectedMatrixNormal)):
        return d.to_multivariate_normal()
    if isinstance(d, Independent):
        factor = torch.diag_embed(d.base_dist.stddev.flatten(-2))
        return MultivariateNormal(d.mean.flatten(-2), scale_tril=factor, validate_args=False)
    return d  # type: ignore[return-value]


def _check_shapes(q: Distribution, r: Distribution) -> None:
    events = [tuple(d.event_shape) for d in (q, r)]
    if events[0] != events[1] and (len(events[0]) == len(events[1]) or math.prod(events[0]) != math.prod(events[1])):
        raise ValueError(f"event shapes must be the same, or (n, p) and (n·p,), got {events[0]} and {events[1]}")
    try:
        torch.broadcast_shapes(q.batch_shape, r.batch_shape)
    except RuntimeError as error:
        shapes = f"{tuple(q.batch_shape)} and {tuple(r.batch_shape)}"
        raise ValueError(f"the batch shapes must broadcast, got {shapes}") from error
