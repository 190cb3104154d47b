"""Kronecker products of two symmetric positive definite matrices, in the coordinates of their Cholesky factors."""

from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import REAL
from ..linalg.shapes import Size, check_square
from .base import Manifold
from .cholesky_spd import CholeskySPD, lift, pull, push
from .kronecker import Kronecker, Pair, check_pair, square_shapes

FACTOR, PRODUCT = CholeskySPD(), Kronecker()


class SPDKronecker(Manifold[Pair]):
    """Pairs (A, B) of real Cholesky factors, (..., n, n) and (..., p, p), each standing for U = A Aᵀ ⊗ B Bᵀ.

    That is the row and column covariance of a matrix-normal distribution. It is :class:`Kronecker` with X = A Aᵀ and
    Y = B Bᵀ, each in the coordinates of :class:`CholeskySPD`: a tangent vector (δA, δB) stands for δX ⊗ Y + X ⊗ δY with
    δX = δA Aᵀ + A δAᵀ, δY = δB Bᵀ + B δBᵀ, both δA Aᵀ and δB Bᵀ symmetric, and ⟨X, δX⟩ = 0. Then

        δB = (½ ∇_B f B⁻¹) B⁻ᵀ / (2⟨X, X⟩)   and   δA = (½ ∇_A f A⁻¹ − A Aᵀ ⟨Y, δY⟩) A⁻ᵀ / (2⟨Y, Y⟩)

    is the Riemannian gradient of a function of U (in the slides ∇f is made symmetric first, which is not the
    projection). ``rgrad`` takes the derivatives along *all* entries of A and B: write the function with ``A @ A.mT``.

    The retraction takes a tangent vector and steps both factors as ``CholeskySPD`` does, of order 1; ‖X‖ is kept, as in
    ``Kronecker``.

    Source: Rudnev, Kropotov & Taskynov (2019), 'PSD Kronecker product optimization', with the correction above.
    """

    num_tensors = 2
    dtypes = REAL

    def check_shape(self, *shapes: Size) -> None:
        check_pair(self, *shapes)
        for shape in shapes:
            check_square(shape, f"each factor of a point of {self}")

    def project(self, x: Pair) -> Pair:
        return FACTOR.project(x[0]), FACTOR.project(x[1])

    def tangent(self, x: Pair, v: Pair) -> Pair:
        return _lift(x, PRODUCT.tangent(_product(x), _push(x, v)))

    def inner(self, x: Pair, u: Pair, v: Pair) -> Tensor:
        return PRODUCT.inner(_product(x), _push(x, u), _push(x, v))

    def rgrad(self, x: Pair, euclidean_grad: Pair) -> Pair:
        (a, b), (ga, gb) = x, euclidean_grad
        return _lift(x, PRODUCT.rgrad(_product(x), (pull(a, ga), pull(b, gb))))

    def retract(self, x: Pair, v: Pair) -> Pair:
        a, b = FACTOR.retract(x[0], v[0]), FACTOR.retract(x[1], v[1])
        root = (_norm(x[0]) / _norm(a)).sqrt()
        return a * root, b / root

    def transport(self, x: Pair, y: Pair, v: Pair) -> Pair:
        """The orthogonal projection of δU onto the tangent space at ``y``."""
        return _lift(y, PRODUCT.transport(_product(x), _product(y), _push(x, v)))

    def residual(self, x: Pair) -> Tensor:
        """The sum of the factors' residuals."""
        return FACTOR.residual(x[0]) + FACTOR.residual(x[1])

    def check(self, x: Pair) -> None:
        """Raise ValueError unless ``x`` is a point; also where a factor is singular to the precision of its dtype."""
        super().check(x)
        for factor in x:
            FACTOR.check(factor)

    def random(
        self,
        *shape: Any,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Pair:
        """Two draws of ``CholeskySPD.random``, as in ``random((4, 4), (3, 3))`` or ``random(4, 3)``."""
        shapes = square_shapes(shape)
        self.check_shape(*shapes)
        left, right = (FACTOR.random(*each, generator=generator, dtype=dtype, device=device) for each in shapes)
        return left, right

    def exp(self, x: Pair, v: Pair) -> Pair:
        """The geodesic of ``Kronecker``, which stays among symmetric matrices.

        Raises:
            torch.linalg.LinAlgError: it has left the definite ones.
        """
        return _factors(PRODUCT.exp(_product(x), _push(x, v)))

    def log(self, x: Pair, y: Pair) -> Pair:
        return _lift(x, PRODUCT.log(_product(x), _product(y)))

    def dist(self, x: Pair, y: Pair) -> Tensor:
        return PRODUCT.dist(_product(x), _product(y))

    def norm_grad(self, x: Pair) -> Pair:
        gx, gy = PRODUCT.norm_grad(_product(x))
        return 2 * gx @ x[0], 2 * gy @ x[1]


def _product(x: Pair) -> Pair:
    """(X, Y)."""
    a, b = x
    return a @ a.mT, b @ b.mT


def _factors(x: Pair) -> Pair:
    return torch.linalg.cholesky(x[0]), torch.linalg.cholesky(x[1])


def _push(x: Pair, v: Pair) -> Pair:
    return push(x[0], v[0]), push(x[1], v[1])


def _lift(x: Pair, u: Pair) -> Pair:
    return lift(x[0], u[0]), lift(x[1], u[1])


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(a @ a.mT, keepdim=True)
