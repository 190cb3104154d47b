"""A prior of a layer's weights: the description a user writes, and the module that computes with it.

Factors, posteriors and priors follow one scheme. The description (here ``PriorSpec``) is small, immutable and holds no
parameters. Its ``build`` makes the module (here ``Prior``), which holds the parameters and computes with them. A new
prior is one file beside this one with both, and one row in a test table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch.dtypes import Device
from ..covariance.base import Split
from ..posteriors import Posterior


@dataclass(frozen=True, eq=False)
class PriorSpec(ABC):
    """The description of a prior; a layer makes a :class:`Prior` of it with ``build``."""

    @abstractmethod
    def build(self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None) -> "Prior":
        """The prior's module for an (n, p) weight."""

    def build_for(
        self, shape: tuple[int, int], split: Split | None, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> "Prior":
        """``build``, of a weight whose p columns are made of two axes, ``split`` = (channels, kernel positions).

        A prior that treats these axes differently overrides it; ``None``: the columns are one axis.
        """
        return self.build(shape, device=device, dtype=dtype)


class Prior(nn.Module, ABC):
    """The prior of a layer's weight: a KL, and parameters and buffers where the prior has any.

    A prior reads the posterior's moments: the mean M that it is given, and ``variance()``, ``scaled_variance()`` and
    ``log_volume()`` of the :class:`mnvi.posteriors.Posterior`. Its KL from q = N(M, Cov) is
    −E_q[log prior] − ½·n·p·(1 + log 2π) − ``log_volume()``.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            raise TypeError(f"{cls.__name__} has a build(): descriptions of priors derive from PriorSpec since 0.2")

    def reset_parameters(self) -> None:
        """Give what the prior learns its initial value; nothing, for most priors."""
        return

    @abstractmethod
    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        """KL(posterior ‖ prior) in nats for the whole (n, p) weight whose posterior mean is ``mean``, a scalar.

        Finite, with finite gradients, where weights have vanished: M and Var may underflow to 0.
        """


class GivenPrior(Prior):
    """A prior of fixed tensors that came with its description, its buffers.

    Nothing can make them anew, so while they are on the meta device, which holds no numbers, they are kept beside it,
    and come back with ``to_empty``.
    """

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self._kept: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({"_kept": {}, **state})  # a pickle of the first version has none

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GivenPrior":
        before = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            now = self.get_buffer(name)
            if now.is_meta and not tensor.is_meta:
                self._kept[name] = tensor
            elif not now.is_meta and (kept := self._kept.pop(name, None)) is not None and tensor.is_meta:
                with torch.no_grad():
                    now.copy_(kept)
        return self


def finite(name: str, value: Tensor, *, positive: bool = False) -> Tensor:
    """Return ``value`` if all of it is finite (and positive), else raise ValueError naming ``name``."""
    if not torch.is_floating_point(value):
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if not bool(torch.isfinite(value).all()) or (positive and not bool((value > 0).all())):
        raise ValueError(f"{name} must be finite{' and positive' if positive else ''} everywhere")
    return value


def expand(name: str, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """``value`` expanded to ``shape``; raises ValueError naming both shapes where it does not broadcast to it."""
    try:
        return value.detach().expand(shape)
    except RuntimeError:
        came = tuple(value.shape)
        raise ValueError(f"{name} of shape {came} does not broadcast to a weight of shape {tuple(shape)}") from None
