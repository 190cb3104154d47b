"""Groups of square matrices: their Lie algebra, and a metric that is invariant under products from the left."""

from abc import abstractmethod

from torch import Tensor

from ..linalg.elementary import real_inner
from ..linalg.shapes import Size, check_square_point
from .base import Manifold


class MatrixGroup(Manifold[Tensor]):
    """A group of square matrices x, shape (n, n), with ⟨u, v⟩ = Re tr (x⁻¹u)ᴴ(x⁻¹v).

    v = xA is tangent at x for A in the Lie algebra, the tangent space at I. The metric, the retraction and the
    transport are the same everywhere: left translation by yx⁻¹ takes those at x to those at y. So a whole group is
    parametrised by one linear space, x·φ(A), φ being the retraction at I. Laws, beside those of :class:`Manifold`:

    - ``algebra`` is linear, idempotent, and self-adjoint under Re tr AᴴB;
    - ``translate(x, a)`` is ``retract(x, x @ a)``, and ``x @ translate(y, a)`` is ``translate(x @ y, a)``.

    Transport is the left translation yx⁻¹v. It keeps lengths and angles whatever lies between x and y.

    Source: Lezcano-Casado (2019), 'Trivializations for Gradient-Based Optimization on Manifolds', section 6.2,
    arXiv:1909.09501.
    """

    @abstractmethod
    def algebra(self, a: Tensor) -> Tensor:
        """The orthogonal projection of a square array, shape (..., n, n), onto the Lie algebra."""

    @abstractmethod
    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x·φ(a) for ``a`` in the Lie algebra, where φ is the retraction at the identity."""

    @abstractmethod
    def left_divide(self, x: Tensor, v: Tensor) -> Tensor:
        """x⁻¹v."""

    def check_shape(self, *shapes: Size) -> None:
        check_square_point(shapes, f"a point of {self}")

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return x @ self.algebra(self.left_divide(x, v))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a = self.left_divide(x, u)
        return real_inner(a, a if v is u else self.left_divide(x, v))

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        return x @ self.algebra(x.mH @ euclidean_grad)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.translate(x, self.algebra(self.left_divide(x, v)))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return y @ self.algebra(self.left_divide(x, v))  # algebra keeps rounding from building up over many steps
