"""The matrix exponential with a backward pass about as long as its forward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.autocast import full_precision
from .._torch.dtypes import COMPLEX, REAL
from .._torch.tracing import plain_operations, refuse_nonfinite
from ._scaling_and_squaring import differentiate, evaluate
from ._traced_exponential import traced_exponential, transformed
from .elementary import skew
from .shapes import check_square


def exponential(a: Tensor, name: str = "the argument of the exponential", *, skew_hermitian: bool = False) -> Tensor:
    """exp(a) of square matrices of any norm, differentiable to any order.

    Where all matrices of a batch are skew-Hermitian, exactly, the results are unitary to rounding however large they
    are, and cheaper. The first derivative costs twice the exponential; each further one is the exponential of matrices
    of twice the size. In a compiled graph it is one operation, whose backward pass evaluates it again. What torch.func
    transforms, torch.export and torch.jit.trace see, and forward-mode derivatives, is torch.linalg.matrix_exp.

    Args:
        a: shape (..., n, n), real or complex, float32 or float64.
        name: what an error message calls ``a``.
        skew_hermitian: a is skew-Hermitian by construction, as x − xᴴ is, and stays so where it is varied: only the
            skew-Hermitian part of its gradient is computed, which is cheaper. This is not checked.

    Returns:
        The exponential, of the same shape.

    Raises:
        ValueError: if a is not square, not of these dtypes, or not finite.

    Sources: Sastre, Ibáñez & Defez, 'Boosting the computation of the matrix exponential' (2019), the polynomial,
    doi:10.1016/j.amc.2018.08.017; Al-Mohy & Higham (2009), choosing s by the norms of powers, doi:10.1137/09074721X;
    Bader, Blanes, Casas & Seydaoğlu (2022), Chebyshev polynomials for skew-Hermitian matrices, arXiv:2103.10132.
    """
    check_square(a.shape, name)
    if a.dtype not in REAL + COMPLEX:
        raise ValueError(f"{name} must have a dtype of {REAL + COMPLEX}, got {a.dtype}")
    if not a.numel():
        return a.clone()
    batch = a.reshape(-1, *a.shape[-2:])
    if plain_operations() or (torch.compiler.is_compiling() and transformed()):
        refuse_nonfinite(name, batch)
        return _torchs(batch).reshape(a.shape)
    if torch.compiler.is_compiling():
        return traced_exponential(batch, name, skew_hermitian).reshape(a.shape)
    return _Exponential.apply(batch, name, skew_hermitian)[0].reshape(a.shape)  # type: ignore[index]


def times_exponential(x: Tensor, a: Tensor) -> Tensor:
    """x·exp(a) for a skew-Hermitian ``a``, shape (..., n, n), and ``x``, shape (..., m, n).

    The columns keep their orthogonality to rounding however large a is; the angles lose the digits that a itself has
    lost. Raises ValueError if a is not finite.
    """
    return x @ exponential(a, "a tangent vector")


def _torchs(batch: Tensor) -> Tensor:
    # Of a single small matrix torch's has a wrong coefficient (pytorch issue 196592), of two it has not.
    return torch.linalg.matrix_exp(torch.cat([batch, batch]) if len(batch) == 1 else batch)[: batch.shape[0]]


class _Exponential(Function):
    """a ↦ exp(a), and what its derivative is made from: see ``evaluate``."""

    @staticmethod
    def forward(a: Tensor, name: str, skew_hermitian: bool) -> tuple[Tensor, ...]:  # type: ignore[override]
        with full_precision(a):
            return evaluate(a, name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.skew_hermitian = inputs[2]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_):  # type: ignore[override]
        a, *stages = ctx.saved_tensors
        return None if grad is None else _Derivative.apply(a, grad, ctx.skew_hermitian, *stages), None, None


class _Derivative(Function):
    """a, g ↦ L(aᴴ, g), the adjoint of exp's derivative at a applied to g, from the stages of exp(a).

    Where ``skew_hermitian``, something whose skew-Hermitian part is that of L(aᴴ, g).
    """

    @staticmethod
    def forward(a: Tensor, grad: Tensor, skew_hermitian: bool, *stages: Tensor) -> Tensor:  # type: ignore[override]
        with full_precision(a):
            return differentiate(a, grad, skew_hermitian, *stages)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.num_stages, ctx.skew_hermitian = len(inputs) - 3, inputs[2]
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        """L(aᴴ, g) is the upper right block of exp of [[aᴴ, g], [0, aᴴ]].

        Source: Mathias, 'A chain rule for matrix functions and applications' (1996), doi:10.1137/S0895479895283409.
        """
        a, g = ctx.saved_tensors
        if ctx.skew_hermitian:
            grad = skew(grad)
        # What is returned is linear in g. Of the size of a it neither adds squarings to those of a nor overflows.
        size = g.detach().abs().amax((-2, -1), keepdim=True)
        size = torch.where(size > 0, size / a.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1 / a.shape[-1]), 1)
        g = g / size
        n, zero = a.shape[-1], torch.zeros_like(a)
        blocks = torch.cat([torch.cat([a.mH, g], -1), torch.cat([zero, a.mH], -1)], -2)
        corner = torch.cat([torch.cat([zero, grad], -1), torch.cat([zero, zero], -1)], -2)
        _, *stages = _Exponential.apply(blocks, "a derivative of the exponential", False)  # type: ignore[misc]
        result = _Derivative.apply(blocks, corner, False, *stages)
        return (
            (result[..., :n, :n] + result[..., n:, n:]).mH * size,
            result[..., :n, n:],
            *[None] * (1 + ctx.num_stages),
        )  # type: ignore[index]
