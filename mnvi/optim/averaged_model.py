"""Averages of models whose weights are on manifolds."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import swa_utils

from ..parametrizations import Trivialization


class AveragedModel(swa_utils.AveragedModel):
    """``torch.optim.swa_utils.AveragedModel``, also for models with a :class:`mnvi.parametrizations.Trivialization`.

    The coordinates of a trivialization belong to the base point of the moment, so that their averages mean nothing once
    that has moved. Here such weights are averaged themselves, by the same ``avg_fn`` or ``multi_avg_fn``, and every
    average is projected onto the manifold; it becomes the base point. All else is torch's: parameters are averaged,
    those of every other parametrization too, whose averages are mapped onto the manifold.

    Args:
        model, device, avg_fn, multi_avg_fn, use_buffers: torch's.

    Example:
        >>> ema = mnvi.optim.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
        >>> optimiser.step()
        >>> ema.update_parameters(model)
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the present weights of ``model`` into the average."""
        count, means = self.n_averaged.clone(), [matrix(chain) for chain in trivialized(self.module)]
        super().update_parameters(model)
        for chain, mean, other in zip(trivialized(self.module), means, trivialized(model), strict=True):
            mean = self._mean(mean, matrix(other).to(mean.device), count)
            chain.original.copy_(chain[0].coordinates(chain[0].space.project(mean)))  # type: ignore[union-attr]

    def _mean(self, mean: Tensor, new: Tensor, count: Tensor) -> Tensor:
        if not count:
            return new
        if self.multi_avg_fn is not None:
            self.multi_avg_fn([mean], [new], count)
            return mean
        return (self.avg_fn or swa_utils.get_swa_avg_fn())(mean, new, count)


def trivialized(model: nn.Module) -> Iterator[ParametrizationList]:
    """The ParametrizationList of every weight of ``model`` with a trivialization."""
    for module in model.modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], Trivialization):
            yield module


def matrix(chain: ParametrizationList) -> Tensor:
    """The point of the manifold."""
    parametrization: Any = chain[0]
    return parametrization.layout.matrix(parametrization(chain.original)).clone()
