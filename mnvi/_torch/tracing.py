"""Tracing and transforms: whether the numbers can be asked for, and which operations the surroundings allow.

An algorithm here often has a fast way for ordinary input and a slower one that is right for every input, and chooses
by a number computed from the input. In a traced graph (torch.compile, torch.export, torch.jit.trace) and in a batch of
``torch.func.vmap`` there is no number to choose by, and it takes the way that its caller states.

An autograd function with a derivative written by hand is faster than torch's own operations, but does less: in
transforms of ``torch.func`` and with forward-mode derivatives those operations take its place.
"""

import math
import warnings
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad

# Whether torch.export traces. Torch 2.6 does not tell that from another graph.
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def all_within(values: Tensor, limit: float, *, traced: bool) -> bool:
    """Whether no entry exceeds ``limit`` in size, as a NaN does; ``traced`` where the values are hidden."""
    if values_hidden(values):
        return traced
    if not values.numel():
        return True
    return float(torch.linalg.vector_norm(values.detach(), math.inf)) <= limit


def refuse_nonfinite(name: str, values: Tensor) -> None:
    """Raise ValueError if there is a NaN or an infinity among ``values``, where that can be asked."""
    if not all_within(values, torch.finfo(values.dtype).max, traced=True):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries in shape {tuple(values.shape)}")


def values_hidden(values: Tensor) -> bool:
    """Whether no branch can be taken on ``values``: in a traced graph, or of a batch of ``torch.func.vmap``."""
    if torch.compiler.is_compiling() or jit_tracing():
        return True
    while functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            return True
        values = functorch.get_unwrapped(values)
    return False


def in_transform() -> bool:
    """Whether a ``torch.func`` transform is active; only plain operations work there (compiling one fails)."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def jit_tracing() -> bool:
    """Whether ``torch.jit.trace`` records what runs."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def fixed_sizes():
    """A context in which ``torch.jit.trace`` does not warn that it keeps sizes, which are those of a weight."""
    return _without_tracer_warnings() if jit_tracing() else nullcontext()


@contextmanager
def _without_tracer_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        yield


def plain_operations() -> bool:
    """Whether torch's own operations are to take the place of an autograd function with a hand-written derivative.

    That is so in ``torch.func`` transforms, forward-mode derivatives and ``torch.jit.trace``.
    """
    if torch.compiler.is_compiling():
        return False
    return in_transform() or jit_tracing() or forward_ad._current_level >= 0
