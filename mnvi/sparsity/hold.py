"""Holding means at zero while the training goes on, before what they belong to is pruned for good."""

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .._checks import number
from ..layers import bayesian_layers
from ._cuts import Score, find_cuts, kinds_of
from .prune import dropped_below, warn_of_extremes
from .scores import signal_to_noise
from .thresholds import Thresholds

WEIGHTED = nn.Linear, nn.modules.conv._ConvNd


@torch.no_grad()
def hold(
    model: nn.Module,
    threshold: float | Thresholds | None = None,
    *,
    groups: str | Sequence[str] = "weights",
    score: Score = signal_to_noise,
) -> "Hold":
    """Set means that score lowest to zero and keep them there in every step of torch's optimisers, until ``release()``.

    Unlike :func:`prune`, which takes the weight and its noise away, this leaves the posterior's variances as they are
    and training: local reparametrisation goes on, as do factors of covariances that several weights share. Under ARD a
    weight whose mean is zero costs no KL. Held from the middle of a training on, the rest of the network adapts to what
    will be pruned at its end, which then costs little.

    Zeros are all that it needs to know, and checkpoints carry them: after loading one, call ``hold(model)`` again.
    ``hold(small)`` keeps those of the plain network that :func:`compact` has made, while it trains a little more.

    Args:
        threshold: hold what scores below it; or what :func:`find_thresholds` has found, with its groups and score.
            ``None``: only what is zero already; without Bayesian layers, of linear and convolutional ones.
        groups, score: with a number as ``threshold``, as for :func:`prune`.

    Raises:
        ValueError, TypeError: as :func:`prune`; nothing is then changed.

    Warns:
        UserWarning: nothing is left of a layer, or nothing is held, by thresholds that were found.

    Example:
        >>> found = mnvi.sparsity.find_thresholds(model, (x_held_out, y_held_out), loss=1.0)
        >>> held = mnvi.sparsity.hold(model, found)  # in the middle of the training
        >>> held.count  # then the second half of the training
        >>> held.release()
    """
    kinds = kinds_of(groups)
    layers = [layer for _, layer in bayesian_layers(model) if "weight" in layer._parameters]
    if threshold is None:
        return Hold(layers or [module for module in model.modules() if isinstance(module, WEIGHTED)])
    if isinstance(threshold, Thresholds):
        dropped = dropped_below(model, threshold)
        warn_of_extremes(threshold, "held")
    else:
        cuts = find_cuts(model, kinds, score, ())
        least = number("threshold", threshold, 0)
        dropped = [(cut, cut.below(least)) for cut in cuts]
    for cut, drop in dropped:
        cut.layer.weight.masked_fill_(drop, 0)
    return Hold(layers)


class Hold:
    """What :func:`hold` returns. The means are held as long as the model lives, whether this object is kept or not.

    Attributes:
        count: how many means are held.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        zeros = [(layer, layer.weight.detach() == 0) for layer in layers]
        self.count = sum(int(zero.sum()) for _, zero in zeros)
        self._held = [(ref(layer), zero) for layer, zero in zeros if zero.any()]
        self._hook = register_optimizer_step_post_hook(self._after_step)

    def release(self) -> None:
        """Let the means train again."""
        self._hook.remove()

    def _after_step(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        stepped = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        self._held = [(reference, zero) for reference, zero in self._held if reference() is not None]
        for reference, zero in self._held:
            layer = reference()
            if layer is not None and id(layer.weight) in stepped:
                # Past the version counter: it would break the backward pass of a forward pass before, and needs not.
                layer.weight.data.masked_fill_(zero.to(layer.weight.device), 0)
