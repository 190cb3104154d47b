"""Kronecker products of two matrices."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import REAL
from ..linalg.definite import reach, shorten
from ..linalg.elementary import real_inner
from ..linalg.norm import hypot
from ..linalg.shapes import Size, matrix_shape
from .base import Manifold

Pair = tuple[Tensor, Tensor]


class Kronecker(Manifold[Pair]):
    """Pairs (X, Y) of nonzero real matrices, (..., m, n) and (..., p, q), each standing for U = X ⊗ Y.

    The metric is that of U among all (mp × nq) matrices. A tangent vector (δX, δY) stands for δX ⊗ Y + X ⊗ δY, and of
    all pairs that stand for the same one it is the one with ⟨X, δX⟩ = 0. U itself is never formed.

    (cX, Y/c) is the same point. Projection, transport and the geometry do not depend on c; a step keeps ‖X‖, so that
    the scale of U is carried by Y and the pair does not drift.

    The retraction takes a tangent vector and is orthographic, of order 2: with β = ⟨Y, δY⟩/⟨Y, Y⟩ it leads to
    (X + δX/(1 + β)) ⊗ (Y + δY), whose difference from U + δU is normal to the tangent space. Where β < −½, 1 + β is
    bent to −1/(4β), so that U shrinks but never vanishes.

    Source: Rudnev, Kropotov & Taskynov (2019), 'Kronecker product optimization'; the exponential is that of the cone
    over a product of two spheres.

    Example:
        >>> x, y = Kronecker().random((20, 20), (6, 6))
    """

    num_tensors = 2
    dtypes = REAL
    order = 2

    def check_shape(self, *shapes: Size) -> None:
        check_pair(self, *shapes)

    def project(self, x: Pair) -> Pair:
        """Any pair of nonzero matrices is a point already."""
        return x

    def tangent(self, x: Pair, v: Pair) -> Pair:
        """The pair of the same δU with ⟨X, δX⟩ = 0."""
        (a, b), (u, w) = x, v
        c = _ratio(a, u)
        return u - c * a, w + c * b

    def inner(self, x: Pair, u: Pair, v: Pair) -> Tensor:
        """⟨δU, δU'⟩, whatever the pairs that stand for them."""
        (a, b), (ua, ub), (va, vb) = x, u, v
        straight = real_inner(ua, va) * real_inner(b, b) + real_inner(a, a) * real_inner(ub, vb)
        return straight + real_inner(ua, a) * real_inner(b, vb) + real_inner(a, va) * real_inner(ub, b)

    def rgrad(self, x: Pair, euclidean_grad: Pair) -> Pair:
        """δY = ∇_Y f / ⟨X, X⟩ and δX = (∇_X f − X⟨X, ∇_X f⟩/⟨X, X⟩) / ⟨Y, Y⟩."""
        (a, b), (ga, gb) = x, euclidean_grad
        return (ga - _ratio(a, ga) * a) / _square(b), gb / _square(a)

    def retract(self, x: Pair, v: Pair) -> Pair:
        (a, b), (da, db) = x, shorten(x, v)
        beta = _ratio(b, db)
        least = -(reach(a.dtype) ** 0.5)  # a smaller growth would be lost in the rounding of δY − βY
        growth = torch.where(beta < -0.5, -0.25 / beta.clamp(least, -0.5), 1 + beta)
        return keep_norm(a, (a + da / growth, db + (growth - beta) * b))

    def transport(self, x: Pair, y: Pair, v: Pair) -> Pair:
        """The orthogonal projection of δU onto the tangent space at ``y``."""
        (a, b), (c, d), (da, db) = x, y, v
        along_c = da * _dot(b, d) + a * _dot(db, d)
        along_d = b * _dot(da, c) + db * _dot(a, c)
        return self.rgrad(y, (along_c, along_d))

    def residual(self, x: Pair) -> Tensor:
        """0, or NaN where a factor is zero or not finite."""
        a, b = (torch.linalg.matrix_norm(each / each.abs().amax((-2, -1), keepdim=True)) for each in x)
        return 0 * a * b

    def random(
        self,
        *shape: Any,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Pair:
        """Standard normal factors of two shapes, as in ``random((4, 3), (2, 5))``; an int n stands for (n, n)."""
        shapes = square_shapes(shape)
        self.check_shape(*shapes)
        self.check_dtype(dtype)
        left, right = (torch.randn(each, generator=generator, dtype=dtype, device=device) for each in shapes)
        return left, right

    def exp(self, x: Pair, v: Pair) -> Pair:
        """The geodesic, by great circles for X/‖X‖ and Y/‖Y‖ and in the plane of radius and total angle.

        With w² = ‖δX‖²/‖X‖² + ‖δY⊥‖²/‖Y‖² and β as above, ‖U‖ grows by |(1 + β, w)| and the angle is atan2(w, 1 + β).
        It ends where it meets 0 (w = 0, β = −1).
        """
        (a, b), (da, db) = x, self.tangent(x, v)
        beta = _ratio(b, db)
        db = db - beta * b
        speed_a, speed_b = _norm(da) / _norm(a), _norm(db) / _norm(b)
        w = hypot(speed_a, speed_b)
        growth = hypot(1 + beta, w)
        still, straight = w == 0, 1 + beta  # the limit of the angle over w is 1 / (1 + β), lest δX and δY have no slope
        moving = w.masked_fill(still, 1)
        time = torch.where(still, 1 / straight.masked_fill(straight == 0, 1), torch.atan2(moving, straight) / moving)
        return _turn(a, da, speed_a * time, time), growth * _turn(b, db, speed_b * time, time)

    def log(self, x: Pair, y: Pair) -> Pair:
        """The shortest way; not unique where U is orthogonal to V in both factors, or V is −U."""
        (a, b), (along_a, along_b, angles) = x, self._directions(x, y)
        total = hypot(*angles)
        ratio = self._norm(y) / self._norm(x)
        time = ratio * torch.sinc(total / math.pi)  # of the tangent vector's angle to its length, r₂ sin θ / (r₁ θ)
        beta = ratio * total.cos() - 1
        return time * along_a * _norm(a), time * along_b * _norm(b) + beta * b

    def dist(self, x: Pair, y: Pair) -> Tensor:
        """The third side of the triangle with sides ‖U‖, ‖V‖ and the angle θ between them, θ² = θ_X² + θ_Y²."""
        *_, angles = self._directions(x, y)
        r, s = self._norm(x), self._norm(y)
        half = hypot(*angles).clamp(max=math.pi) / 2
        return hypot(r - s, 2 * r.sqrt() * s.sqrt() * half.sin())[..., 0, 0]

    def norm_grad(self, x: Pair) -> Pair:
        a, b = x
        return a * _square(b), b * _square(a)

    def _norm(self, x: Pair) -> Tensor:
        return _norm(x[0]) * _norm(x[1])

    def _directions(self, x: Pair, y: Pair) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Of both factors the logarithm on the unit sphere and its angle, to the nearer of y = (X, Y), (−X, −Y)."""
        starts, ends = ([each / _norm(each) for each in pair] for pair in (x, y))
        angles = [_angle(s, e) for s, e in zip(starts, ends, strict=True)]
        sign = torch.where(angles[0] + angles[1] > math.pi, -1.0, 1.0)  # then (π − α)² + (π − β)² < α² + β²
        ends = [sign * e for e in ends]
        angles = [_angle(s, e) for s, e in zip(starts, ends, strict=True)]
        logs = [(e - t.cos() * s) / torch.sinc(t / math.pi) for s, e, t in zip(starts, ends, angles, strict=True)]
        return logs[0], logs[1], (angles[0], angles[1])


def check_pair(manifold: Manifold, *shapes: Size) -> None:
    """Raise ValueError unless there are two shapes of matrices with the same batch."""
    if len(shapes) != 2:
        raise ValueError(f"a point of {manifold} is a tuple of two tensors, got {len(shapes)}")
    for shape in shapes:
        matrix_shape(shape, str(manifold))
    if shapes[0][:-2] != shapes[1][:-2]:
        raise ValueError(f"{manifold} needs two shapes with the same batch, got {shapes[0]} and {shapes[1]}")


def square_shapes(shape: tuple) -> list[Size]:
    """The shapes that ``random`` was given, an int n standing for (n, n)."""
    return [(each, each) if isinstance(each, int) else tuple(each) for each in shape]


def keep_norm(a: Tensor, x: Pair) -> Pair:
    """The pair (cX, Y/c) of the same U with ‖cX‖ = ‖A‖."""
    c = _norm(a) / _norm(x[0])
    return c * x[0], x[1] / c


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return real_inner(u, v)[..., None, None]


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(a, keepdim=True)


def _ratio(a: Tensor, u: Tensor) -> Tensor:
    """⟨A, u⟩ / ⟨A, A⟩."""
    return _dot(a, u) / _square(a)


def _angle(s: Tensor, e: Tensor) -> Tensor:
    """Between unit matrices; accurate at all angles, as an arc cosine is not."""
    return 2 * torch.atan2(_norm(e - s), _norm(e + s))


def _turn(a: Tensor, da: Tensor, angle: Tensor, time: Tensor) -> Tensor:
    """A turned by ``angle`` towards ``da`` ⟂ A; ``time`` is the angle's ratio to ‖da‖/‖A‖, so that 0/0 is avoided."""
    return angle.cos() * a + time * torch.sinc(angle / math.pi) * da
