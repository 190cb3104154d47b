"""The exponential of a matrix times a few rows."""

import math

import torch
from torch import Tensor

from .._torch.tracing import values_hidden
from .exponential import exponential


def exponential_rows(x: Tensor, a: Tensor) -> Tensor:
    """x·exp(a) for rows x (..., n): of few rows, or a small a, by Taylor's series in steps of length at most 1."""
    degree = 12 if torch.finfo(a.dtype).eps > 1e-10 else 19
    rows, n = x.numel() // max(1, x.shape[-1]), a.shape[-1]
    most = min(16, 10 * n // (degree * max(1, rows)))  # steps, for fewer products than the exponential takes, about 10
    norm = math.inf if values_hidden(a) else float(torch.linalg.matrix_norm(a.detach(), 1))
    if not norm <= most:
        return x @ exponential(a)
    steps = max(1, math.ceil(norm))
    for _ in range(steps):
        term = x
        for k in range(1, degree + 1):
            term = term @ a / (steps * k)
            x = x + term
    return x
