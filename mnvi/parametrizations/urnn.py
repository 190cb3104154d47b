"""The composition of fast transforms of the unitary evolution network (uRNN)."""

import math

import torch
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import COMPLEX
from .._torch.tracing import refuse_nonfinite
from ..linalg.shapes import Size
from ..manifolds import Manifold, Unitary
from ._matrix_layout import MatrixLayout
from .base import Originals, Parametrization, check_square


class URNN(Parametrization):
    """Q = D₃ H₂ F⁻¹ D₂ Π H₁ F D₁, which multiplies a state in O(n log n); of complex weights.

    F is the unitary Fourier transform, Π a permutation drawn once, D a diagonal of trained phases, and H a reflection
    I − 2vvᴴ/‖v‖² by a trained complex v (I where v = 0). The 7n real numbers reach a part of U(n) only, and those of a
    given matrix are not to be found: a start is always drawn, and the weight cannot be assigned.

    The phases start uniform on (−π, π), the real and imaginary parts of v uniform on (−1, 1).

    Raises:
        ValueError: at :func:`mnvi.constrain`, the weight is real or not square, or is to be kept; when one is assigned.

    Source: Arjovsky, Shah & Bengio, 'Unitary evolution recurrent neural networks' (2016), arXiv:1511.06464, equation 6.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64, dtype=torch.complex64), "weight", URNN())
    """

    dtypes = COMPLEX
    permutation: Tensor

    def __init__(self) -> None:
        super().__init__("haar")  # there is one way to draw a start

    def check_shape(self, size: Size) -> None:
        check_square(size, f"{self}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Unitary()

    def attach(self, layout: MatrixLayout, like: Tensor, generator: torch.Generator | None = None) -> None:
        if not like.is_complex():
            raise ValueError(
                f"{self} needs a complex weight (a layer with dtype=torch.complex64), got one of {like.dtype}; for a "
                "real one, use EUNN(layers)"
            )
        super().attach(layout, like, generator)
        source = None if generator is None else generator.device
        order = torch.randperm(layout.size[-1], generator=generator, device=source)
        self.register_buffer("permutation", order.to(like.device))

    def matrix(self, *originals: Tensor) -> Tensor:
        eye = originals[0].new_ones(originals[0].shape[-1]).diag()
        return self._turn(eye, *originals).mT

    def coordinates(self, matrix: Tensor) -> Originals:
        raise ValueError(
            f"{self} cannot be given a matrix: it reaches a part of U(n) and has no inverse; "
            "draw a start with mnvi.constrain(..., start='draw'), or use EUNN(layers=n), which reaches every matrix"
        )

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        source = None if generator is None else generator.device
        draws = torch.rand((*size[:-2], 7, size[-1]), generator=generator, dtype=torch.float64, device=source)
        draws = (2 * draws - 1).to(device, (dtype or torch.get_default_dtype()).to_real())
        phases, vectors = draws.split([3, 4], -2)
        return phases * math.pi, vectors.unflatten(-2, (2, 2)).mT.contiguous()

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        if not x.numel():  # torch.fft refuses it
            return super().rows(x, *originals)
        return self._turn(x.reshape(-1, x.shape[-1]), *originals).reshape(x.shape)

    def _turn(self, x: Tensor, phases: Tensor, vectors: Tensor) -> Tensor:
        """x Qᵀ of rows x (..., k, n), phases (..., 3, n), and the real and imaginary parts of v, (..., 2, n, 2)."""
        for each in (phases, vectors):
            refuse_nonfinite("the phases and vectors of a URNN", each)
        d1, d2, d3 = torch.polar(torch.ones_like(phases), phases)[..., None, :].unbind(-3)
        u1, u2 = _directions(vectors)[..., None, :].unbind(-3)
        x = _reflect(torch.fft.fft(x * d1, norm="ortho"), u1)[..., self.permutation]
        return _reflect(torch.fft.ifft(x * d2, norm="ortho"), u2) * d3

    def extra_repr(self) -> str:
        return ""


def _reflect(x: Tensor, u: Tensor) -> Tensor:
    return x - 2 * (x * u.conj()).sum(-1, keepdim=True) * u


def _directions(vectors: Tensor) -> Tensor:
    """v/‖v‖ as complex numbers, 0 where v = 0."""
    # The largest number first, so that no square over- or underflows; a reflection, and so its slope, is free of scale.
    largest = vectors.detach().abs().amax((-2, -1), keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True)
    return torch.complex(*(scaled / norm.clamp(min=0.5)).unbind(-1))  # view_as_complex does not take all strides
