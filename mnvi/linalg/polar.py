"""The orthonormal polar factor of a matrix, with derivatives wherever the factor is unique."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.autocast import full_precision
from .._torch.tracing import all_within, jit_tracing, plain_operations, refuse_nonfinite
from .elementary import identity, skew, sym
from .solve import slogdet, solve

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
        ValueError: if y is not finite; in the backward pass, if the factor is not unique, outside traced graphs.

    ``torch.jit.trace`` keeps the values, whose derivative is then that of an eigenvalue decomposition.

    Source: Higham, 'Functions of Matrices' (2008), chapter 8, doi:10.1137/1.9780898717778.
    """
    if jit_tracing():
        return _decompose(y, orientation)[0]
    if plain_operations():
        return _DualPolarFactor.apply(y, orientation)[0]  # type: ignore[index]
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
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_):  # type: ignore[override]
        return _derivative(grad, *ctx.saved_tensors), None


class _DualPolarFactor(_PolarFactor):
    """The same with a forward-mode derivative, which torch.compile refuses to trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any):  # type: ignore[override]
        return _derivative(tangent, *ctx.saved_tensors), None, None  # the derivative is self-adjoint


def _derivative(dy: Tensor, y: Tensor, u: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    with full_precision(y):
        h, along = sym(u.mH @ y), u.mH @ dy
        result = u @ _sylvester(h, along - along.mH, vectors, values)
        if y.shape[-2] > y.shape[-1]:  # in a square matrix nothing lies outside, and H may be singular
            result = result + solve(h, dy - u @ along, left=False)
    return _defined(result, dy)


class _Sylvester(Function):
    """h, c ↦ the skew-Hermitian solution x of h x + x h = skew(c), for Hermitian h of these eigenvectors and values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, c: Tensor, vectors: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        sums = values[..., :, None] + values[..., None, :]
        if not c.is_complex():  # then the diagonal is 0, exactly, whatever it is divided by
            sums.diagonal(dim1=-2, dim2=-1).fill_(1)
        return vectors @ (skew(vectors.mH @ c @ vectors) / sums) @ vectors.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        h, _, vectors, values = inputs
        ctx.save_for_backward(h, output, vectors, values)
        ctx.save_for_forward(h, output, vectors, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        h, x, vectors, values = ctx.saved_tensors
        grad_c = _sylvester(h, grad, vectors, values)
        return x @ grad_c + grad_c @ x, grad_c, None, None


class _DualSylvester(_Sylvester):
    """The same with a forward-mode derivative."""

    @staticmethod
    def jvp(ctx: Any, dh: Tensor | None, dc: Tensor | None, *_: Any) -> Tensor:  # type: ignore[override]
        h, x, vectors, values = ctx.saved_tensors
        change = torch.zeros_like(x) if dc is None else dc
        return _sylvester(h, change if dh is None else change - dh @ x - x @ dh, vectors, values)


def _sylvester(h: Tensor, c: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    return (_DualSylvester if plain_operations() else _Sylvester).apply(h, c, vectors, values)  # type: ignore[return-value]


def _defined(result: Tensor, grad: Tensor) -> Tensor:
    """The gradient ``result``, 0 where ``grad`` is 0; ValueError where there is none, outside traced graphs."""
    if all_within(result, torch.finfo(result.dtype).max, traced=True):
        return result
    unused = (grad == 0).flatten(-2).all(-1)
    missing = ~result.isfinite().flatten(-2).all(-1) & grad.isfinite().flatten(-2).all(-1) & ~unused
    if missing.any():
        where = f"matrix {missing.nonzero()[0].tolist()} of the batch" if missing.dim() else "the matrix"
        raise ValueError(
            f"no derivative: the polar factor is not unique, as that of {where} is not, or its gradient overflows"
        )
    return result.masked_fill(unused[..., None, None], 0)


def _decompose(y: Tensor, orientation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """U, and the eigenvectors and eigenvalues of H."""
    u, vectors, values = _from_gram(y) or _from_svd(y)
    if orientation is None:
        return u, vectors, values
    turn = orientation * slogdet(u)[0]  # 1, or −1 where the smallest direction turns round
    weakest = vectors[..., :1]
    values = torch.cat([values[..., :1] * turn[..., None], values[..., 1:]], -1)
    return u + (turn[..., None, None] - 1) * (u @ weakest @ weakest.mH), vectors, values


def _from_gram(y: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:  # None where that would cost accuracy
    gram, info = y.mH @ y, torch.finfo(y.dtype)
    if not all_within(gram, info.max, traced=False):
        return None
    squares, vectors = torch.linalg.eigh(gram)
    if not all_within(squares[..., -1].clamp(min=info.tiny / info.eps) / squares[..., 0], SPREAD, traced=False):
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


def corrected(y: Tensor) -> Tensor:
    """One Newton step y(3I − yᴴy)/2 towards the nearest orthonormal columns: an error e in yᴴy becomes ¾e²."""
    return y @ (1.5 * identity(y) - 0.5 * (y.mH @ y))
