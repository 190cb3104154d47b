"""The identity, the real inner product, Hermitian and skew-Hermitian parts of matrices, and a root with a gradient."""

import torch
from torch import Tensor


def identity(like: Tensor) -> Tensor:
    """The identity of the size of the last dimension of ``like``, with its dtype and device."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def real_inner(u: Tensor, v: Tensor) -> Tensor:
    """Re tr(uᴴv) over the last two dimensions."""
    return (u.conj() * v).real.sum((-2, -1)) if u.is_complex() else (u * v).sum((-2, -1))


def sym(a: Tensor) -> Tensor:
    """The Hermitian part ½(a + aᴴ)."""
    return (a + a.mH) * 0.5


def skew(a: Tensor) -> Tensor:
    """The skew-Hermitian part ½(a − aᴴ), exactly so."""
    return (a - a.mH) * 0.5  # complex numbers divided by 2 are not always half of themselves


def safe_sqrt(variance: Tensor) -> Tensor:
    """√variance, with gradient 0 instead of ∞ where the variance is 0 (an all-zero input has no noise)."""
    positive = variance > 0
    return torch.where(positive, variance, 1).sqrt() * positive
