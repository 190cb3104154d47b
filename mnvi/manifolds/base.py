"""A manifold: the protocol that optimisers, parametrizations and the law suite of the tests rely on."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import COMPLEX, REAL
from ..linalg.shapes import Size
from ._closed_form import closed_form

Point = Tensor | tuple[Tensor, ...]  # a tuple where ``num_tensors`` > 1; the same structure for tangent vectors
P = TypeVar("P", bound=Point)

TOLERANCE = 1e-3  # residual above which a point is refused as lying off its manifold


class Manifold(ABC, Generic[P]):
    """A Riemannian manifold of matrices; it acts on the last two dimensions and batches over the rest.

    The points of a ``Manifold[Tensor]`` are tensors, those of a ``Manifold[tuple[Tensor, Tensor]]`` pairs of them.
    Tangent vectors are ambient arrays, of the same shapes as the point. Laws, for every manifold, point x, tangent
    vectors u, v and Euclidean gradient g:

    - ``residual(project(x))`` is 0, and so is ``residual(retract(x, v))``;
    - ``tangent(x, .)`` is linear, idempotent, and self-adjoint under ``inner(x, ., .)``;
    - ``inner(x, rgrad(x, g), v)`` is Σ g∘v (real part of conj(g)∘v), the derivative along v of the function that g
      is the gradient of;
    - ``retract(x, 0)`` is x and the derivative of ``retract(x, t·v)`` at t = 0 is v; its distance from
      the geodesic is O(t^(``order`` + 1));
    - ``transport(x, y, v)`` is tangent at y and linear in v, and ``transport(x, x, v)`` is v.

    ``exp``, ``log`` and ``dist`` are there where they are known in closed form; elsewhere they are missing, so that
    ``hasattr`` is False of them, and asking for one is an AttributeError that says what to use instead.

    A batch goes in as leading dimensions; ``torch.vmap`` is not supported, as some methods choose by the data.

    Source: Absil, Mahony & Sepulchre, 'Optimization Algorithms on Matrix Manifolds' (2008),
    doi:10.1515/9781400830244.
    """

    num_tensors = 1  # a point is one tensor, or a tuple of so many
    dtypes: tuple[torch.dtype, ...] = REAL + COMPLEX  # of the numbers that a point may hold
    constant_norm = False  # whether all points have one Frobenius norm, so that weight decay has nothing to act on
    order: float = 1  # of the retraction; infinite where it is the exponential

    @abstractmethod
    def check_shape(self, *shapes: Size) -> None:
        """Raise ValueError if tensors of these shapes cannot be a point."""

    @abstractmethod
    def project(self, x: P) -> P:
        """A point near the ambient array(s) ``x``; the nearest one where that has a closed form."""

    @abstractmethod
    def tangent(self, x: P, v: P) -> P:
        """The orthogonal projection of the ambient ``v`` onto the tangent space at ``x``."""

    @abstractmethod
    def inner(self, x: P, u: P, v: P) -> Tensor:
        """The real inner product ⟨u, v⟩ of tangent vectors at ``x``, of the batch's shape."""

    @abstractmethod
    def rgrad(self, x: P, euclidean_grad: P) -> P:
        """The Riemannian gradient at ``x`` of a function with the Euclidean gradient(s) that autograd gives."""

    @abstractmethod
    def retract(self, x: P, v: P) -> P:
        """The point reached from ``x`` along the tangent vector ``v``, by a retraction of order ``order``."""

    def transport(self, x: P, y: P, v: P) -> P:
        """The tangent vector ``v`` at ``x`` carried to ``y``: here, projected onto the tangent space there."""
        return self.tangent(y, v)

    @abstractmethod
    def residual(self, x: P) -> Tensor:
        """How far ``x`` violates the manifold's equations, of the batch's shape; 0 on the manifold."""

    @abstractmethod
    def random(
        self,
        *shape: Any,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> P:
        """A random point of this shape (for a tuple: one shape for each tensor), far from any special position."""

    @closed_form("use retract(x, v), which agrees with it up to its order")
    def exp(self, x: P, v: P) -> P:
        """The point at time 1 on the geodesic from ``x`` with velocity ``v``.

        ``exp(x, 0)`` is x, and ``inner(x, v, v)`` the square of the geodesic's speed all along. Differentiable, also
        at v = 0.
        """
        raise NotImplementedError

    @closed_form("use tangent(x, y - x), which agrees with it to first order where y is near x")
    def log(self, x: P, y: P) -> P:
        """The velocity at ``x`` of the shortest geodesic that is at ``y`` at time 1.

        ``exp(x, log(x, y))`` is y, and ``log(x, x)`` is 0. Differentiable, also at y = x.
        """
        raise NotImplementedError

    @closed_form("use the length of tangent(x, y - x), which agrees with it to first order where y is near x")
    def dist(self, x: P, y: P) -> Tensor:
        """The length of the shortest geodesic from ``x`` to ``y``, of the batch's shape.

        It is a metric, and ``dist(x, y)**2`` is ``inner(x, log(x, y), log(x, y))``; the Riemannian gradient of that in
        x is −2 ``log(x, y)``, also at y = x.
        """
        raise NotImplementedError

    def check(self, x: P) -> None:
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

    def squared_norm(self, x: P, v: P) -> P:
        """‖v‖² at ``x``, in the point's structure and broadcastable against it: one number a point."""
        square = self.inner(x, v, v)[..., None, None]
        return cast(P, square if self.num_tensors == 1 else (square,) * self.num_tensors)

    def norm_grad(self, x: P) -> P:
        """The Euclidean gradient of half the squared Frobenius norm of the matrix that ``x`` stands for."""
        return x

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"


def tensors(x: Point) -> tuple[Tensor, ...]:
    """The tensors of a point: itself where it is one."""
    return x if isinstance(x, tuple) else (x,)


def shapes(manifold: Manifold, x: Point) -> list[Size]:
    """The shapes of a point's tensors, or TypeError where it is neither a tensor nor a tuple of them."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors(x)):
        raise TypeError(f"a point of {manifold} is a tensor or a tuple of tensors, got {type(x).__name__}")
    return [tuple(tensor.shape) for tensor in tensors(x)]
