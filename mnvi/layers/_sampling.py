"""The sampling state of a layer: whether its forward pass draws, and whether it holds one draw for all passes."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from .._deprecation import warn_renamed
from .._torch.checkpointing import count_checkpoints, recomputes_more_than
from ..posteriors.base import Noise


class SamplingState(NamedTuple):
    """What :func:`mnvi.sampling` and :func:`mnvi.frozen_sample` change of a layer.

    Attributes:
        sampling: whether forward draws in eval mode too.
        noise: the one draw for every call, as noise, inside a frozen sample.
        checkpoints: how many activation checkpoints are around the outermost of these contexts.
    """

    sampling: bool = False
    noise: Noise | None = None
    checkpoints: int = 0


class SamplingLayer(nn.Module):
    """Mixin before a torch layer: forward draws in ``train()`` mode, and in eval mode inside a context.

    The state is that of the layer object: a copy or a pickle made inside a context is outside of it.
    """

    # Three attributes, not one: pickles of earlier versions have them.
    _sampling: bool
    _frozen: Noise | None
    _checkpoints: int

    def _register_sampling(self) -> None:
        self._set_sampling_state(SamplingState())

    def _unregister_sampling(self) -> None:
        for name in _ATTRIBUTES:
            delattr(self, name)

    @property
    def is_sampling(self) -> bool:
        """Whether forward draws (True) or uses the mean (False)."""
        return self.training or self._sampling or self._frozen is not None

    @property
    def samples(self) -> bool:
        """The earlier name of :attr:`is_sampling`."""
        warn_renamed("BayesianLayer.samples", "BayesianLayer.is_sampling")
        return self.is_sampling

    def __dir__(self) -> list[str]:
        # torch.jit looks at everything that is listed, and would warn of the earlier name.
        return [name for name in super().__dir__() if name != "samples"]

    @property
    def frozen_noise(self) -> Noise | None:
        """The noise of the one draw that every call uses inside :func:`mnvi.frozen_sample`; None outside."""
        return self._frozen

    @property
    def _sampling_state(self) -> SamplingState:
        return SamplingState(self._sampling, self._frozen, self._checkpoints)

    def _set_sampling_state(self, state: SamplingState) -> None:
        self._sampling, self._frozen, self._checkpoints = state

    def _state_within(self, noise: Noise | None, checkpoints: int) -> SamplingState:
        """The state one context further in: of a frozen sample with ``noise``, of sampling without."""
        is_inside = self._sampling or self._frozen is not None
        around = min(checkpoints, self._checkpoints) if is_inside else checkpoints
        if noise is None:
            return SamplingState(True, self._frozen, around)
        return SamplingState(self._sampling, noise, around)

    def _refuse_recomputation(self) -> None:
        """Raise RuntimeError in a pass that activation checkpointing will run again outside of the context."""
        if self._frozen is None and (self.training or not self._sampling):
            return  # what draws is the mode, which the second pass has too
        if not torch.compiler.is_compiling() and recomputes_more_than(self._checkpoints):
            raise RuntimeError(
                "activation checkpointing inside sampling() or frozen_sample() would recompute the layer in the "
                "backward pass without that context, with another draw; enter the context inside the function, "
                "switch checkpointing off, or gradients (torch.no_grad())"
            )

    def __getstate__(self) -> dict:
        outside = zip(_ATTRIBUTES, SamplingState(), strict=True)
        return {**super().__getstate__(), **dict(outside)}  # type: ignore[misc]

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({"_checkpoints": 0, **state})  # a pickle of the first version has none


_ATTRIBUTES = ("_sampling", "_frozen", "_checkpoints")
Layer = TypeVar("Layer", bound=SamplingLayer)


@contextmanager
def sampling_context(layers: Iterable[Layer], noise: Callable[[Layer], Noise | None]):
    """Inside, each of ``layers`` draws, or holds the draw of its ``noise(layer)``; then its state is as before."""
    checkpoints = 0 if torch.compiler.is_compiling() else sum(count_checkpoints())
    before: list[tuple[Layer, SamplingState]] = []
    try:
        for layer in layers:
            entered = layer._state_within(noise(layer), checkpoints)
            before.append((layer, layer._sampling_state))
            layer._set_sampling_state(entered)
        yield
    finally:
        for layer, state in before:
            layer._set_sampling_state(state)
