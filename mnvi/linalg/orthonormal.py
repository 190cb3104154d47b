"""Matrices x with orthonormal columns, xᴴx = I, shape (..., n, p), real or complex: residual, tangents, random ones."""

import torch
from torch import Tensor
from torch.types import Device

from .elementary import identity


def residual(x: Tensor) -> Tensor:
    """‖xᴴx − I‖, the Frobenius norm, of the batch's shape."""
    return torch.linalg.matrix_norm(x.mH @ x - identity(x))


def tangent(x: Tensor, v: Tensor) -> Tensor:
    """v − x sym(xᴴv), the part of ``v`` whose product with xᴴ is skew-Hermitian."""
    a = x.mH @ v
    return (x @ ((a + a.mH) * -0.5)).add_(v)  # in place: an array of x's size costs about as much as a product


def random(
    *shape: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Orthonormal columns from the uniform distribution: the Q of a Gaussian matrix, R with a positive diagonal."""
    return signed_qr(torch.randn(*shape, generator=generator, dtype=dtype, device=device))[0]


def signed_qr(y: Tensor) -> tuple[Tensor, Tensor]:
    """The Q of y = QR with a positive diagonal of R, and that diagonal before its signs (complex: phases) went to Q.

    By Householder's reflections, for a y of any scale. Shapes (..., n, p) and (..., p).
    """
    scale = y.detach().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    q, r = torch.linalg.qr(y / scale)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return q * torch.where(diagonal == 0, 1, diagonal.sgn())[..., None, :], diagonal
