"""Matrices x with orthonormal columns, xᴴx = I, shape (..., n, p): their retractions, geodesics and random points.

Every function takes a point x and a tangent vector v, that is xᴴv is skew-Hermitian, and none of them makes an n×n
matrix where p < n. The result is orthonormal to rounding for a v of any size: beyond steps of ordinary length, where
the Gram matrices that make them fast would lose accuracy, each has a slower way. The rounding errors of x do not build
up from step to step, for what the result is made from is the Gram matrix of x as it is. All are differentiable at
ordinary lengths, v = 0 and v without full rank included; the slower ways of ``qr``, ``cayley`` and ``geodesic``
need [x, v] to have full rank for that. A traced graph cannot choose: there ``qr`` and ``polar`` go the slower way, and
``cayley`` and ``geodesic`` the fast one, which is right while no column of v is longer than about 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .._torch.tracing import all_within, refuse_nonfinite
from .cayley import LIMIT, times_cayley
from .elementary import identity, skew
from .exponential import exponential, times_exponential
from .polar import corrected, polar_factor
from .solve import inverse, slogdet, solve_triangular

Retraction = Callable[[Tensor, Tensor], Tensor]


def qr(x: Tensor, v: Tensor) -> Tensor:
    """The Q of x + v = QR with a positive diagonal of R.

    By Cholesky's factor of the Gram matrix (x+v)ᴴ(x+v), which is I + vᴴv and so has no eigenvalue below 1; a long step
    (a column of x + v longer than √10) is left to Householder's reflections.
    Source: Absil, Mahony & Sepulchre (2008), example 4.1.3.
    """
    y = x + v
    gram = y.mH @ y
    if all_within(gram, LIMIT, traced=False):
        return solve_triangular(torch.linalg.cholesky_ex(gram).L.mH, y, upper=True, left=False)
    refuse_nonfinite("a tangent vector", v)
    q, diagonal = _householder(y)
    if _square(x) and not x.is_complex():
        # A v so large that x is lost beside it may leave a column of arbitrary sign, that is, another determinant.
        sign = slogdet(x.mT @ q)[0][..., None]
        weakest = diagonal.abs().argmin(-1, keepdim=True)
        q = q * torch.ones_like(diagonal).scatter(-1, weakest, sign)[..., None, :]
    return q


def polar(x: Tensor, v: Tensor) -> Tensor:
    """(x + v)(I + vᴴv)^-½, the nearest point to x + v. Source: Absil, Mahony & Sepulchre (2008), example 4.1.3."""
    y = x + v
    if _square(x) and not x.is_complex() and not all_within(v, LIMIT, traced=False):
        return polar_factor(y, slogdet(x)[0])  # as in qr
    return polar_factor(y)


def cayley(x: Tensor, v: Tensor) -> Tensor:
    """The Cayley transform (I − ½W)⁻¹(I + ½W)x of W = Pvxᴴ − xvᴴP, P = I − ½xxᴴ, for which Wx = v.

    W has rank 2p, so Woodbury's identity gives a 2p×2p system. In the basis [x, w], w = v − xA and A = xᴴv, half of it
    solves itself, and what is left is p×p: (2x + w)(I − ½A + ¼wᴴw)⁻¹ − x. A 3p×3p system for the Euclidean gradient, as
    CWY has it (Likhosherstov et al., 2021, 'RGD-E-C'), is never needed: here v is tangent already.
    Sources: Wen & Yin (2013); for the p×p form, on the symplectic Stiefel manifold, Bendokat & Zimmermann (2021).
    """
    if _square(x):
        return corrected(times_cayley(x, skew(x.mH @ v)))
    both, gram, a, s = _span(x, v)
    if not all_within(s, LIMIT, traced=True):
        return _in_frame(x, v, times_cayley)
    eye = identity(a)
    b = inverse(eye - a / 2 + (s + a @ a) / 4)  # wᴴw = vᴴv + A²
    return _combine(both, gram, torch.cat([(2 * eye - a) @ b - eye, b], -2))


def geodesic(x: Tensor, v: Tensor, beta: float = 0.5) -> Tensor:
    """The geodesic from x with velocity v at time 1, under the metric Re tr uᴴ(I − (1 − β)xxᴴ)v.

    β = ½ is the canonical metric, β = 1 the Euclidean one. In the basis [x, w], w = v − xA and A = xᴴv, the geodesic is
    [x, w]·exp([[2βA, −wᴴw], [I, 0]])·[I; 0]·exp((1 − 2β)A), whatever the rank of w; in an orthonormal basis [x, Q],
    w = QR, the generator is [[2βA, −Rᴴ], [R, 0]].
    Sources: Edelman, Arias & Smith (1998), sections 2.2 and 2.4; Zimmermann & Hüper (2022), whose α is 1/(2β) − 1.
    """
    if _square(x):
        return corrected(x @ exponential(skew(x.mH @ v), "a tangent vector", tangent=True))
    both, gram, a, s = _span(x, v)
    if not all_within(s, LIMIT, traced=True):
        return _in_frame(x, v, times_exponential, beta)
    p, eye = x.shape[-1], identity(a)
    generator = _blocks(2 * beta * a, -(s + a @ a), eye.expand_as(a), torch.zeros_like(a))
    columns = exponential(generator, "a tangent vector")[..., :p]
    along, across = columns[..., :p, :], columns[..., p:, :]
    coefficients = torch.cat([along - a @ across, across], -2)
    if beta != 0.5:
        coefficients = times_exponential(coefficients, (1 - 2 * beta) * a)
    return _combine(both, gram, coefficients)


RETRACTIONS: dict[str, Retraction] = {"qr": qr, "polar": polar, "cayley": cayley}


def residual(x: Tensor) -> Tensor:
    """‖xᴴx − I‖, the Frobenius norm, of the batch's shape."""
    return torch.linalg.matrix_norm(x.mH @ x - identity(x))


