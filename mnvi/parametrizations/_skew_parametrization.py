"""Square matrices Q = φ(A)·D of a skew-Hermitian A: the base class of :class:`Exponential` and :class:`Cayley`.

A matrix is skew-Hermitian if A = −Aᴴ; where it is real that is skew-symmetry, A = −Aᵀ. These matrices are a linear
space, so any numbers are the coordinates of one. A map φ such as the exponential takes each to a matrix of a group:
SO(n), the rotations, where A is real, and U(n), the unitary matrices, where it is complex.
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.types import Device

from .._torch.tracing import in_transform
from ..linalg.shapes import Size
from ..linalg.skew_coordinates import below_diagonal, from_skew, from_skew_hermitian, to_skew, to_skew_hermitian
from ..manifolds import Manifold, Orthogonal, SpecialOrthogonal, Unitary
from ._initial_skew import draw_skew
from ._matrix_layout import MatrixLayout
from .base import Originals, Parametrization, check_determinant, check_square


class SkewParametrization(Parametrization):
    """Q = φ(A)·D for a skew-Hermitian A and a diagonal D of signs (of phases, for complex weights).

    The unconstrained tensor holds the n(n−1)/2 entries of a real A below the diagonal, or the n² real numbers of a
    complex one.

    Where A is real φ reaches rotations only, whose determinant is 1. A diagonal D with an odd number of −1 leads from
    these to the other half of O(n). The signs are a buffer and no parameter, so that no optimiser and no weight decay
    can change them.

    A subclass writes :meth:`phi` and :meth:`inverse`; which D it has is for :meth:`negative_signs` and
    :meth:`diagonal`.
    """

    other_determinant = "there are ScaledCayley(negative_ones) and Trivialization(Orthogonal())"  # to say in an error
    signs: Tensor
    _places: Tensor | None = None  # no buffer, which would be garbage after to_empty

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Unitary() if dtype.is_complex else Orthogonal()

    @abstractmethod
    def phi(self, a: Tensor) -> Tensor:
        """φ(a), a matrix of the group, for a skew-Hermitian ``a``."""

    @abstractmethod
    def inverse(self, q: Tensor) -> Tensor:
        """The skew-Hermitian matrix that :meth:`phi` takes to ``q``.

        Raises:
            ValueError: there is none.
        """

    def check_complex(self) -> None:
        """Raise ValueError where an argument says what only a real weight has."""
        return

    def negative_signs(self, n: int) -> int:
        """How many entries of a real D are −1."""
        return 0

    def diagonal(self, *originals: Tensor) -> Tensor:
        """D, of shape (n,) or (..., n)."""
        return self.signs

    def attach(self, layout: MatrixLayout, like: Tensor, generator: torch.Generator | None = None) -> None:
        if like.is_complex():
            self.check_complex()
        super().attach(layout, like, generator)
        self.complex = like.is_complex()
        n = layout.size[-1]
        signs = torch.ones(n, dtype=like.real.dtype, device=like.device)
        if not self.complex:
            signs[: self.negative_signs(n)] = -1
        self.register_buffer("signs", signs)

    def places(self, device: torch.device) -> Tensor:
        """Where the unconstrained numbers of a real A stand in its entries, row by row."""
        n = self.signs.shape[-1]
        if torch.compiler.is_compiling():
            return below_diagonal(n, device)
        if self._places is None or self._places.device != device:
            with torch.inference_mode(False):
                found = below_diagonal(n, device)
            if in_transform() or type(found) is not Tensor:  # to be kept by nobody
                return found
            self._places = found
        return self._places

    def skew(self, x: Tensor) -> Tensor:
        """A, of the unconstrained tensor."""
        return to_skew_hermitian(x) if self.complex else to_skew(x, self.places(x.device), self.signs.shape[-1])

    def matrix(self, *originals: Tensor) -> Tensor:
        return self.scaled(self.phi(self.skew(originals[0])), *originals)

    def scaled(self, x: Tensor, *originals: Tensor) -> Tensor:
        """x·D, of rows x."""
        diagonal = self.diagonal(*originals)
        return x * (diagonal if diagonal.dim() == 1 else diagonal[..., None, :])

    def coordinates(self, matrix: Tensor) -> Originals:
        turned = self._turned(matrix)
        try:
            return self._of_skew(self._inverse(turned))
        except ValueError as error:
            group = "Unitary" if self.complex else "Orthogonal"
            raise ValueError(f"{error}; Trivialization({group}()) reaches it") from None

    def nearest(self, matrix: Tensor) -> Tensor:
        return self._group().project(matrix * self.signs) * self.signs

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        if self.init == "haar":
            a = self._inverse(self._group().random(*size, generator=generator, dtype=dtype, device=device))
        else:
            a = draw_skew(self.init, size, generator).to(device, dtype)
        return self._of_skew(a)

    def _group(self) -> Manifold:
        """What φ reaches: SO(n), of complex matrices U(n)."""
        return Unitary() if self.complex else SpecialOrthogonal()

    def _inverse(self, q: Tensor) -> Tensor:
        """:meth:`inverse`, taken in double precision, as it is taken once: angles near π lose many digits.

        Raises:
            ValueError: there is no inverse, or none whose numbers in the precision of ``q`` lead back to it.
        """
        device = "cpu" if q.device.type == "mps" else q.device  # which has no double precision
        precise = q.to(device, torch.complex128 if self.complex else torch.float64)
        a = self.inverse(precise if precise.dtype == q.dtype else self._group().project(precise)).to(q)
        off = (self.phi(a) - q).abs().amax()
        if not off <= torch.finfo(q.dtype).eps ** 0.5:
            raise ValueError(f"{self} leads back to this matrix only up to {off.item():.2g} in {q.dtype}")
        return a

    def _of_skew(self, a: Tensor) -> Originals:
        return (from_skew_hermitian(a),) if self.complex else from_skew(a, self.places(a.device))

    def _turned(self, matrix: Tensor) -> Tensor:
        """Q·D⁻¹, checked to have determinant 1 where it is real."""
        if not self.complex:
            check_determinant(matrix, int(self.signs.prod()), f"{self}", self.other_determinant)
        return matrix * self.signs
