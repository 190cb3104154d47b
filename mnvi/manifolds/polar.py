"""The orthonormal polar factor of a matrix, with derivatives wherever the factor is unique."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .base import sym
from .branching import refuse_nonfinite, within

SPREAD = 30.0  # largest ratio of eigenvalues of yᴴy at which the Gram matrix is as good as the SVD, to about 30 eps


def polar_factor(y: Tensor, orientation: Tensor | None = None) -> Tensor:
    """The nearest matrix to ``y`` with orthonormal columns: U of y = U H, H = (yᴴy)^½ positive definite.

    The derivative exists, to any order, where y has full rank, also where singular values are equal: with Ω = Uᴴ dU,
    ΩH + HΩ = Uᴴ dy − dyᴴ U is a Sylvester equation in the eigenvectors of H, whose eigenvalues are only ever added.

    Args:
        y: shape (..., n, p), n ≥ p, of any scale. Where its rank is below p the factor is one of several.
        orientation: for square real y, the sign ±1 that the determinant of the result shall have, of the batch's
            shape; where y has the other sign, the direction of its smallest singular value is turned round.

    Returns:
        The factor, of shape (..., n, p).

    Raises:
        ValueError: if y is not finite; in the backward pass, if its rank is below p, or p − 1 where it is
            square and real.

    Source: Higham, 'Functions of Matrices' (2008), chapter 8.
    """
    factor = _PolarFactor.apply if torch.is_grad_enabled() else _decompose
    return factor(y, orientation)[0]  # type: ignore[index]


class _PolarFactor(Function):
    """y ↦ U, and the eigenvectors and eigenvalues of H for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, orientation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return _decompose(y, orientation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_):  # type: ignore[override]
        y, u, vectors, values = ctx.saved_tensors
        _check_rank(y, values)
        h, along = sym(u.mH @ y), u.mH @ grad
        result = u @ _Sylvester.apply(h, along - along.mH, vectors, values)
        if y.shape[-2] > y.shape[-1]:  # in a square matrix nothing lies outside, and H may be singular
            result = result + torch.linalg.solve(h, grad - u @ along, left=False)
        return result, None


class _Sylvester(Function):
    """h, c ↦ the solution x of h x + x h = c, for Hermitian h with the given eigenvectors and eigenvalues."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, c: Tensor, vectors: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        sums = values[..., :, None] + values[..., None, :]
        sums = sums.masked_fill(sums == 0, 1)  # twice a singular value, with a number that is 0
        return vectors @ ((vectors.mH @ c @ vectors) / sums) @ vectors.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        h, _, vectors, values = inputs
        ctx.save_for_backward(h, output, vectors, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        h, x, vectors, values = ctx.saved_tensors
        grad_c = _Sylvester.apply(h, grad, vectors, values)
        return -(grad_c @ x.mH + x.mH @ grad_c), grad_c, None, None  # type: ignore[operator]


def _check_rank(y: Tensor, values: Tensor) -> None:
    """Raise ValueError where the factor is not unique, so that it has no derivative; not in a traced graph."""
    p, info = values.shape[-1], torch.finfo(values.dtype)
    pairs = y.shape[-2] == p and not y.is_complex()  # then only sums of two different singular values are divided by
    if (pairs and p == 1) or torch.compiler.is_compiling():
        return
    if bool((values[..., : 1 + pairs].sum(-1) <= p * info.eps * values[..., -1]).any()):
        raise ValueError(f"a matrix without full rank, of shape {tuple(y.shape)}: its polar factor has no derivative")


def _decompose(y: Tensor, orientation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """U, and the eigenvectors and eigenvalues of H."""
    u, vectors, values = _from_gram(y) or _from_svd(y)
    if orientation is None:
        return u, vectors, values
    turn = orientation * torch.linalg.slogdet(u).sign  # 1, or −1 where the smallest direction turns round
    weakest = vectors[..., :1]
    values = torch.cat([values[..., :1] * turn[..., None], values[..., 1:]], -1)
    return u + (turn[..., None, None] - 1) * (u @ weakest @ weakest.mH), vectors, values


def _from_gram(y: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:  # None where that would cost accuracy
    gram, info = y.mH @ y, torch.finfo(y.dtype)
    if not within(gram, info.max, traced=False):
        return None
    squares, vectors = torch.linalg.eigh(gram)
    if not within(squares[..., -1].clamp(min=info.tiny / info.eps) / squares[..., 0], SPREAD, traced=False):
        return None
    values = squares.sqrt()
    root = (vectors / values[..., None, :]) @ vectors.mH
    # One Newton step: the computed eigenvectors are orthonormal only to several eps.
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    root = root @ (1.5 * eye - 0.5 * (root @ gram @ root))
    return y @ root, vectors, values


def _from_svd(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    refuse_nonfinite("a matrix to project", y)
    scale = y.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    u, values, vectors_h = torch.linalg.svd(y / scale, full_matrices=False)
    return u @ vectors_h, vectors_h.mH.flip(-1), (values * scale[..., 0]).flip(-1)  # ascending, as from eigh
