"""Full precision inside autocast: factors, mapped matrices and recurrent states keep the parameters' own numbers."""

from contextlib import nullcontext

import torch
from torch import Tensor


def full_precision(like: Tensor):
    """A context without autocast on the device of ``like``."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
