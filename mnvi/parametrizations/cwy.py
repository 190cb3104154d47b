"""The CWY parametrizations of orthogonal and Stiefel matrices: products of reflections without a loop over them."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from .._torch.dtypes import REAL
from ..linalg.compact_wy import first_columns, right_factor
from ..linalg.exponential import exponential
from ..linalg.polar import polar_factor
from ..linalg.reflections import haar_vectors, mirror, unit_rows
from ..linalg.shapes import Size, check_thin
from ..manifolds import Manifold, Stiefel
from ._initial_skew import draw_skew
from ._reflection_product import ReflectionProduct
from .base import Originals, Parametrization, check_determinant


class CWY(ReflectionProduct):
    """Q = H(v₁)···H(v_L) = I − Uᵀ S⁻¹ U, S = ½I + striu(U Uᵀ): an orthogonal matrix of determinant (−1)^L.

    The rows of U are vᵢ/‖vᵢ‖, striu is the part above the diagonal. It is the matrix of :class:`Householder`, without
    its loop. With L = n it reaches every orthogonal matrix of that determinant, with L < n those that leave n − L
    directions as they are; :func:`mnvi.parametrizations.multiply` and recurrent layers then apply I − UᵀP, P = S⁻¹U, in
    O(nL) a row, and never form Q. Differentiable once, and to any order in ``torch.func`` transforms.

    Args:
        reflections: L, at most the number of rows n; None (default) for n.
        init: ``"haar"`` (default), for L = n the uniform distribution, for L < n vᵢ of random directions;
            ``"henaff"`` or ``"cayley"``, exp(K) with at most L/2 blocks in K; ``"identity"``. The last three have their
            last column negated where L is odd.

    Raises:
        TypeError, ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square or has
            fewer than L rows; when a weight is assigned, it is not orthogonal, has the other determinant, or
            rank(Q − I) is above L; when the weight is used, there is NaN or infinity among the vᵢ.

    Source: Likhosherstov et al., 'CWY parametrization: a solution for parallelized optimization of orthogonal and
    Stiefel matrices' (2021), arXiv:2004.08675, theorem 2.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", CWY(reflections=16))
    """

    def matrix(self, *originals: Tensor) -> Tensor:
        return first_columns(unit_rows(originals[0]), originals[0].shape[-1])

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u, p = self.thin(*originals)
        return x - (x @ p.mT) @ u

    def transposed_rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u, p = self.thin(*originals)
        return x - (x @ u.mT) @ p


class TCWY(Parametrization):
    """Ω = [I; 0] − Uᵀ S⁻¹ U₁, U₁ the first p columns of U: the first p columns of a CWY matrix with p reflections.

    Reaches every matrix (n, p) with orthonormal columns for n > p, and for n = p those of determinant (−1)^p, in O(np²)
    work and without any n×n matrix. The unconstrained tensor holds the p vectors as rows (p, n). Differentiable once,
    and to any order in ``torch.func`` transforms.

    Args:
        init: ``"haar"`` (default), the uniform distribution; ``"henaff"``, ``"cayley"`` or ``"identity"``, [exp(K); 0],
            its last column negated where n = p is odd.

    Raises:
        ValueError: an argument is none of these; when a weight is assigned, its columns (its rows, if it is wide) are
            not orthonormal, or n = p and it has the other determinant; when the weight is used, there is NaN or
            infinity among the vectors.

    Source: Likhosherstov et al., 'CWY parametrization: a solution for parallelized optimization of orthogonal and
    Stiefel matrices' (2021), arXiv:2004.08675, theorem 3.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 1000), "weight", TCWY())
    """

    dtypes = REAL

    def __init__(self, *, init: str = "haar") -> None:
        super().__init__(init)

    def check_shape(self, size: Size) -> None:
        check_thin((size,), f"{self}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Stiefel()

    def matrix(self, *originals: Tensor) -> Tensor:
        return first_columns(unit_rows(originals[0]), originals[0].shape[-2])

    def coordinates(self, matrix: Tensor) -> Originals:
        n, p = matrix.shape[-2:]
        if n == p:
            check_determinant(matrix, _determinant(p), f"{self}", "there is Trivialization(Stiefel())")
        rest = matrix.mT.clone(memory_format=torch.contiguous_format)
        axes = torch.eye(p + 1, n, dtype=matrix.dtype, device=matrix.device)
        found, eps = [], torch.finfo(matrix.dtype).eps
        for k in range(p):
            v = mirror(F.pad(rest[..., k, k:], (k, 0)), axes[k])
            in_place = v.norm(dim=-1, keepdim=True) < eps  # which a reflection of the next direction leaves there
            v = torch.where(in_place, axes[min(k + 1, n - 1)], v)
            u = v / v.norm(dim=-1, keepdim=True)
            rest -= 2 * (rest @ u[..., None]) * u[..., None, :]
            found.append(u)
        return torch.stack(found, -2)

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
            return haar_vectors(torch.randn(*size[:-2], p, n, generator=generator, dtype=dtype, device=device))
        square = exponential(draw_skew(self.init, (*size[:-2], p, p), generator))
        if n == p:
            square[..., -1] *= _determinant(p)
        return self.coordinates(F.pad(square, (0, 0, 0, n - p)).to(device, dtype or torch.get_default_dtype()))

    def nearest(self, matrix: Tensor) -> Tensor:
        n, p = matrix.shape[-2:]
        return polar_factor(matrix, matrix.new_full(matrix.shape[:-2], _determinant(p)) if n == p else None)

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        p, n = u.shape[-2:]
        return F.pad(x, (0, n - p)) - (x @ right_factor(u, p).mT) @ u

    def transposed_rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        p = u.shape[-2]
        return x[..., :p] - (x @ u.mT) @ right_factor(u, p)


def _determinant(count: int) -> int:
    return -1 if count % 2 else 1
