"""The natural-gradient step of a covariance factor: F ← F·chol(R⁻¹) with R = I + S + ½S².

**Why.** Let the covariance change by dC = −F S Fᵀ, S symmetric: in the whitened coordinates F⁻¹dC F⁻ᵀ the Fisher metric
of N(0, F Fᵀ), seen k times, is (k/2)‖S‖², so the natural gradient of a loss with Euclidean gradient G = ∂loss/∂F is
S = H/k with H = FᵀG, which is symmetric (Amari, 1998, doi:10.1162/089976698300017746). The step is taken in the
whitened precision (Khan & Lin, 2017, arXiv:1703.04265; Lin et al., 2023, arXiv:2302.09738): R agrees with exp(S) to
second order and is positive definite for every S, and F·chol(R⁻¹) is again triangular. In one step a standard deviation
grows by √2 at most, however large the step, and shrinks without limit.
"""

import torch
from torch import Tensor

from .solve import solve_triangular

LARGEST = 100.0  # Frobenius norm of S that one step may have: 1 + 100 + 100²/2 is a condition number float32 can bear


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix with this lower triangle, shape (..., n, n); what is above the diagonal is ignored."""
    lower = lower.tril()
    return lower + lower.tril(-1).mT


def contract(factor: Tensor, step: Tensor) -> Tensor:
    """F·chol((I + S + ½S²)⁻¹) for lower-triangular F = ``factor`` and symmetric S = ``step``, both (..., n, n).

    A step longer than a trust region is shortened: to Frobenius norm 100, then by halves until I + S is positive
    definite, beyond which a longer step would let the covariance grow by less.
    """
    identity = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
    step = _within_trust_region(step, identity)
    precision = identity + step + 0.5 * step @ step
    # R = KᵀK with K lower-triangular, by the Cholesky factor of R with its rows and columns reversed; chol(R⁻¹) = K⁻¹
    root = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1).mT
    return solve_triangular(root, factor, upper=False, left=False)


def contract_diagonal(log_diagonal: Tensor, step: Tensor) -> Tensor:
    """The same for a diagonal factor exp ``log_diagonal`` and a diagonal ``step``, entry by entry."""
    step = step.clamp(-1, LARGEST)
    return log_diagonal - 0.5 * (step + 0.5 * step.square()).log1p()


def _within_trust_region(step: Tensor, identity: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(step)[..., None, None]
    step = step * (LARGEST / norm).clamp(max=1)
    while (norm > 1).any() and (failed := torch.linalg.cholesky_ex(identity + step).info != 0).any():
        step = torch.where(failed[..., None, None], step / 2, step)
    return step
