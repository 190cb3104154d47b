"""Orthogonal weight normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from ..linalg.exponential import exponential
from ..linalg.polar import polar_factor
from ..linalg.reflections import unit_rows
from ..linalg.shapes import Size, check_thin
from ..manifolds import Manifold, Stiefel
from ..manifolds.base import TOLERANCE
from ._initial_skew import draw_skew
from .base import Originals, Parametrization


class OWN(Parametrization):
    """Ω = Ṽ(ṼᵀṼ)^−½, Ṽ = V − 11ᵀV/n: the nearest matrix to V with orthonormal columns, each of mean zero.

    The unconstrained tensor is V, of the shape (n, p) of Ω. Its length counts for nothing. Without the centring it is
    the polar factor of V, which reaches every matrix with orthonormal columns. Where the columns of Ṽ depend on each
    other Ω is one of several nearest matrices, orthonormal but not of mean zero. Differentiable once,
    and to any order in ``torch.func`` transforms.

    Args:
        center: whether the columns' means are taken off (the rows', where the weight is wide), which needs n > p.
        init: ``"haar"`` (default), the uniform distribution; ``"henaff"``, ``"cayley"`` or ``"identity"``, the matrix
            of V = [exp(K); 0].

    Raises:
        TypeError, ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is square and is to
            be centred; when a weight is assigned, its columns are not orthonormal or not of mean zero; when the weight
            is used, there is NaN or infinity in V.

    Source: Huang et al., 'Orthogonal weight normalization: solution to optimization over multiple dependent Stiefel
    manifolds in deep neural networks' (2018), arXiv:1709.06079, section 3.

    Example:
        >>> layer = mnvi.constrain(nn.Conv2d(3, 16, 3), "weight", OWN())
    """

    def __init__(self, center: bool = True, *, init: str = "haar") -> None:
        super().__init__(init)
        if not isinstance(center, bool):
            raise TypeError(f"center must be True or False, got {center!r}")
        self.center = center

    def check_shape(self, size: Size) -> None:
        check_thin((size,), f"{self}")
        if self.center and size[-2] == size[-1]:
            raise ValueError(f"{self} needs more rows than columns, got {tuple(size)}; use center=False")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Stiefel()

    def matrix(self, *originals: Tensor) -> Tensor:
        v = self._centred(originals[0])
        # Weight decay may make V as small as it likes; Ṽ = 0 exactly stands for that of [I; 0].
        zero = (v == 0).all(-1, keepdim=True).all(-2, keepdim=True)
        v = torch.where(zero, torch.eye(*v.shape[-2:], dtype=v.dtype, device=v.device), v)
        return polar_factor(self._centred(unit_rows(v.flatten(-2)).view_as(v)))  # again, against cancellation

    def coordinates(self, matrix: Tensor) -> Originals:
        off = float((matrix - self._centred(matrix)).norm(dim=-2).max())
        if not off <= TOLERANCE:
            raise ValueError(f"{self} reaches columns of mean zero, got means of norm {off:.2g}; use center=False")
        return matrix.clone()

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        n, p = size[-2:]
        if self.init == "haar":
            v = torch.randn(*size, generator=generator, dtype=dtype, device=device)
        else:
            square = exponential(draw_skew(self.init, (*size[:-2], p, p), generator))
            v = F.pad(square, (0, 0, 0, n - p)).to(device, dtype or torch.get_default_dtype())
        return self.matrix(v)

    def nearest(self, matrix: Tensor) -> Tensor:
        return self.matrix(matrix)

    def extra_repr(self) -> str:
        return f"center={self.center}, {super().extra_repr()}"

    def _centred(self, v: Tensor) -> Tensor:
        return v - v.mean(-2, keepdim=True) if self.center else v
