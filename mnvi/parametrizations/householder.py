"""The product of Householder reflections, applied one after the other."""

from typing import Any

import torch
from torch import Tensor

from ..differentiation import differentiable_once
from ..manifolds.skew_hermitian import identity
from .reflections import ReflectionProduct, unit_rows


class Householder(ReflectionProduct):
    """Q = H(v₁)···H(v_L), H(v) = I − 2vvᵀ/vᵀv: an orthogonal matrix of determinant (−1)^L, in L steps of O(n²).

    The same matrix, of the same unconstrained tensor, as :class:`CWY`, which is the faster; this is its reference.
    :func:`mnvi.parametrizations.multiply` applies the reflections to the rows; recurrent layers, for L < n, use the
    factors of CWY. The backward pass keeps the result only and takes the reflections off again, each being its own
    inverse. Differentiable once.

    Args:
        reflections: L, at most the number of rows n.
        init: as for :class:`CWY`, default ``"haar"``.

    Raises:
        TypeError, ValueError: as for :class:`CWY`.

    Source: Mhammedi, Hellicar, Rahman & Bailey, 'Efficient orthogonal parametrisation of recurrent neural networks
    using Householder reflections' (2017), section 3.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", Householder(reflections=16))
    """

    def matrix(self, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        return _Reflected.apply(identity(u).expand(*u.shape[:-2], -1, -1), u)  # type: ignore[return-value]

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        return self.transposed_rows(x, originals[0].flip(-2))

    def transposed_rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        return _Reflected.apply(x.reshape(-1, x.shape[-1]), u).reshape(x.shape)  # type: ignore[union-attr]


class _Reflected(torch.autograd.Function):
    """x·H(u₁)···H(u_L) for rows x, shape (..., m, n), and unit vectors u, shape (..., L, n), of the same batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        y = x.clone(memory_format=torch.contiguous_format)
        for each in u.split(1, -2):
            y.addcmul_(y @ each.mT, each, value=-2)
        ctx.save_for_backward(y, u)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        y, u = ctx.saved_tensors
        y, grad, found = y.clone(), grad.clone(memory_format=torch.contiguous_format), torch.empty_like(u)
        for each, own in zip(reversed(u.split(1, -2)), reversed(found.split(1, -2)), strict=True):
            of_y, of_grad = y @ each.mT, grad @ each.mT
            # Without the part along u, which a unit vector's length has no share in.
            own.copy_(of_y.mT @ grad).sub_(of_grad.mT @ y).mul_(2)
            y.addcmul_(of_y, each, value=-2)
            grad.addcmul_(of_grad, each, value=-2)
        return grad, found
