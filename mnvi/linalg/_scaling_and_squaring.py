"""Scaling and squaring: exp of matrices by a polynomial and squarings, each product differentiated by hand.

exp(a) = p(a/2ˢ)^(2ˢ) with a polynomial p of degree 16 in four products (Sastre, Ibáñez & Defez, 2019,
doi:10.1016/j.amc.2018.08.017), counting a². In

    P₀ = a²(c₀a² + c₁a),
    P₁ = (P₀ + c₂a² + c₃a)(P₀ + c₄a²) + c₅P₀ + c₆a²,
    p(a) = (P₁ + c₇a² + c₈a)(P₁ + c₉P₀ + c₁₀a) + c₁₁P₁ + c₁₂P₀ + c₁₃a² + a + I

fourteen coefficients are free, which is enough to agree with the Taylor series up to degree 15. Where all a are
skew-Hermitian, only their spectrum on the imaginary axis matters, and p is instead the one that agrees with the
Chebyshev series of exp on [−iθ, iθ] up to degree 13; it reaches nearly twice as far. Its derivative there is that of
exp in all directions, not only in skew ones. Forward 4 + s products, backward twice as many, or one less where only
the skew-Hermitian part of the gradient is wanted.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch.tracing import refuse_nonfinite

FEW = 16  # rows up to which the errors of three squarings are too many for the number of rows


class _Polynomial(NamedTuple):
    reach: float  # θ, the largest size at which the error is rounding: relative to a (Taylor), of any eigenvalue (skew)
    coefficients: tuple[float, ...]


# fmt: off
_TAYLOR = (
    4.0187616102010357e-4, 2.945531440279683e-3, -8.709066576837676e-3, 0.4017568440673568, 3.230762888122312e-2,
    5.7689885130261445, 2.338576034271299e-2, 0.2381070373870987, 2.2242091724963737, -5.792361707073261,
    -4.130276365929783e-2, 10.408017352313545, -63.317124558833704, 0.3484665863364574,
)
_TAYLORS = {torch.float32: _Polynomial(2.346, _TAYLOR), torch.float64: _Polynomial(0.676, _TAYLOR)}
_CHEBYSHEVS = {
    torch.float32: _Polynomial(4.4, (
        3.752405750133392e-4, 2.7230715110454513e-3, 9.845227898276853e-5, 0.43165414249878514, 3.426192020619819e-2,
        5.126466480999688, 1.7215776719629663e-2, 0.22943465086467843, 1.8627424559951615, -5.383322943217118,
        9.967662982258306e-2, 7.9737627658294, -43.783338940010935, 0.17705357420417292,
    )),
    torch.float64: _Polynomial(1.2, (
        3.998315538242104e-4, 2.928764517910074e-3, -8.008302209518984e-3, 0.40431304104496574, 3.245929171811163e-2,
        5.717692968405059, 2.2703574165059436e-2, 0.2377059322115329, 2.19447804741057, -5.765354643425534,
        -2.9289561970197185e-2, 10.210235266936115, -61.631134824839116, 0.3324664671362795,
    )),
}
# fmt: on


def evaluate(a: Tensor, name: str) -> tuple[Tensor, ...]:
    """exp(a) for a of shape (b, n, n), and its stages: s, c (on the CPU); a²; the products' factors; x squared."""
    square = a @ a
    doublings, coefficients, skew = _plan(a, square, name)
    most = int(doublings.max())
    if most:
        scale = _scale(a, doublings)
        a = a * scale
        square = square * scale**2 if most < 50 else a @ a  # beyond that, a² may have overflowed
    c = coefficients.tolist()
    right0 = (c[1] * a).add_(square, alpha=c[0])
    p0 = square @ right0
    left1 = torch.add(p0, square, alpha=c[2]).add_(a, alpha=c[3])
    right1 = torch.add(p0, square, alpha=c[4])
    p1 = (c[5] * p0).add_(square, alpha=c[6]).baddbmm_(left1, right1)
    left2 = torch.add(p1, square, alpha=c[7]).add_(a, alpha=c[8])
    right2 = torch.add(p1, p0, alpha=c[9]).add_(a, alpha=c[10])
    x = p1.mul_(c[11]).add_(p0, alpha=c[12]).add_(square, alpha=c[13]).add_(a)
    x.diagonal(dim1=-2, dim2=-1).add_(1)
    x.baddbmm_(left2, right2)
    squared = []
    for done in range(most):
        squared.append(x)
        x = _where(doublings > done, x @ x, x)
        if skew and done % 4 == 3:  # before errors have doubled too often
            x = _towards_unitary(x)
    if skew and a.shape[-1] <= FEW:
        x = _towards_unitary(x)
    return x, doublings, coefficients, square, right0, left1, right1, left2, right2, *squared


