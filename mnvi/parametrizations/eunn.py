"""The rotation mesh of the efficient unitary network (EUNN)."""

import math

import torch
from torch import Tensor
from torch.types import Device

from .._checks import positive_int
from .._torch.tracing import refuse_nonfinite
from ..linalg.rotation_mesh import mesh_angles, turn_layers, turns
from ..linalg.shapes import Size
from ..manifolds import Manifold, Orthogonal, SpecialOrthogonal, Unitary
from ._initial_skew import draw_skew
from ._matrix_layout import MatrixLayout
from .base import Originals, Parametrization, check_determinant, check_square


class EUNN(Parametrization):
    """Q = D·F₁F₂⋯F_L, layers of 2×2 rotations of neighbours, which multiply a state in O(L·n).

    F₁, F₃, … turn the pairs (0, 1), (2, 3), …, the others (1, 2), (3, 4), …, each by a trained angle θ:

        [cos θ, −sin θ; sin θ, cos θ],   or of a complex weight   [exp(iφ) cos θ, −sin θ; exp(iφ) sin θ, cos θ].

    D is a buffer of signs, with one −1 where the determinant is to be −1; of a complex weight, trained phases. With n
    layers Q is every matrix of SO(n), of the rest of O(n) where ``determinant=-1``, or of U(n); with fewer it is one of
    a part of these, and 0 at more than L places from the diagonal.

    The phase stands in the first column of its block. In the first row, where Jing et al. print it, D would absorb the
    phases of F₁, and n layers would miss U(n) by n − 1 dimensions.

    Differentiable once, and to any order in ``torch.func`` transforms.

    Args:
        layers: L; None (default) for n.
        determinant: 1 or −1, of a real weight.
        init: ``"haar"`` (default), uniform on the group if L ≥ n, and angles uniform on (−π, π) if L < n; or, whatever
            L is, ``"henaff"``, ``"cayley"`` or ``"identity"``, Q = D·exp(K) with the 2×2 blocks of that name in K.

    Raises:
        TypeError, ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square; when a
            weight is assigned, it is not orthogonal, has the other determinant, or more rows than there are layers.

    Sources: Jing et al., 'Tunable efficient unitary neural networks (EUNN) and their application to RNNs' (2017),
    arXiv:1612.05231; for the angles of a matrix, Clements et al., 'Optimal design for universal multiport
    interferometers' (2016), arXiv:1603.08788.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", EUNN(layers=8))
    """

    signs: Tensor

    def __init__(self, layers: int | None = None, *, determinant: int = 1, init: str = "haar") -> None:
        super().__init__(init)
        self._layers = None if layers is None else positive_int("layers", layers)
        if determinant not in (1, -1):
            raise ValueError(f"determinant must be 1 or -1, got {determinant!r}")
        self.determinant = determinant

    @property
    def layers(self) -> int | None:
        """L; None where it is to be n, before there is a weight."""
        return self.layout.size[-1] if self._layers is None and self.layout else self._layers

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Unitary() if dtype.is_complex else Orthogonal()

    def attach(self, layout: MatrixLayout, like: Tensor, generator: torch.Generator | None = None) -> None:
        super().attach(layout, like, generator)
        self.complex = like.is_complex()
        signs = torch.ones(layout.size[-1], dtype=like.real.dtype, device=like.device)
        if not self.complex:
            signs[-1] = self.determinant
        self.register_buffer("signs", signs)

    def matrix(self, *originals: Tensor) -> Tensor:
        n = self.signs.shape[-1]
        diagonal = self._diagonal(originals)
        eye = torch.eye(n, dtype=diagonal.dtype, device=diagonal.device)
        return self._turn(eye.expand(*originals[0].shape[:-1], n, n), originals)

    def coordinates(self, matrix: Tensor) -> Originals:
        n = matrix.shape[-1]
        if (self.layers or n) < n:
            raise ValueError(
                f"{self} finds the angles of matrices of up to {self.layers} rows, got {n}; use layers={n}"
            )
        if not self.complex:
            matrix = self._turned(matrix)
        precise = matrix.to("cpu", torch.complex128 if self.complex else torch.float64)
        theta, phi, phases = (torch.from_numpy(each).to(matrix.real) for each in mesh_angles(precise.numpy()))
        theta, phi = (self._padded(each) for each in (theta, phi))
        return (theta, phi, phases) if self.complex else theta

    def nearest(self, matrix: Tensor) -> Tensor:
        if self.complex:
            return Unitary().project(matrix)
        return self.signs[:, None] * SpecialOrthogonal().project(self.signs[:, None] * matrix)

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        n = size[-1]
        if self.init == "haar" and (self.layers or n) >= n:
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
        blocks = turns(*originals[:2])
        return self._diagonal(originals)[..., None] * turn_layers(x, blocks, self._sizes())

    def _diagonal(self, originals: tuple[Tensor, ...]) -> Tensor:
        return torch.polar(torch.ones_like(originals[2]), originals[2]) if self.complex else self.signs

    def _turned(self, matrix: Tensor) -> Tensor:
        """D⁻¹Q of a real Q, checked to be a rotation."""
        check_determinant(matrix, self.determinant, f"{self}", f"there is determinant={-self.determinant}")
        return self.signs[:, None] * matrix

    def _sizes(self) -> list[int]:
        """How many pairs each layer has."""
        n = self.signs.shape[-1]
        return [(n - layer % 2) // 2 for layer in range(self.layers or n)]

    def _padded(self, first: Tensor) -> Tensor:
        """The angles of the first layers, followed by zeros for the others."""
        angles = first.new_zeros(*first.shape[:-1], sum(self._sizes()))
        angles[..., : first.shape[-1]] = first
        return angles

    def extra_repr(self) -> str:
        return f"layers={self.layers}, determinant={self.determinant}, {super().extra_repr()}"
