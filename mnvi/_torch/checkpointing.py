"""Activation checkpointing: whether the code that runs now will be run again in the backward pass."""

import sys

import torch
from torch import Tensor


def count_checkpoints() -> tuple[int, int]:
    """How many calls of ``torch.utils.checkpoint.checkpoint`` are around this one: plain ones, and reentrant ones.

    Torch keeps no record of reentrant ones, so both are looked for among the callers. Reentrant ones count if one of
    their inputs needs a gradient, as only then they recompute.
    """
    plain, reentrant, frame = 0, 0, sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            if frame.f_code.co_name == "checkpoint":
                plain += not frame.f_locals["use_reentrant"]
            elif frame.f_code.co_name == "forward":
                reentrant += any(isinstance(x, Tensor) and x.requires_grad for x in frame.f_locals.get("args", ()))
        frame = frame.f_back
    return plain, reentrant


def recomputes_more_than(count: int) -> bool:
    """Whether more than ``count`` checkpoints are around this call, and it will be recomputed in the backward pass."""
    plain, reentrant = count_checkpoints()
    # Without gradients nothing is recomputed, but a reentrant one turns them off itself.
    return plain + reentrant > count and (torch.is_grad_enabled() or reentrant > 0)
