"""Where a square parametrization starts: at φ(K) for a skew-symmetric K of 2×2 blocks, or at a random matrix.

Every block of K is [[0, s], [−s, 0]], which the exponential turns into a rotation by s and the Cayley transform into
one by 2 arctan s. Of an odd number of rows the last stays as it is. All are in float64.
"""

import math

import torch
from torch import Tensor


def henaff(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K of shape (n, n) with s uniform on (−π, π). Source: Henaff, Szlam & LeCun (2016), section 4."""
    return _blocks((2 * _uniform(n, generator) - 1) * math.pi, n)


def cayley(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K of shape (n, n) with s = −√((1 − cos t)/(1 + cos t)), t uniform on (0, π/2).

    Source: Helfrich, Willmott & Ye (2018), section 4.2.
    """
    return _blocks(-torch.tan(_uniform(n, generator) * (math.pi / 4)), n)


def identity(n: int, generator: torch.Generator | None = None) -> Tensor:
    """K = 0, of shape (n, n)."""
    return torch.zeros(n, n, dtype=torch.float64)


SKEW = {"henaff": henaff, "cayley": cayley, "identity": identity}
INITS = ("haar", *SKEW)  # "haar" draws from the uniform distribution on the manifold


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    return torch.rand(n // 2, generator=generator, dtype=torch.float64, device=device)


def _blocks(s: Tensor, n: int) -> Tensor:
    k, first = s.new_zeros(n, n), 2 * torch.arange(n // 2, device=s.device)
    k[first, first + 1], k[first + 1, first] = s, -s
    return k
