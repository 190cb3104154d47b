"""The product of manifolds: one point of each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from ..linalg.shapes import Size
from .base import Manifold, shapes

Tensors = tuple[Tensor, ...]


class Product(Manifold[Tensors]):
    """Points of several manifolds together, with the sum of their inner products.

    A point is the tuple of all their tensors, in order: of ``Product(Stiefel(), Kronecker())`` it is (Q, X, Y).
    ``exp``, ``log`` and ``dist`` work where all of them have one, else the error is that of the one without.

    Args:
        manifolds: two or more manifolds.

    Example:
        >>> manifold = Product(Stiefel(), SPD())
        >>> q, s = manifold.random((5, 3), (4, 4))
    """

    def __init__(self, *manifolds: Manifold) -> None:
        if len(manifolds) < 2 or not all(isinstance(each, Manifold) for each in manifolds):
            raise TypeError(f"Product needs two or more manifolds, got {manifolds!r}")
        self._parts = manifolds
        self.num_tensors = sum(each.num_tensors for each in manifolds)
        self.constant_norm = all(each.constant_norm for each in manifolds)
        self.order = min(each.order for each in manifolds)

    def check_shape(self, *shapes: Size) -> None:
        if len(shapes) != self.num_tensors:
            raise ValueError(f"a point of {self} is a tuple of {self.num_tensors} tensors, got {len(shapes)}")
        for part, piece in zip(self._parts, self._cut(shapes), strict=True):
            part.check_shape(*(piece if part.num_tensors > 1 else (piece,)))
        if len({shape[:-2] for shape in shapes}) > 1:
            raise ValueError(f"{self} needs shapes with the same batch, got {', '.join(map(str, shapes))}")

    def check(self, x: Tensors) -> None:
        self.check_shape(*shapes(self, x))
        for part, piece in zip(self._parts, self._cut(x), strict=True):
            part.check(piece)

    def project(self, x: Tensors) -> Tensors:
        return self._map(lambda part, x: part.project(x), x)

    def tangent(self, x: Tensors, v: Tensors) -> Tensors:
        return self._map(lambda part, x, v: part.tangent(x, v), x, v)

    def inner(self, x: Tensors, u: Tensors, v: Tensors) -> Tensor:
        return self._sum(lambda part, x, u, v: part.inner(x, u, v), x, u, v)

    def rgrad(self, x: Tensors, euclidean_grad: Tensors) -> Tensors:
        return self._map(lambda part, x, g: part.rgrad(x, g), x, euclidean_grad)

    def retract(self, x: Tensors, v: Tensors) -> Tensors:
        return self._map(lambda part, x, v: part.retract(x, v), x, v)

    def transport(self, x: Tensors, y: Tensors, v: Tensors) -> Tensors:
        return self._map(lambda part, x, y, v: part.transport(x, y, v), x, y, v)

    def residual(self, x: Tensors) -> Tensor:
        return self._sum(lambda part, x: part.residual(x), x)

    def random(
        self,
        *shape: Any,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensors:
        """One shape for each tensor, as in ``random((5, 3), (4, 4))``."""
        if len(shape) != self.num_tensors:
            raise ValueError(f"random of {self} needs {self.num_tensors} shapes, one for each tensor, got {len(shape)}")
        if any(isinstance(each, int) for each in shape):
            raise TypeError(f"random of {self} needs shapes such as (4, 3), one for each tensor, got {shape}")
        options = {"generator": generator, "dtype": dtype, "device": device}
        return self._map(lambda part, shape: part.random(*shape, **options), shape)

    def exp(self, x: Tensors, v: Tensors) -> Tensors:
        return self._map(lambda part, x, v: part.exp(x, v), x, v)

    def log(self, x: Tensors, y: Tensors) -> Tensors:
        return self._map(lambda part, x, y: part.log(x, y), x, y)

    def dist(self, x: Tensors, y: Tensors) -> Tensor:
        return torch.linalg.vector_norm(torch.stack(self._each(lambda part, x, y: part.dist(x, y), x, y)), dim=0)

    def squared_norm(self, x: Tensors, v: Tensors) -> Tensors:
        return self._map(lambda part, x, v: part.squared_norm(x, v), x, v)

    def norm_grad(self, x: Tensors) -> Tensors:
        return self._map(lambda part, x: part.norm_grad(x), x)

    def _cut(self, x: tuple) -> list[Any]:  # the tuple's pieces, each as its own manifold wants it
        pieces, start = [], 0
        for part in self._parts:
            stop = start + part.num_tensors
            pieces.append(x[start] if part.num_tensors == 1 else tuple(x[start:stop]))
            start = stop
        return pieces

    def _each(self, function: Callable[..., Any], *points: tuple) -> list[Any]:
        return [function(*each) for each in zip(self._parts, *map(self._cut, points), strict=True)]

    def _map(self, function: Callable[..., Any], *points: tuple) -> Tensors:
        results = self._each(function, *points)
        return tuple(t for each in results for t in (each if isinstance(each, tuple) else (each,)))

    def _sum(self, function: Callable[..., Any], *points: tuple) -> Tensor:
        return torch.stack(self._each(function, *points)).sum(0)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self._parts))})"
