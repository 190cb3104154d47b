"""Euclidean space: the manifold of every parameter that has no other."""

import math

import torch
from torch import Tensor
from torch.types import Device

from ..linalg.elementary import real_inner
from ..linalg.norm import norm
from ..linalg.shapes import Size
from .base import Manifold, shapes


class Euclidean(Manifold[Tensor]):
    """All arrays of a shape, with ⟨u, v⟩ = Re tr(uᴴv); straight lines are its geodesics.

    Arrays of any number of dimensions are points. Each coordinate is a point of its own for :meth:`squared_norm`, so
    that the Riemannian Adam is the ordinary one here.
    """

    order = math.inf

    def check_shape(self, *shapes: Size) -> None:
        if len(shapes) != 1:
            raise ValueError(f"a point of {self} is one tensor, got {len(shapes)}")

    def check(self, x: Tensor) -> None:
        """Raise TypeError or ValueError unless ``x`` is one tensor; any numbers are a point."""
        self.check_shape(*shapes(self, x))

    def project(self, x: Tensor) -> Tensor:
        return x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(torch.atleast_2d(u), torch.atleast_2d(v))

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        return euclidean_grad

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def residual(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-2], dtype=x.real.dtype, device=x.device)

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.retract(x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return norm(x - y)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (v.conj() * v).real if v.is_complex() else v.square()
