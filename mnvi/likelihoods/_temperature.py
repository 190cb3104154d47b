"""A temperature: the one number that makes a likelihood's observations wider or narrower than the model says."""

from typing import Any

import torch
from torch import Tensor

from .._checks import positive_float
from .base import Likelihood


class Tempered(Likelihood):
    """Base of likelihoods that have no scale of their own to learn; a ``temperature`` of 1 changes nothing.

    A buffer, chosen on held-out data (:meth:`Likelihood.calibrate_`), not trained.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def reset_parameters(self) -> None:
        """A temperature of 1."""
        self.temperature.fill_(1.0)

    @torch.no_grad()
    def widen_(self, factor: float) -> None:
        self.temperature.mul_(positive_float("factor", factor))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "temperature" not in self._buffers:  # a pickle of an earlier version
            self.register_buffer("temperature", torch.ones(()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "temperature", torch.ones_like(self.temperature, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)
