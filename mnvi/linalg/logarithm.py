"""The principal logarithm of unitary matrices."""

import torch
from torch import Tensor

from .._torch.tracing import all_within
from .elementary import identity, skew
from .polar import polar_factor
from .quadrature import gauss_legendre
from .solve import solve


def logarithm(q: Tensor) -> Tensor:
    """The principal logarithm of a unitary ``q``, shape (..., n, n): skew-Hermitian, its eigenvalues within ±πi.

    The principal square root of a unitary matrix is the polar factor of I + q. Two of them bring every angle
    within π/4, where twelve Gauss-Legendre nodes give log(I + x) = ∫₀¹ x (I + tx)⁻¹ dt to rounding. All of it is
    differentiable, also at equal angles. At a distance δ of the largest angle from π the error is about eps/δ.

    Raises:
        ValueError: if an angle is π up to √eps, where the logarithm is not unique; a real q with determinant −1, which
            has no real logarithm, always has one.

    Source: Higham, 'Functions of Matrices' (2008), chapters 8 and 11, doi:10.1137/1.9780898717778.
    """
    eye = identity(q)
    root = polar_factor(q + eye)
    error = torch.linalg.matrix_norm(root @ root - q)
    if not all_within(error, torch.finfo(q.dtype).eps ** 0.5, traced=True):
        raise ValueError(
            "no unique logarithm: an angle between the points is π up to rounding, or they lie in different components "
            f"(the square root of xᴴy is wrong by {error.max().item():.2g})"
        )
    x = polar_factor(root + eye) - eye
    nodes, weights = gauss_legendre(x)
    terms = solve(eye + nodes * x[..., None, :, :], x[..., None, :, :])
    return 4 * skew((weights * terms).sum(-3))
