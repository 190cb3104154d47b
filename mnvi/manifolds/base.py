"""What a manifold is: the protocol that optimisers, parametrizations and the law suite of the tests rely on."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .._torch.dtypes import COMPLEX, REAL
from ..linalg.elementary import tensors
from ..linalg.shapes import Size

Point = Any  # a Tensor, or a tuple of Tensors where ``num_tensors`` > 1; the same structure for tangent vectors

TOLERANCE = 1e-3  # residual above which a point is refused as lying off its manifold


class Manifold(ABC):
    """A Riemannian manifold of matrices; it acts on the last two dimensions and batches over the rest.

    Tangent vectors are ambient arrays, of the same shapes as the point. Laws, for every manifold, point x, tangent
    vectors u, v and Euclidean gradient g:

    - ``residual(project(x))`` is 0, and so is ``residual(retract(x, v))``;
    - ``tangent(x, .)`` is linear, idempotent, and self-adjoint under ``inner(x, ., .)``;
    - ``inner(x, rgrad(x, g), v)`` is Σ g∘v (real part of conj(g)∘v), the derivative along v of the function that g
      is the gradient of;
    - ``retract(x, 0)`` is x and the derivative of ``retract(x, t·v)`` at t = 0 is v; its distance from
      the geodesic is O(t^(``order`` + 1));
    - ``transport(x, y, v)`` is tangent at y and linear in v, and ``transport(x, x, v)`` is v.

    Where they are known in closed form there are also ``exp(x, v)``, the geodesic from x with velocity v at time 1,
    ``log(x, y)``, the velocity of the shortest geodesic from x to y, and ``dist(x, y)``, its length. All three can be
    differentiated where v is 0 and y is x; the gradient of ``dist(x, y)**2`` is −2 ``log(x, y)``, there as elsewhere.

    A batch goes in as leading dimensions; ``torch.vmap`` is not supported, as some methods choose by the data.

    Source: Absil, Mahony & Sepulchre, 'Optimization Algorithms on Matrix Manifolds' (2008).
    """

    num_tensors = 1  # a point is one tensor, or a tuple of so many
    dtypes: tuple[torch.dtype, ...] = REAL + COMPLEX  # of the numbers that a point may hold
    constant_norm = False  # whether all points have one Frobenius norm, so that weight decay has nothing to act on
    order: float = 1  # of the retraction; infinite where it is the exponential

    @abstractmethod
    def check_shape(self, *shapes: Size) -> None:
        """Raise ValueError if tensors of these shapes cannot be a point."""

    @abstractmethod
    def project(self, x: Point) -> Point:
        """A point near the ambient array(s) ``x``; the nearest one where that has a closed form."""

    @abstractmethod
    def tangent(self, x: Point, v: Point) -> Point:
        """The orthogonal projection of the ambient ``v`` onto the tangent space at ``x``."""

    @abstractmethod
    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """The real inner product ⟨u, v⟩ of tangent vectors at ``x``, of the batch's shape."""

    @abstractmethod
    def rgrad(self, x: Point, euclidean_grad: Point) -> Point:
        """The Riemannian gradient at ``x`` of a function with the Euclidean gradient(s) that autograd gives."""

    @abstractmethod
    def retract(self, x: Point, v: Point) -> Point:
        """The point reached from ``x`` along the tangent vector ``v``, by a retraction of order ``order``."""

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """The tangent vector ``v`` at ``x`` carried to ``y``: here, projected onto the tangent space there."""
        return self.tangent(y, v)

    @abstractmethod
    def residual(self, x: Point) -> Tensor:
        """How far ``x`` violates the manifold's equations, of the batch's shape; 0 on the manifold."""

    @abstractmethod
    def random(self, *shape, generator: torch.Generator | None = None, dtype=None, device=None) -> Point:
        """A random point of this shape (for a tuple: one shape for each tensor), far from any special position."""

    def check(self, x: Point) -> None:
        """Raise ValueError unless ``x`` is a point of the manifold, up to a residual of 10⁻³.

        Raises TypeError where ``x`` is neither a tensor nor a tuple of them.
        """
        self.check_shape(*shapes(self, x))
        for tensor in tensors(x):
            self.check_dtype(tensor.dtype)
        residual = self.residual(x)
        worst = residual.max().item() if residual.numel() else 0.0
        if not worst <= TOLERANCE:  # also where it is NaN
            raise ValueError(f"not a point of {self}: its residual is {worst:.2g}; project it with {self}.project")

    def check_dtype(self, dtype: torch.dtype | None) -> None:
        """Raise ValueError unless a point may hold numbers of this dtype, torch's default where it is None."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in self.dtypes:
            kinds = [name for name, kind in (("real", REAL), ("complex", COMPLEX)) if kind[0] in self.dtypes]
            raise ValueError(f"a point of {self} needs {' or '.join(kinds)} numbers, got {dtype}; use {self.dtypes}")

    def squared_norm(self, x: Point, v: Point) -> Point:
        """‖v‖² at ``x``, in the point's structure and broadcastable against it: one number a point."""
        square = self.inner(x, v, v)[..., None, None]
        return square if self.num_tensors == 1 else (square,) * self.num_tensors

    def norm_grad(self, x: Point) -> Point:
        """The Euclidean gradient of half the squared Frobenius norm of the matrix that ``x`` stands for."""
        return x

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"


def shapes(manifold: Manifold, x: Point) -> list[Size]:
    """The shapes of a point's tensors, or TypeError where it is neither a tensor nor a tuple of them."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors(x)):
        raise TypeError(f"a point of {manifold} is a tensor or a tuple of tensors, got {type(x).__name__}")
    return [tuple(tensor.shape) for tensor in tensors(x)]
