"""Whether the code that runs will be run again in the backward pass, by activation checkpointing."""

import sys

import torch
from torch import Tensor


def checkpoint_depth() -> int:
    """How many calls of ``torch.utils.checkpoint.checkpoint`` around this one will recompute it in the backward pass.

    Torch keeps no record of them for the reentrant kind, so they are looked for among the callers. Without gradients
    nothing is recomputed; a reentrant one turns them off itself, and recomputes if one of its inputs needs one.
    """
    depth, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            name = frame.f_code.co_name
            if name == "checkpoint":
                depth += torch.is_grad_enabled()
            elif name == "forward":
                inputs = frame.f_locals.get("args", ())
                depth += any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        frame = frame.f_back
    return depth
