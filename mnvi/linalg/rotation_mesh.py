"""Layers of 2×2 turns of neighbours: their product with a matrix, and the angles of a unitary matrix."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._torch.once_differentiable import differentiable_once
from .._torch.tracing import plain_operations


def turn_layers(x: Tensor, blocks: Tensor, sizes: list[int]) -> Tensor:
    """F₁F₂⋯F_L x for x of shape (..., n, k), by unitary ``blocks`` (..., pairs, 2, 2), ``sizes`` of them a layer.

    Differentiable once.
    """
    if not plain_operations():
        return _Mesh.apply(x, blocks, sizes)  # type: ignore[return-value]
    for layer, block in reversed(list(enumerate(blocks.split(sizes, -3)))):
        turned = (block @ _pairs(x, layer)).flatten(-3, -2)
        first, last = x[..., : layer % 2, :], x[..., layer % 2 + turned.shape[-2] :, :]
        x = torch.cat([first, turned, last], -2)
    return x


class _Mesh(torch.autograd.Function):
    """F₁F₂⋯F_L x, by unitary blocks (..., 2, 2); the backward pass undoes the layers and stores no states."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, sizes: list[int]) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        for layer, block in reversed(list(enumerate(blocks.split(sizes, -3)))):
            _multiply_(block, _pairs(y, layer))
        ctx.save_for_backward(y, blocks)
        ctx.sizes = sizes
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor):
        y, blocks = ctx.saved_tensors
        y, grad = (each.clone(memory_format=torch.contiguous_format) for each in (y, grad))
        grads = torch.empty_like(blocks)
        layers = zip(blocks.split(ctx.sizes, -3), grads.split(ctx.sizes, -3), strict=True)
        for layer, (block, block_grad) in enumerate(layers):
            state, outer = _pairs(y, layer), _pairs(grad, layer)
            _multiply_(block.mH, state)
            block_grad.copy_(outer @ state.mH)
            _multiply_(block.mH, outer)
        return grad, grads, None


def _pairs(x: Tensor, layer: int) -> Tensor:
    """The rows of x (..., n, k) that a layer turns, as a view (..., pairs, 2, k)."""
    count = (x.shape[-2] - layer % 2) // 2
    return x.narrow(-2, layer % 2, 2 * count).unflatten(-2, (count, 2))


def _multiply_(block: Tensor, pairs: Tensor) -> None:
    pairs.copy_(block @ pairs)


def turns(theta: Tensor, phi: Tensor | None = None) -> Tensor:
    """The 2×2 blocks of all angles, shape (..., 2, 2)."""
    cos, sin = theta.cos(), theta.sin()
    turns = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    if phi is None:
        return turns
    columns = torch.stack([phi, torch.zeros_like(phi)], -1)
    return turns * torch.polar(torch.ones_like(columns), columns)[..., None, :]


def mesh_angles(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """θ and φ of all layers, and the phases of D, for a unitary q (..., n, n); of a rotation φ and the phases are 0.

    Antidiagonal after antidiagonal below the diagonal becomes 0, by turns of rows and of columns, until q is diagonal;
    a turn of rows then stands to the left of that diagonal, which moves through it: T(−θ, φ)ᴴ·diag(a, b) is
    diag(b·exp(−iφ), b)·T(θ, arg(a/b)).
    """
    q, n = q.copy(), q.shape[-1]
    theta, phi = np.zeros((2, *q.shape[:-2], n, n - 1))
    of_rows = []
    for antidiagonal in range(1, n):
        for k in range(antidiagonal):
            if (n - antidiagonal) % 2:
                layer, pair = k, n - 1 - antidiagonal + k
                here = (..., layer, pair)
                theta[here], phi[here] = _nulling(q[..., pair + 1, k], q[..., pair, k])
                rows = q[..., pair : pair + 2, k:]
                rows[...] = _block(-theta[here], phi[here], q.dtype) @ rows
                of_rows.append(here)
            else:
                layer, pair = n - 1 - k, antidiagonal - 1 - k
                here = (..., layer, pair)
                theta[here], phi[here] = _nulling(q[..., layer, pair], q[..., layer, pair + 1])
                columns = q[..., : layer + 1, pair : pair + 2]
                columns[...] = columns @ _block(theta[here], phi[here], q.dtype).conj().swapaxes(-1, -2)
    phases = np.angle(q.diagonal(axis1=-2, axis2=-1))
    for here in reversed(of_rows):
        pair = here[-1]
        a, b = phases[..., pair].copy(), phases[..., pair + 1].copy()
        phases[..., pair], phi[here] = b - phi[here], a - b
    exists = np.add.outer(np.arange(n), np.arange(n - 1)) % 2 == 0
    return theta[..., exists], _wrapped(phi[..., exists]), _wrapped(phases)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    """The angle within (−π, π]."""
    return np.angle(np.exp(1j * angle))


def _nulling(zero: np.ndarray, pivot: np.ndarray):
    """θ and φ of the turn that moves the entry ``zero`` into ``pivot``."""
    if np.iscomplexobj(zero):
        return np.arctan2(np.abs(zero), np.abs(pivot)), np.angle(zero) - np.angle(pivot)
    return np.arctan2(zero, pivot), 0.0


def _block(theta: np.ndarray, phi: np.ndarray, dtype: np.dtype) -> np.ndarray:
    cos, sin = np.cos(theta), np.sin(theta)
    block = np.empty((*theta.shape, 2, 2), dtype)
    first = np.exp(1j * phi) if np.iscomplexobj(block) else 1.0
    block[..., 0, 0], block[..., 0, 1] = cos * first, -sin
    block[..., 1, 0], block[..., 1, 1] = sin * first, cos
    return block
