"""Maps between skew-Hermitian and unitary matrices: exponential, Cayley transform, principal logarithm."""

import numpy as np
import torch
from torch import Tensor

from .base import skew
from .branching import within
from .exponential import exponential
from .polar import polar_factor

LIMIT = 10.0  # largest entry up to which the textbook formula is accurate enough for one correction to mend
GAUSS_LEGENDRE = [each.tolist() for each in np.polynomial.legendre.leggauss(12)]  # nodes and weights on [−1, 1]


def times_exponential(x: Tensor, a: Tensor) -> Tensor:
    """x·exp(a) for a skew-Hermitian ``a``, shape (..., n, n), and ``x``, shape (..., m, n).

    The columns keep their orthogonality to rounding however large a is; the angles lose the digits that a itself has
    lost. Raises ValueError if a is not finite.
    """
    return x @ exponential(a, "a tangent vector")


def times_cayley(x: Tensor, a: Tensor) -> Tensor:
    """x·(I − ½a)⁻¹(I + ½a) for a skew-Hermitian ``a``, shape (..., n, n), and ``x``, shape (..., m, n).

    The Cayley transform is the square of the polar factor of I + ½a, which is how it is found where a is so large that
    a solve would lose the identity beside it. Raises ValueError if a is not finite.
    """
    eye = identity(a)
    if within(a, LIMIT, traced=True):
        return 2 * torch.linalg.solve(eye - a / 2, x, left=False) - x
    half = polar_factor(eye + a / 2)
    return x @ half @ half


def logarithm(q: Tensor) -> Tensor:
    """The principal logarithm of a unitary ``q``, shape (..., n, n): skew-Hermitian, its eigenvalues within ±πi.

    The principal square root of a unitary matrix is the polar factor of I + q. Two of them bring every angle
    within π/4, where twelve Gauss-Legendre nodes give log(I + x) = ∫₀¹ x (I + tx)⁻¹ dt to rounding. All of it is
    differentiable, also at equal angles. At a distance δ of the largest angle from π the error is about eps/δ.

    Raises:
        ValueError: if an angle is π up to √eps, where the logarithm is not unique; a real q with determinant −1, which
            has no real logarithm, always has one.

    Source: Higham, 'Functions of Matrices' (2008), chapters 8 and 11.
    """
    eye = identity(q)
    root = polar_factor(q + eye)
    error = torch.linalg.matrix_norm(root @ root - q)
    if not within(error, torch.finfo(q.dtype).eps ** 0.5, traced=True):
        raise ValueError(
            "no unique logarithm: an angle between the points is π up to rounding, or they lie in different components "
            f"(the square root of xᴴy is wrong by {error.max().item():.2g})"
        )
    x = polar_factor(root + eye) - eye
    nodes, weights = gauss_legendre(x)
    terms = torch.linalg.solve(eye + nodes * x[..., None, :, :], x[..., None, :, :])
    return 4 * skew((weights * terms).sum(-3))


def corrected(y: Tensor) -> Tensor:
    """One Newton step y(3I − yᴴy)/2 towards the nearest orthonormal columns: an error e in yᴴy becomes ¾e²."""
    return y @ (1.5 * identity(y) - 0.5 * (y.mH @ y))


def identity(like: Tensor) -> Tensor:
    """The identity of the size of the last dimension of ``like``, with its dtype and device."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule of twelve points on [0, 1], each of shape (12, 1, 1)."""
    rule = torch.tensor(GAUSS_LEGENDRE, dtype=like.real.dtype, device=like.device)[..., None, None]
    return (rule[0] + 1) / 2, rule[1] / 2
