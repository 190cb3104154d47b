"""The linear layer with a posterior over its weight."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..posteriors import PosteriorSpec
from ..priors import PriorSpec
from .base import BayesianLayer, check_layer_arguments


class MNLinear(BayesianLayer, nn.Linear):
    """``nn.Linear`` whose weight has a posterior: y = W x + bias, W ~ ``distribution()``.

    Args:
        in_features, out_features, bias: as in ``nn.Linear``.
        posterior: family from :mod:`mnvi.posteriors`; ``None`` is ``BySize()``: factors by the weight's size.
        prior: prior from :mod:`mnvi.priors`; ``None`` is ``Normal(1.0)``.
        estimator: ``"local"`` draws outputs, W x ~ N(M x, (xᵀV x)·U), independently for each row of the input (Kingma,
            Salimans & Welling, 2015); ``"weight"`` draws one weight a call; ``"flipout"`` one with other signs for each
            row of the input, see :class:`mnvi.MNConv2d`.
        device, dtype: as in ``nn.Linear``.

    Input (*, in_features), output (*, out_features).

    Example:
        >>> layer = mnvi.MNLinear(784, 300)
        >>> loss = F.mse_loss(layer(x), y) + layer.kl() / num_train
    """

    local_estimator = "output_deviation"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        posterior: PosteriorSpec | None = None,
        prior: PriorSpec | None = None,
        estimator: str = "local",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_layer_arguments(posterior, prior, estimator, in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._add_posterior(posterior, prior, estimator)

    @property
    def channel_axis(self) -> int | None:
        return -1

    def _check_input(self, input: Tensor) -> None:
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"expected an input of shape (*, {self.in_features}), got {tuple(input.shape)}")

    def _transform(self, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
        return F.linear(input, weight, bias)

    def _deviation(self, input: Tensor) -> Tensor:
        return self.posterior.output_deviation(input)