def differentiate(
    a: Tensor, grad: Tensor, skew_hermitian: bool, doublings: Tensor, coefficients: Tensor, *stages: Tensor
) -> Tensor:
    """The adjoint of the derivative, each product XY of ``evaluate`` giving GYᴴ to X and XᴴG to Y.

    The gradient S of a² gives Saᴴ + aᴴS to a. For a skew-Hermitian a the skew-Hermitian part of that is the one of
    (S + Sᴴ)aᴴ, which is enough where ``skew_hermitian``.
    """
    square, right0, left1, right1, left2, right2, *squared = stages
    g, c = grad, coefficients.tolist()
    for done in reversed(range(len(squared))):
        xh = squared[done].mH
        g = _where(doublings > done, (g @ xh).baddbmm_(xh, g), g)
    left, right = g @ right2.mH, left2.mH @ g
    g1 = torch.add(left, right).add_(g, alpha=c[11])
    g0 = (c[9] * right).add_(g, alpha=c[12])
    g_square = (c[7] * left).add_(g, alpha=c[13])
    g_a = torch.add(g, left, alpha=c[8]).add_(right, alpha=c[10])
    left, right = g1 @ right1.mH, left1.mH @ g1
    g0.add_(left).add_(right).add_(g1, alpha=c[5])
    g_square.add_(left, alpha=c[2]).add_(right, alpha=c[4]).add_(g1, alpha=c[6])
    g_a.add_(left, alpha=c[3])
    right = square.mH @ g0
    g_square.baddbmm_(g0, right0.mH).add_(right, alpha=c[0])
    g_a.add_(right, alpha=c[1])
    scale = _scale(a, doublings) if squared else 1.0
    ah = (a * scale if squared else a).mH
    if skew_hermitian:
        g_a.baddbmm_(g_square + g_square.mH, ah)
    else:
        g_a.baddbmm_(g_square, ah).baddbmm_(ah, g_square)
    return g_a.mul_(scale) if squared else g_a


def _plan(a: Tensor, square: Tensor, name: str) -> tuple[Tensor, Tensor, bool]:
    """The numbers of squarings s, shape (b, 1, 1), the coefficients, and whether all a are skew-Hermitian.

    The size of a/2ˢ must be within reach of the polynomial: for a skew-Hermitian a the spectral norm, at most ‖a²‖^½,
    else max ‖aᵏ‖^(1/k) over k ≥ 15, at most (‖a²‖⁷‖a‖)^(1/15). ‖a²‖ may be far below ‖a‖².
    """
    info, kind = torch.finfo(a.dtype), a.real.dtype
    norms = [each.abs().sum(-1).amax(-1) for each in (a, square)]
    skew = (a == -a.mH).all().to(kind).expand_as(norms[0])
    norm, norm_square, skew = torch.stack([*norms, skew]).double().cpu()  # the one time that the host waits
    if not norm.isfinite().all():
        refuse_nonfinite(name, a)
    norm = norm.log2().clamp(max=math.log2(info.max) + math.log2(a.shape[-1]))
    norm_square = torch.where(norm_square.isfinite(), norm_square.log2(), 2 * norm)
    if skew.all():
        size, polynomial = norm_square / 2, _CHEBYSHEVS[kind]
    else:
        size, polynomial = (7 * norm_square + norm) / 15, _TAYLORS[kind]
    doublings = (size - math.log2(polynomial.reach)).ceil().clamp(min=0)[:, None, None]
    return doublings, torch.tensor(polynomial.coefficients, dtype=torch.float64), bool(skew.all())


def _towards_unitary(x: Tensor) -> Tensor:
    """One Newton step."""
    return torch.baddbmm(x, x, x.mH @ x, beta=1.5, alpha=-0.5)


def _scale(a: Tensor, doublings: Tensor) -> Tensor:
    return torch.exp2(-doublings).to(a.device, a.real.dtype)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """torch.where for a condition of shape (b, 1, 1) on the CPU; x itself where all of it holds."""
    return x if condition.all() else torch.where(condition.to(x.device), x, y)
