"""The Grassmann manifold: linear subspaces."""

import torch
from torch import Tensor
from torch.types import Device

from ..linalg import orthonormal
from ..linalg.elementary import identity, real_inner, sym
from ..linalg.polar import polar_factor
from ..linalg.quadrature import gauss_legendre
from ..linalg.shapes import Size, check_thin
from ..linalg.solve import inverse
from .base import Manifold
from .retractions import RETRACTIONS
from .retractions.exp import geodesic


class Grassmann(Manifold[Tensor]):
    """The p-dimensional subspaces of an n-dimensional space, each by any orthonormal basis x of shape (n, p), xᴴx = I.

    Bases xR of one subspace (R unitary) are one point. A tangent vector at x is the v with xᴴv = 0 that moves this
    basis; at xR it is vR. ⟨u, v⟩ = Re tr uᴴv. A function of points must not depend on the basis. Real or complex.

    ``retract`` is (x + v)(I + vᴴv)^-½, of order 2. Unlike other bases of its span, this one is not turned within it
    (xᴴy is positive definite), and the transport, a projection, needs that.

    Sources: Edelman, Arias & Smith (1998), section 2.5, arXiv:physics/9806030; Bendokat, Zimmermann & Absil (2024), 'A
    Grassmann manifold handbook', sections 3 and 5, arXiv:2011.13699.

    Example:
        >>> manifold = Grassmann()
        >>> x, y = manifold.random(6, 2), manifold.random(6, 2)
        >>> middle = manifold.exp(x, manifold.log(x, y) / 2)
    """

    constant_norm = True
    order = 2

    def check_shape(self, *shapes: Size) -> None:
        check_thin(shapes, f"a point of {self}")

    def project(self, x: Tensor) -> Tensor:
        return polar_factor(x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return (x @ -(x.mH @ v)).add_(v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(u, v)

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        return self.tangent(x, euclidean_grad)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return RETRACTIONS["polar"].retract(x, v, "euclidean")

    def residual(self, x: Tensor) -> Tensor:
        return orthonormal.residual(x)

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """An orthonormal basis from the uniform distribution."""
        self.check_shape(shape)
        return orthonormal.random(*shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """xV cos(Σ)Vᴴ + U sin(Σ)Vᴴ for v = UΣVᴴ: the Stiefel geodesic, of which xᴴv = 0 leaves this."""
        return geodesic(x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y, one of them where an angle between the subspaces is a right one.

        With the basis y of that subspace turned so that H = xᴴy is positive semidefinite (its eigenvalues are the
        cosines of the principal angles θ), v = (y − xH)·g(H), g(cos θ) = θ/sin θ = 2∫₀¹ dt/(t² + 2t cos θ + 1), by
        Gauss-Legendre nodes to rounding. Differentiable where no angle is a right one, also at equal angles and y = x.
        """
        y = y @ polar_factor(y.mH @ x)
        h = sym(x.mH @ y)
        nodes, weights = gauss_legendre(h)
        eye = identity(h)
        kernels = inverse((nodes.square() + 1) * eye + 2 * nodes * h[..., None, :, :])
        return (y - x @ h) @ (2 * weights * kernels).sum(-3)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The root of the sum of the squared principal angles, each from 0 to π/2."""
        return torch.linalg.matrix_norm(self.log(x, y))
