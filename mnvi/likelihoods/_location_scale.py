"""Likelihoods of real targets around the model's output, with a scale that is known or learnt."""

import math
import warnings
from abc import ABC
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import positive_float
from ._misfits import refuse_entries
from .base import Draws, Likelihood, described, first


class LocationScale(Likelihood, ABC):
    """y = output + scale·noise: base of :class:`Gaussian` and :class:`StudentT`.

    Args:
        scale: ``None``: learnt, starting at 1. A positive number, or a tensor that broadcasts to the output: known.
        shape: of a learnt scale; ``()`` is one scale for all outputs, ``(k,)`` one for each of k outputs.

    Warns:
        UserWarning: ``scale`` requires grad, but a known scale does not train.
    """

    log_scale: Tensor
    may_be_zero = False  # whether observations without noise can be predicted

    def __init__(self, scale: float | Tensor | None = None, *, shape: Sequence[int] = ()) -> None:
        super().__init__()
        if scale is not None and tuple(shape) != ():
            raise ValueError(f"shape is of a learnt scale; got shape {tuple(shape)} and a known scale")
        self._known = None if scale is None else self._checked(scale)
        self._noise_free = self._known is not None and bool((self._known == 0).any())
        start = torch.zeros(tuple(shape)) if self._known is None else self._known.log()
        if scale is None:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def _checked(self, scale: float | Tensor) -> Tensor:
        if isinstance(scale, bool) or not isinstance(scale, (Real, Tensor)):
            raise TypeError(f"scale must be a number, a tensor or None, got {scale!r}")
        if isinstance(scale, Tensor) and scale.requires_grad and torch.is_grad_enabled():
            warnings.warn(
                f"a known scale does not train, but the one given requires grad: {type(self).__name__}() learns one, "
                "scale.detach() is known",
                stacklevel=3 + (type(self).__init__ is not LocationScale.__init__),
            )
        known = torch.as_tensor(scale).detach().clone()
        known = known if known.is_floating_point() else known.to(torch.get_default_dtype())
        if not bool((known.isfinite() & (known >= 0 if self.may_be_zero else known > 0)).all()):
            least = "at least 0" if self.may_be_zero else "positive"
            raise ValueError(f"scale must be finite and {least}, got {scale}")
        return known

    def reset_parameters(self) -> None:
        """A learnt scale is 1 again; a known one is what was given."""
        with torch.no_grad():
            self.log_scale.copy_(torch.zeros_like(self.log_scale) if self._known is None else self._known.log())

    @property
    def scale(self) -> Tensor:
        """The scale itself, learnt or known."""
        return self.log_scale.exp()

    @torch.no_grad()
    def widen_(self, factor: float) -> None:
        if self._known is not None:
            raise TypeError(f"the scale of {self._name()} is known, {self._known}; with scale=None it is learnt")
        self.log_scale.add_(math.log(positive_float("factor", factor)))

    def log_scale_of(self, draws: Draws) -> Tensor:
        """The log-scale in the type of the draws, which is never a half."""
        return self.log_scale.to(first(draws).dtype)

    def read(self, output: Any) -> Tensor:
        location = self.tensor(output)
        shape, most = self.log_scale.shape, location.dim() - (self._known is None)
        if len(shape) > most or any(a not in (1, b) for a, b in zip(shape[::-1], location.shape[::-1], strict=False)):
            kind = "learnt" if self._known is None else "known"
            raise ValueError(f"a {kind} scale of shape {tuple(shape)} does not fit {described(location)}")
        return location

    @property
    def has_density(self) -> bool:
        return not self._noise_free

    def check_support(self, target: Tensor) -> None:
        if not self.has_density:
            raise ValueError("a function without noise (scale 0) gives targets no density; give a positive scale")
        check_real(target)

    def extra_repr(self) -> str:
        if self._known is None:
            return f"scale=None, shape={tuple(self.log_scale.shape)}"
        return f"scale={self._known.item():g}" if not self._known.dim() else f"scale={described(self._known)}"


def check_real(target: Tensor) -> None:
    """Raise for targets that are not finite real numbers."""
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must hold real numbers, got {target.dtype}")
    refuse_entries(target, target.isfinite(), "be finite")
