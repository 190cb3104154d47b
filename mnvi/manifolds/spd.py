"""Symmetric positive definite matrices."""

import math

import torch
from torch import Tensor
from torch.types import Device

from .._checks import one_of
from .._torch.dtypes import REAL
from ..linalg.definite import admissible, ensure_definite, largest, shorten
from ..linalg.elementary import sym
from ..linalg.shapes import Size, check_square_point
from ._spd_metrics import METRICS
from .base import Manifold


class SPD(Manifold[Tensor]):
    """Real symmetric positive definite matrices, shape (..., n, n); tangent vectors are the symmetric matrices.

    The retraction takes a tangent vector and is the metric's exponential, until a step is so long that the exponential
    would leave the cone or overflow. From there on it is bent, so that its result is positive definite for every step:
    no step changes ‖x‖ by more than about n·eps^-½ times, and where ``check`` would find the result singular,
    eigenvalues below n·eps of the largest are raised to it.
    A Euclidean or Bures-Wasserstein step is bent once it more than halves x, or I + L_x[v], in some direction.

    Every method may be differentiated once with respect to each of its arguments, also where eigenvalues or points
    coincide. Second derivatives are right or refused, but of ``dist`` where eigenvalues of x⁻¹y coincide.

    Args:
        metric: "affine-invariant" (tr(x⁻¹u x⁻¹v)), "log-euclidean", "bures-wasserstein" (the 2-Wasserstein distance of
            Gaussians) or "euclidean" (tr(uv), the embedded metric). Equations and sources: the classes of
            ``mnvi/manifolds/_spd_metrics.py``.

    Example:
        >>> manifold = SPD()
        >>> x, y = manifold.random(4, 4), manifold.random(4, 4)
        >>> middle = manifold.exp(x, manifold.log(x, y) / 2)
    """

    dtypes = REAL
    order = math.inf

    def __init__(self, metric: str = "affine-invariant") -> None:
        self.metric = one_of("metric", metric, tuple(METRICS))
        self._metric = METRICS[metric]

    def check_shape(self, *shapes: Size) -> None:
        check_square_point(shapes, f"a point of {self}")

    def project(self, x: Tensor) -> Tensor:
        """The symmetric part; if that is singular, its eigenvalues below n·eps of the largest (n ≥ 10) raised to it."""
        return ensure_definite(sym(x))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return sym(v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return self._metric.inner(x, u, v)

    def rgrad(self, x: Tensor, euclidean_grad: Tensor) -> Tensor:
        return self._metric.rgrad(x, sym(euclidean_grad))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return ensure_definite(sym(self._metric.retract(x, shorten(x, v))))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic, but for Bures-Wasserstein, where ``v`` stays as it is."""
        return sym(self._metric.transport(x, y, v))

    def residual(self, x: Tensor) -> Tensor:
        """Relative: (‖x − xᵀ‖ + max(0, −λ_min)) / ‖x‖, NaN where an entry is not finite."""
        finite = x.isfinite().all(-1).all(-1)
        x = x / largest(x).clamp(min=torch.finfo(x.dtype).tiny)  # lest the norm of small numbers be 0
        eigenvalues = torch.linalg.eigvalsh(torch.where(finite[..., None, None], sym(x), 0.0))
        violation = torch.linalg.matrix_norm(x - x.mT) + (-eigenvalues[..., 0]).clamp(min=0)
        return torch.where(finite, violation / torch.linalg.matrix_norm(x), math.nan)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a point; also where it is singular to the precision of its dtype."""
        super().check(x)
        if not admissible(sym(x)).all():
            eigenvalues = torch.linalg.eigvalsh(sym(x))
            ratio = (eigenvalues[..., 0] / eigenvalues[..., -1]).min().item()
            raise ValueError(f"not a point of {self}: λ_min/λ_max is {ratio:.2g}, singular in {x.dtype}")

    def random(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """I + G Gᵀ/n, G standard normal."""
        self.check_shape(shape)
        self.check_dtype(dtype)
        g = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
        return torch.eye(shape[-1], dtype=g.dtype, device=g.device) + sym(g @ g.mT) / shape[-1]

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The geodesic; where the metric is not complete, it may leave the cone for long ``v``."""
        return sym(self._metric.exp(x, v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return sym(self._metric.log(x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self._metric.dist(x, y)
