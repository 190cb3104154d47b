"""Sums over the second moments of a matrix of random numbers, in few passes over the matrices."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.tracing import in_transform

SMALL = 2**15  # numbers up to which torch's own derivative is quicker than one with fewer passes


def sum_squares(matrix: Tensor) -> Tensor:
    """Σ of all squared entries of ``matrix``, a scalar."""
    if in_transform():
        return matrix.square().sum()
    if matrix.numel() > SMALL:
        return _SumSquares.apply(matrix)
    flat = matrix.flatten()
    return torch.dot(flat, flat)


def sum_log_second_moment(mean: Tensor, variance: Tensor) -> Tensor:
    """Σ log(M_ij² + Var_ij) over matrices of one shape, a scalar."""
    if in_transform():
        return _second_moment(mean, variance).log().sum()
    return _SumLogSecondMoment.apply(mean, variance)


class _SumSquares(Function):
    """M ↦ Σ M_ij², a scalar; one pass over M in each direction."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        flat = matrix.flatten()
        return torch.dot(flat, flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        return ctx.saved_tensors[0] * (2 * grad)


class _SumLogSecondMoment(Function):
    """M, Var ↦ Σ log(M_ij² + Var_ij), in few passes over the matrices."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        second_moment = _second_moment(mean, variance)
        ctx.save_for_backward(mean, variance)
        ctx.second_moment = second_moment
        return second_moment.log().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        mean, variance = ctx.saved_tensors
        second_moment = _second_moment(mean, variance) if torch.is_grad_enabled() else ctx.second_moment
        precision = grad / second_moment
        return mean * precision * 2, precision


def _second_moment(mean: Tensor, variance: Tensor) -> Tensor:
    # The smallest normal number keeps the logarithm finite where both terms underflow; it is lost in any other sum.
    return torch.addcmul(variance, mean, mean) + torch.finfo(mean.dtype).tiny
