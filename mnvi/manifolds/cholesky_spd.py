"""Symmetric positive definite matrices in the coordinates of a Cholesky factor."""

import torch
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import REAL
from .._torch.tracing import plain_operations
from ..linalg.definite import definite, floor, floored, one_plus, replace, safely_definite, shorten
from ..linalg.elementary import real_inner, sym
from ..linalg.shapes import Size, check_square_point
from ..linalg.solve import solve_triangular
from .base import Manifold
from .spd import SPD


class CholeskySPD(Manifold[Tensor]):
    """Real lower-triangular A with a positive diagonal, shape (..., n, n), each standing for U = A Aᵀ.

    The metric is that of U among symmetric matrices, tr(δU δU'), as in ``SPD("euclidean")``. A tangent vector δA is
    the one of all that give δU = δA Aᵀ + A δAᵀ whose δA Aᵀ is symmetric, δA = ½ δU A⁻ᵀ; it is not triangular. For the
    gradient g of a function of A Aᵀ, ``rgrad`` is ¼ g (AᵀA)⁻¹.

    ``rgrad`` takes the derivatives along *all* entries of A: write the function with ``A @ A.mT``, without ``tril``.

    The retraction takes a tangent vector: (A + δA)(A + δA)ᵀ, of order 1, factored by QR of (A + δA)ᵀ. Where A⁻¹δA has
    eigenvalues below −½ they are bent (see :mod:`mnvi.linalg.definite`), so that no step leads to a singular U.

    Source: Rudnev, Kropotov & Taskynov (2019), 'PSD optimization'.
    """

    dtypes = REAL

    def check_shape(self, *shapes: Size) -> None:
        check_square_point(shapes, f"a point of {self}")

    def project(self, x: Tensor) -> Tensor:
        """The factor of the same U, for any square matrix; a singular U is raised as in ``SPD.project``."""
        return _guarded(_triangular(x))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """½ (v + A vᵀ A⁻ᵀ), of the same δU as ``v``."""
        return lift(x, push(x, v))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(push(x, u), push(x, v))

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        return lift(x, pull(x, euclidean_grad))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        move = solve_triangular(x, shorten(x, v), upper=False)  # symmetric for a tangent vector
        return _guarded(_triangular(x @ one_plus(sym(move))))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel: the vector at ``y`` of the same δU."""
        return lift(y, push(x, v))

    def residual(self, x: Tensor) -> Tensor:
        """Relative: (‖the part above the diagonal‖ + max(0, −least diagonal entry)) / ‖A‖."""
        least = x.diagonal(dim1=-2, dim2=-1).amin(-1)
        violation = torch.linalg.matrix_norm(x.triu(1)) + (-least).clamp(min=0)
        return violation / torch.linalg.matrix_norm(x)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a point; also where A Aᵀ is singular to the precision of its dtype."""
        super().check(x)
        if not _admissible(x).all():
            ratio = _ratio(x).min().item()
            raise ValueError(f"not a point of {self}: λ_min/λ_max of A Aᵀ is {ratio:.2g}, singular in {x.dtype}")

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """The factor of what ``SPD.random`` draws."""
        return torch.linalg.cholesky(SPD().random(*shape, generator=generator, dtype=dtype, device=device))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The factor of U + δU = A (I + 2 A⁻¹δA) Aᵀ.

        Raises:
            torch.linalg.LinAlgError: U + δU is not positive definite; the metric is not complete.
        """
        move = solve_triangular(x, v, upper=False)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return x @ torch.linalg.cholesky(identity + 2 * sym(move))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return lift(x, y @ y.mT - x @ x.mT)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(y @ y.mT - x @ x.mT)

    def norm_grad(self, x: Tensor) -> Tensor:
        return 2 * x @ (x.mT @ x)


def push(a: Tensor, v: Tensor) -> Tensor:
    """δU = v Aᵀ + A vᵀ."""
    return 2 * sym(v @ a.mT)


def lift(a: Tensor, u: Tensor) -> Tensor:
    """The tangent vector δA = ½ δU A⁻ᵀ at A of a symmetric δU."""
    return solve_triangular(a.mT, u / 2, upper=True, left=False)


def pull(a: Tensor, g: Tensor) -> Tensor:
    """The symmetric part of the gradient for U = A Aᵀ from the gradient for A: ½ sym(g A⁻¹)."""
    return sym(solve_triangular(a, g, upper=False, left=False)) / 2


def _triangular(f: Tensor) -> Tensor:
    """The lower-triangular factor of F Fᵀ with a diagonal ≥ 0."""
    needs_derivative = f.requires_grad or plain_operations()  # which mode "r" has not
    r = torch.linalg.qr(f.mT, mode="reduced" if needs_derivative else "r").R
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)
    return r.mT * signs.unsqueeze(-2)


def _guarded(a: Tensor) -> Tensor:
    """A where A Aᵀ is safely definite, else the factor of the nearest that is."""
    u = a @ a.mT
    unsafe = ~safely_definite(u)
    unsafe = replace(unsafe, unsafe, lambda a: ~_admissible(a), a)
    return replace(a, unsafe, lambda u: torch.linalg.cholesky(floored(u)), u)


def _ratio(a: Tensor) -> Tensor:
    """λ_min/λ_max of A Aᵀ, from A for twice the digits."""
    sigma = torch.linalg.svdvals(a.detach())
    return (sigma[..., -1] / sigma[..., 0]).square()


def _admissible(a: Tensor) -> Tensor:
    return (_ratio(a) > floor(a) / 2) & definite(a @ a.mT)
