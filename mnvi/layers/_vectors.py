"""Posteriors of vectors: the bias of a Bayesian layer, the weight and the bias of a norm."""

import torch
from torch import Tensor, nn

from .. import posteriors, priors
from .._torch.autocast import full_precision
from ._sampling import SamplingLayer
from ._widening import NARROW, widened


class VectorPosterior(SamplingLayer):
    """v_i ~ N(m_i, exp(2·``log_scale``_i)), independent; the mean m is the parameter of the layer that holds this.

    A part of that layer, so that it follows its mode: ``forward(m)`` is a draw where the layer draws, one a call, and
    else m itself. The prior is v_i ~ N(``loc``, 1).
    """

    def __init__(self, mean: Tensor, scale: float, loc: float = 0.0) -> None:
        super().__init__()
        options = {"device": mean.device, "dtype": mean.dtype}
        self.loc = loc
        self.posterior = posteriors.Diagonal().build((1, mean.numel()), **options)
        self.prior = priors.Normal(1.0).build((1, mean.numel()), **options)
        self.posterior.set_scale_(scale)
        self._register_sampling()

    def forward(self, mean: Tensor) -> Tensor:
        """The vector of one use, in the shape of ``mean``."""
        if not self.is_sampling:
            return mean
        self._refuse_recomputation()
        with full_precision(mean):
            noise = self.posterior.draw_noise() if self.frozen_noise is None else self.frozen_noise
            deviation = self._widened(mean, lambda dtype: self.posterior.deviation(tuple(e.to(dtype) for e in noise)))
            return mean + deviation.view_as(mean).to(mean.dtype)

    def kl(self, mean: Tensor) -> Tensor:
        """KL(posterior ‖ prior) in nats for the whole vector, a scalar."""
        with full_precision(mean):
            return self._widened(mean, lambda dtype: self.prior.kl(self._row(mean.to(dtype)), self.posterior))

    def _row(self, mean: Tensor) -> Tensor:
        return (mean - self.loc).view(1, -1)

    def _widened(self, mean: Tensor, compute):
        if mean.dtype not in NARROW:
            return compute(mean.dtype)
        return widened((self.posterior, self.prior), lambda: compute(torch.float32))


def root_mean_square(vector: Tensor) -> float:
    """√mean(v²), 0 on the meta device, which holds no numbers."""
    return 0.0 if vector.is_meta else vector.detach().square().mean().sqrt().item()


def vector_parameter(layer: nn.Module, name: str) -> nn.Parameter | None:
    """The real parameter ``name`` of ``layer``; None where there is none, or it is made of others."""
    found = layer._parameters.get(name)
    return found if isinstance(found, nn.Parameter) and not found.is_complex() else None
