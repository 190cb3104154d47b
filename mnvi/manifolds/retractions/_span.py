"""The span of [x, v], in which a retraction of thin matrices (..., n, p) takes its step without n×n matrices."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..._torch.tracing import refuse_nonfinite
from ...linalg.elementary import identity, skew
from ...linalg.polar import corrected


def span(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[x, v], its Gram matrix, and of that A = xᴴv, made skew-Hermitian, and vᴴv."""
    p, both = x.shape[-1], torch.cat([x, v], -1)
    gram = both.mH @ both
    return both, gram, skew(gram[..., :p, p:]), gram[..., p:, p:]


def combine(both: Tensor, gram: Tensor, coefficients: Tensor) -> Tensor:
    """[x, v]·C after one Newton step towards orthonormal columns, done on C = ``coefficients``, (..., 2p, p)."""
    error = coefficients.mH @ gram @ coefficients
    return both @ (coefficients @ (1.5 * identity(error) - 0.5 * error))


def in_frame(x: Tensor, v: Tensor, transform: Callable[[Tensor, Tensor], Tensor], beta: float = 0.5) -> Tensor:
    """The step in an orthonormal basis [x, Q] of the span of [x, v], by a transform of its generator: for any length.

    Args:
        transform: of (y, a) to y·φ(a), for a skew-Hermitian a.
        beta: of the metric, as for :func:`mnvi.manifolds.retractions.exp.geodesic`.
    """
    refuse_nonfinite("a tangent vector", v)
    p = x.shape[-1]
    frame, r = torch.linalg.qr(torch.cat([x, v], -1))
    signs = r.diagonal(dim1=-2, dim2=-1)[..., :p].sgn()
    frame = torch.cat([frame[..., :p] * signs[..., None, :], frame[..., p:]], -1)
    a, b = skew(signs.conj()[..., None] * r[..., :p, p:]), r[..., p:, p:]
    corner = b.new_zeros(*b.shape[:-1], b.shape[-2])
    y = transform(frame, blocks(2 * beta * a, -b.mH, b, corner))[..., :p]
    return corrected(y if beta == 0.5 else transform(y, (1 - 2 * beta) * a))


def blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The matrix [[a, b], [c, d]]."""
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)
