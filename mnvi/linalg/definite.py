"""Positive definiteness: tests of it, and guards that keep the result of a step definite, however long the step.

There are three guards, none of which touches a step of ordinary length: ``shorten`` cuts a step whose numbers would
drown the point's in rounding, ``one_plus`` bends I + W before an eigenvalue reaches 0, and ``floored`` raises the
eigenvalues that rounding cannot tell from 0.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import spectral
from .elementary import sym

Matrices = TypeVar("Matrices", bound=Tensor | tuple[Tensor, ...])


def reach(dtype: torch.dtype) -> float:
    """eps^-½, the factor by which one step may change a point: 2.9·10³ in float32, 6.7·10⁷ in float64."""
    return torch.finfo(dtype).eps ** -0.5


def shorten(x: Matrices, v: Matrices) -> Matrices:
    """``v``, multiplied by one number ≤ 1 so that no entry exceeds ``reach`` times the largest of ``x``.

    An infinite entry, a step that has overflowed already, counts as the largest finite number.
    """
    points, steps = ((each if isinstance(each, tuple) else (each,)) for each in (x, v))
    finite = [each.clamp(torch.finfo(each.dtype).min, torch.finfo(each.dtype).max) for each in steps]
    scales = [shrinkage(each, reach(p.dtype) * largest(p)) for p, each in zip(points, finite, strict=True)]
    scale = torch.stack(scales).amin(0)
    shortened: Any = tuple(each * scale for each in finite)
    return shortened if isinstance(v, tuple) else shortened[0]


def shrinkage(v: Tensor, bound: Tensor) -> Tensor:
    """The number ≤ 1 that takes every entry of ``v`` within ``bound``: 1 exactly, of slope 0, if they are already."""
    return bound / torch.maximum(bound, largest(v))


def largest(x: Tensor) -> Tensor:
    """The largest magnitude of an entry, shape (..., 1, 1)."""
    return x.abs().amax((-2, -1), keepdim=True)


def one_plus(w: Tensor) -> Tensor:
    """I + W for symmetric W ≥ −½; beyond that its eigenvalues 1 + λ give way to :func:`spectral.bend`, always > 0."""
    identity = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    straight = definite(w + identity / 2)
    return replace(w + identity, ~straight, lambda w: spectral.apply(spectral.bend, w), w)


def definite(s: Tensor) -> Tensor:
    """Whether a symmetric matrix has a Cholesky factor, of the batch's shape."""
    with torch.no_grad():
        return torch.linalg.cholesky_ex(s).info == 0


def safely_definite(s: Tensor) -> Tensor:
    """Whether the smallest eigenvalue is above :func:`floor` times the largest, or a little more."""
    with torch.no_grad():
        size = s.abs().sum(-1).amax(-1)  # no smaller than the largest eigenvalue
        identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        return definite(s - (floor(s) * size)[..., None, None] * identity)


def admissible(s: Tensor) -> Tensor:
    """Whether a symmetric matrix has λ_min/λ_max above half of :func:`floor`, and a Cholesky factor.

    This is what a point needs and what a step leaves alone; half, as what was raised to the floor may be rounded down.
    """
    eigenvalues = torch.linalg.eigvalsh(s.detach())
    return (eigenvalues[..., 0] > floor(s) / 2 * eigenvalues[..., -1]) & definite(s)


def floored(s: Tensor) -> Tensor:
    """The symmetric matrix S with every eigenvalue raised to :func:`floor` times the largest magnitude."""
    return sym(spectral.apply(_raise_to_floor, s))


def ensure_definite(s: Tensor) -> Tensor:
    """S where it is :func:`admissible`, else ``floored``."""
    unsafe = ~safely_definite(s)
    unsafe = replace(unsafe, unsafe, lambda s: ~admissible(s), s)
    return replace(s, unsafe, floored, s)


def replace(x: Tensor, where: Tensor, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """``x`` with the matrices ``where`` a condition holds replaced by ``function`` of the arguments' matrices there."""
    if not where.any():
        return x
    x = x.clone()
    x[where] = function(*(each[where] for each in arguments))
    return x


def floor(s: Tensor) -> float:
    """The least condition that a Cholesky factorisation in the matrix's precision needs: n·eps, n at least 10."""
    return max(s.shape[-1], 10) * torch.finfo(s.dtype).eps


def _raise_to_floor(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    size = eigenvalues.abs().amax(-1, keepdim=True)
    size = torch.where(size == 0, 1.0, size)  # the zero matrix has no scale of its own
    return spectral.clamp(eigenvalues, floor(eigenvalues) * size, size)
