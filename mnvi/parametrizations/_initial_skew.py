"""The skew-symmetric matrices K that a square parametrization starts from: its first matrix is φ(K).

K has 2×2 blocks [[0, s], [−s, 0]] along its diagonal and is zero elsewhere. The exponential turns a block into a
rotation by s, the Cayley transform into one by 2 arctan s. Where the number of rows is odd the last one has no block.
All are in float64.
"""

import math

import torch
from torch import Tensor

from ..linalg.shapes import Size


def henaff_blocks(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K of shape (n, n) with s uniform on (−π, π).

    Source: Henaff, Szlam & LeCun, 'Recurrent orthogonal networks and long-memory tasks' (2016), arXiv:1602.06662,
    section 4.
    """
    return _blocks((2 * _uniform(n, generator) - 1) * math.pi, n)


def cayley_blocks(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K of shape (n, n) with s = −√((1 − cos t)/(1 + cos t)), t uniform on (0, π/2).

    Source: Helfrich, Willmott & Ye, 'Orthogonal recurrent neural networks with scaled Cayley transform' (2018),
    arXiv:1707.09520, section 4.2.
    """
    return _blocks(-torch.tan(_uniform(n, generator) * (math.pi / 4)), n)


def zero(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K = 0, of shape (n, n), of which φ makes the identity."""
    return torch.zeros(n, n, dtype=torch.float64)


SKEW_MATRICES = {"henaff": henaff_blocks, "cayley": cayley_blocks, "identity": zero}
INITS = ("haar", *SKEW_MATRICES)  # "haar" draws from the uniform distribution on the manifold


def draw_skew(init: str, size: Size, generator: torch.Generator | None) -> Tensor:
    """A batch of such K, of shape ``size``, drawn one after the other; ``init`` is a key of ``SKEW_MATRICES``."""
    count = torch.Size(size[:-2]).numel()
    return torch.stack([SKEW_MATRICES[init](size[-1], generator) for _ in range(count)]).reshape(size)


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    return torch.rand(n // 2, generator=generator, dtype=torch.float64, device=device)


def _blocks(s: Tensor, n: int) -> Tensor:
    k, first = s.new_zeros(n, n), 2 * torch.arange(n // 2, device=s.device)
    k[first, first + 1], k[first + 1, first] = s, -s
    return k
