"""Branches on data, for algorithms with a fast way for ordinary input and a safe way for every input."""

import math

import torch
from torch import Tensor


def within(values: Tensor, limit: float, *, traced: bool) -> bool:
    """Whether no entry exceeds ``limit`` in size (a NaN does); ``traced`` in a traced graph, which cannot branch so."""
    if torch.compiler.is_compiling():
        return traced
    if not values.numel():
        return True
    return float(torch.linalg.vector_norm(values.detach(), math.inf)) <= limit


def refuse_nonfinite(name: str, values: Tensor) -> None:
    """Raise ValueError if there is a NaN or an infinity among ``values``, outside traced graphs."""
    if not within(values, torch.finfo(values.dtype).max, traced=True):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries in shape {tuple(values.shape)}")


def in_transform() -> bool:
    """Whether a ``torch.func`` transform is active; only plain operations work there (compiling one fails)."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