def tangent(x: Tensor, v: Tensor) -> Tensor:
    """v − x sym(xᴴv), the part of ``v`` whose product with xᴴ is skew-Hermitian."""
    a = x.mH @ v
    return (x @ ((a + a.mH) * -0.5)).add_(v)  # in place: an array of x's size costs about as much as a product


def random(*shape: int, generator: torch.Generator | None = None, dtype=None, device=None) -> Tensor:
    """Orthonormal columns from the uniform distribution: the Q of a Gaussian matrix, R with a positive diagonal."""
    return _householder(torch.randn(*shape, generator=generator, dtype=dtype, device=device))[0]


def _square(x: Tensor) -> bool:
    return x.shape[-2] == x.shape[-1]


def _householder(y: Tensor) -> tuple[Tensor, Tensor]:
    """Q and the diagonal of R before its signs (complex: phases) were given to Q."""
    scale = y.detach().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    q, r = torch.linalg.qr(y / scale)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return q * torch.where(diagonal == 0, 1, diagonal.sgn())[..., None, :], diagonal


def _span(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[x, v], its Gram matrix, and of that A = xᴴv, made skew-Hermitian, and vᴴv."""
    p, both = x.shape[-1], torch.cat([x, v], -1)
    gram = both.mH @ both
    return both, gram, skew(gram[..., :p, p:]), gram[..., p:, p:]


def _combine(both: Tensor, gram: Tensor, coefficients: Tensor) -> Tensor:
    """[x, v]·C after one Newton step towards orthonormal columns, done on C."""
    error = coefficients.mH @ gram @ coefficients
    return both @ (coefficients @ (1.5 * identity(error) - 0.5 * error))


def _in_frame(x: Tensor, v: Tensor, transform: Callable[[Tensor, Tensor], Tensor], beta: float = 0.5) -> Tensor:
    """The step in an orthonormal basis [x, Q] of the span of [x, v], by a transform of its generator."""
    refuse_nonfinite("a tangent vector", v)
    p = x.shape[-1]
    frame, r = torch.linalg.qr(torch.cat([x, v], -1))
    signs = r.diagonal(dim1=-2, dim2=-1)[..., :p].sgn()
    frame = torch.cat([frame[..., :p] * signs[..., None, :], frame[..., p:]], -1)
    a, b = skew(signs.conj()[..., None] * r[..., :p, p:]), r[..., p:, p:]
    corner = b.new_zeros(*b.shape[:-1], b.shape[-2])
    y = transform(frame, _blocks(2 * beta * a, -b.mH, b, corner))[..., :p]
    return corrected(y if beta == 0.5 else transform(y, (1 - 2 * beta) * a))


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)
