"""The rotation mesh of the efficient unitary network (EUNN)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import positive_int
from ..differentiation import differentiable_once
from ..manifolds import Manifold, Orthogonal, SpecialOrthogonal, Unitary
from ..manifolds.base import Size
from ..manifolds.branching import refuse_nonfinite
from .base import Originals, Parametrization, check_determinant, check_square
from .group import draw_skew
from .layout import Layout


class EUNN(Parametrization):
    """Q = D·F₁F₂⋯F_L, layers of 2×2 rotations of neighbours, which multiply a state in O(L·n).

    F₁, F₃, … turn the pairs (0, 1), (2, 3), …, the others (1, 2), (3, 4), …, each by a trained angle θ:

        [cos θ, −sin θ; sin θ, cos θ],   or of a complex weight   [exp(iφ) cos θ, −sin θ; exp(iφ) sin θ, cos θ].

    D is a buffer of signs, with one −1 where the determinant is to be −1; of a complex weight, trained phases. With n
    layers Q is every matrix of SO(n), of the rest of O(n) where ``determinant=-1``, or of U(n); with fewer it is one of
    a part of these, and 0 at more than L places from the diagonal.

    The phase stands in the first column of its block. In the first row, where Jing et al. print it, D would absorb the
    phases of F₁, and n layers would miss U(n) by n − 1 dimensions.

    Differentiable once.

    Args:
        layers: L.
        determinant: 1 or −1, of a real weight.
        init: ``"haar"`` (default), uniform on the group if L ≥ n, and angles uniform on (−π, π) if L < n; or, whatever
            L is, ``"henaff"``, ``"cayley"`` or ``"identity"``, Q = D·exp(K) with the 2×2 blocks of that name in K.

    Raises:
        TypeError, ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square; when a
            weight is assigned, it is not orthogonal, has the other determinant, or more rows than there are layers.

    Sources: Jing et al., 'Tunable efficient unitary neural networks (EUNN) and their application to RNNs' (2017);
    for the angles of a matrix, Clements et al., 'Optimal design for universal multiport interferometers' (2016).

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", EUNN(layers=8))
    """

    signs: Tensor

    def __init__(self, layers: int, *, determinant: int = 1, init: str = "haar") -> None:
        super().__init__(init)
        self.layers = positive_int("layers", layers)
        if determinant not in (1, -1):
            raise ValueError(f"determinant must be 1 or -1, got {determinant!r}")
        self.determinant = determinant

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Unitary() if dtype.is_complex else Orthogonal()

    def attach(self, layout: Layout, like: Tensor, generator: torch.Generator | None = None) -> None:
        super().attach(layout, like, generator)
        self.complex = like.is_complex()
        signs = torch.ones(layout.size[-1], dtype=like.real.dtype, device=like.device)
        if not self.complex:
            signs[-1] = self.determinant
        self.register_buffer("signs", signs)

    def matrix(self, *originals: Tensor) -> Tensor:
        n = len(self.signs)
        diagonal = self._diagonal(originals)
        eye = torch.eye(n, dtype=diagonal.dtype, device=diagonal.device)
        return self._turn(eye.expand(*originals[0].shape[:-1], n, n), originals)

    def coordinates(self, matrix: Tensor) -> Originals:
        n = matrix.shape[-1]
        if self.layers < n:
            raise ValueError(
                f"{self} finds the angles of matrices of up to {self.layers} rows, got {n}; use layers={n}"
            )
        if not self.complex:
            matrix = self._turned(matrix)
        precise = matrix.to("cpu", torch.complex128 if self.complex else torch.float64)
        theta, phi, phases = (torch.from_numpy(each).to(matrix.real) for each in _angles(precise.numpy()))
        theta, phi = (self._padded(each) for each in (theta, phi))
        return (theta, phi, phases) if self.complex else theta

    def nearest(self, matrix: Tensor) -> Tensor:
        if self.complex:
            return Unitary().project(matrix)
        return self.signs[:, None] * SpecialOrthogonal().project(self.signs[:, None] * matrix)

    def draw(self, size: Size, *, generator: torch.Generator | None = None, dtype=None, device=None) -> Originals:
        n = size[-1]
        if self.init == "haar" and self.layers >= n:
            group = Unitary() if self.complex else SpecialOrthogonal()
            matrix = group.random(*size, generator=generator, dtype=dtype, device=device)
            return self.coordinates(self.signs[:, None] * matrix)
        if self.init == "haar":
            count = sum(self._sizes())
            draws = torch.rand(
                (*size[:-2], 2 * count + n),
                generator=generator,
                dtype=torch.float64,
                device=None if generator is None else generator.device,
            )
            theta, phi, phases = ((2 * draws - 1) * math.pi).to(self.signs).split([count, count, n], -1)
        else:
            skew = draw_skew(self.init, size, generator).to(self.signs)
            theta = self._padded(skew.diagonal(-1, -2, -1)[..., ::2])
            phi, phases = torch.zeros_like(theta), theta.new_zeros(size[:-1])
        return (theta, phi, phases) if self.complex else theta.contiguous()

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        return self._turn(x.reshape(-1, x.shape[-1]).mT, originals).mT.reshape(x.shape)

    def _turn(self, x: Tensor, originals: tuple[Tensor, ...]) -> Tensor:
        """Q x, for x of shape (..., n, k)."""
        for each in originals:
            refuse_nonfinite("the angles of a mesh", each)
        blocks = _blocks(*originals[:2])
        return self._diagonal(originals)[..., None] * _Mesh.apply(x, blocks, self._sizes())  # type: ignore[operator]

    def _diagonal(self, originals: tuple[Tensor, ...]) -> Tensor:
        return torch.polar(torch.ones_like(originals[2]), originals[2]) if self.complex else self.signs

    def _turned(self, matrix: Tensor) -> Tensor:
        """D⁻¹Q of a real Q, checked to be a rotation."""
        check_determinant(matrix, self.determinant, f"{self}", f"there is determinant={-self.determinant}")
        return self.signs[:, None] * matrix

    def _sizes(self) -> list[int]:
        """How many pairs each layer has."""
        return [(len(self.signs) - layer % 2) // 2 for layer in range(self.layers)]

    def _padded(self, first: Tensor) -> Tensor:
        """The angles of the first layers, followed by zeros for the others."""
        angles = first.new_zeros(*first.shape[:-1], sum(self._sizes()))
        angles[..., : first.shape[-1]] = first
        return angles

    def extra_repr(self) -> str:
        return f"layers={self.layers}, determinant={self.determinant}, {super().extra_repr()}"


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


def _blocks(theta: Tensor, phi: Tensor | None = None) -> Tensor:
    """The 2×2 blocks of all angles, shape (..., 2, 2)."""
    cos, sin = theta.cos(), theta.sin()
    turns = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    if phi is None:
        return turns
    columns = torch.stack([phi, torch.zeros_like(phi)], -1)
    return turns * torch.polar(torch.ones_like(columns), columns)[..., None, :]


def _angles(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
