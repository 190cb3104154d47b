"""Draws of a model's output over its posterior: batched by vmap where that is faster, as many as memory allows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._first_call import first_call, refuse_nan, refuse_one_example
from ._inputs import Inputs
from ._torch.dead_tensors import keeping_tensors
from .layers import bayesian_layers
from .likelihoods import Likelihood
from .likelihoods.base import Draws, first, over
from .module import sampling

NUMBERS = 2**26  # that the draws of one chunk may hold at a time, about: 256 MiB in float32


class Sampler:
    """Draws of the model's output, as far as the likelihood reads it; refuses what does not fit before the first.

    Args:
        model: in eval mode.
        likelihood: reads its output.
        num_samples: S.
        chunk_size: how many run at a time; ``None``: as many as hold 2²⁶ numbers in the inputs, the layers' draws and
            the output of the first batch.
        advance: ``advance(count)`` is called after every ``count`` draws.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        num_samples: int,
        chunk_size: int | None,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.likelihood, self.advance = model, likelihood, advance
        self.num_samples, self.chunk_size = num_samples, chunk_size
        self.checked, self.batched = False, True

    def at_home(self, inputs: Inputs) -> Inputs:
        """The inputs on the model's device."""
        device = next((each.device for each in (*self.model.parameters(), *self.model.buffers())), None)
        return inputs if device is None else inputs.to(device)

    def draw(self, inputs: Inputs) -> Draws:
        """Outputs stacked over the draws, (S, N, …)."""

        def output(_: Any = None) -> Draws:  # takes what vmap runs over
            # Detached, as a model may switch gradients on inside, for a derivative of its own.
            return over(Tensor.detach, self.likelihood.read(inputs.call(self.model)))

        if not self.checked:
            self._look(inputs)
        assert self.chunk_size is not None
        starts = range(0, self.num_samples, self.chunk_size)
        with sampling(self.model):
            chunks = [self._chunk(output, min(self.chunk_size, self.num_samples - start)) for start in starts]
        return over(lambda *each: torch.cat(each), *chunks) if len(chunks) > 1 else chunks[0]

    def _look(self, inputs: Inputs) -> None:
        """One call with the mean weights: whether it fits, and how much a draw will hold."""
        with _counting(self.model) as counted, _drawn_kernels(self.model) as kernels:
            found = self.likelihood.read(first_call(self.model, inputs))
        self.batched = not kernels
        mean = over(lambda each: each.detach().unsqueeze(0), found)
        count = first(mean).shape[1]
        if not count:
            raise ValueError("x has no examples")
        refuse_one_example(self.model, inputs, count)
        refuse_nan(self.likelihood.to(first(mean).device).summary(mean)[0], inputs)
        if self.chunk_size is None:
            numbers = sum(counted) + sum(each.numel() for each in (*inputs.tensors(), first(mean)))
            self.chunk_size = max(1, min(self.num_samples, NUMBERS // max(1, numbers)))
        self.checked = True

    def _chunk(self, output: Callable[..., Draws], size: int) -> Draws:
        if self.batched:
            try:
                with keeping_tensors(self.model):
                    draws = torch.func.vmap(output, randomness="different")(torch.empty(size))
                self.advance(size)
                return draws
            except Exception:  # it worked for the mean, so it is vmap that cannot follow, say, a branch on data
                self.batched = False
        draws = []
        for _ in range(size):
            draws.append(output())
            self.advance(1)
        return over(lambda *each: torch.stack(each), *draws)


@contextmanager
def _drawn_kernels(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside, the list grows by each convolution called on a CPU that draws weights: batched, they are grouped ones.

    A loop took 0.2 to 0.9 of vmap's time there (1,000 images, 8 draws: CNN, LeNet-5, VGG-like), as its activations stay
    smaller and each kernel is used for many images.
    """
    called: list[nn.Module] = []
    layers = [each for _, each in bayesian_layers(model) if each.weight.dim() > 2 and each.weight.device.type == "cpu"]
    kernels = [each for each in layers if not each._draws_outputs()]
    handles = [each.register_forward_hook(lambda layer, *_: called.append(layer)) for each in kernels]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _counting(model: nn.Module) -> Iterator[list[int]]:
    """Inside, the list grows by how many numbers each Bayesian layer that is called draws, of outputs or weights."""
    counted: list[int] = []

    def count(layer: Any, _: Any, output: Any) -> None:
        weights = layer.weight.numel() if getattr(layer, "estimator", "") == "weight" else 0
        counted.append(weights + (output.numel() if isinstance(output, Tensor) else 0))

    handles = [layer.register_forward_hook(count) for _, layer in bayesian_layers(model)]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()
