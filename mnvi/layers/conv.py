"""The convolutions and transposed convolutions with a posterior over their weight."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import positive_int
from ..posteriors import PosteriorSpec
from ..priors import PriorSpec
from .base import BayesianLayer, check_layer_arguments


class _MNConvNd(BayesianLayer):
    """What all convolutions share; the weight matrix is (out_channels, in_channels/groups·∏kernel)."""

    default_estimator = "weight"
    local_estimator = "conv_deviation"

    def __init__(
        self,
        *args: Any,
        posterior: PosteriorSpec | None = None,
        prior: PriorSpec | None = None,
        estimator: str = "weight",
        **kwargs: Any,
    ) -> None:
        check_layer_arguments(posterior, prior, estimator)
        _check_sizes(super().__init__, args, kwargs)
        super().__init__(*args, **kwargs)
        self._add_posterior(posterior, prior, estimator)

    @property
    def channel_axis(self) -> int | None:
        """None where outputs of several groups may not be mixed."""
        return 1 - self.weight.dim() if self.groups == 1 else None

    def _check_input(self, input: Tensor, *args: Any) -> None:
        spatial = self.weight.dim() - 2
        if input.dim() - spatial not in (1, 2) or input.shape[-spatial - 1] != self.in_channels:
            expected = f"(batch, {self.in_channels}" + ", size" * spatial + "), with or without the batch"
            raise ValueError(f"expected an input of shape {expected}, got {tuple(input.shape)}")

    def _transform(self, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
        return self._conv_forward(input, weight, bias)  # type: ignore[operator]

    def _deviation(self, input: Tensor) -> Tensor:
        if input.dim() == self.weight.dim() - 1:
            return self._deviation(input.unsqueeze(0)).squeeze(0)

        def convolve(x: Tensor, kernels: Tensor) -> Tensor:
            return self._transform(kernels.unflatten(1, self.weight.shape[1:]), None, x)

        return self.posterior.conv_deviation(input, convolve, self.groups)  # type: ignore[arg-type]


class _MNConvTransposeNd(_MNConvNd):
    """What all transposed convolutions share; the weight matrix is (in_channels, out_channels/groups·∏kernel).

    The local estimator draws all outputs independently of each other.
    """

    local_estimator = "conv_transpose_deviation"

    @property
    def channel_axis(self) -> int | None:
        """None, as the rows are inputs."""
        return None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the torch layer's ``forward(input, output_size)``."""
        return super().forward(input, self._padding_for(input, output_size))

    def _padding_for(self, input: Tensor, output_size: list[int] | None) -> list[int]:
        dims = len(self.kernel_size)  # type: ignore[arg-type]
        return self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )

    def _transform(self, weight: Tensor, bias: Tensor | None, input: Tensor, output_padding: list[int]) -> Tensor:
        return self._conv_transpose(input, weight, bias, output_padding, self.groups)  # type: ignore[arg-type]

    def _deviation(self, input: Tensor, output_padding: list[int]) -> Tensor:
        if input.dim() == self.weight.dim() - 1:
            return self._deviation(input.unsqueeze(0), output_padding).squeeze(0)
        positions = self.weight[0, 0].numel()
        one_hot = torch.eye(positions, device=input.device, dtype=input.dtype).view(
            1, positions, *self.weight.shape[2:]
        )

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            return self._transform(weight.view_as(self.weight), None, x, output_padding)

        def spread(z: Tensor) -> Tensor:
            return self._conv_transpose(z, one_hot, None, output_padding, 1)

        return self.posterior.conv_transpose_deviation(input, convolve, spread, self.groups)  # type: ignore[arg-type]

    def _conv_transpose(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, output_padding, groups: int
    ) -> Tensor:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.weight.dim() - 3]
        return function(input, weight, bias, self.stride, self.padding, output_padding, groups, self.dilation)  # type: ignore[arg-type]


def _check_sizes(init: Callable, args: tuple, kwargs: dict) -> None:
    """Raise for the sizes that torch's constructor would take but no convolution can have."""
    given = inspect.signature(init).bind(*args, **kwargs).arguments
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
        value = given.get(name, 1)
        for size in value if isinstance(value, (tuple, list)) else (value,):
            positive_int(name, size)


class MNConv1d(_MNConvNd, nn.Conv1d):
    """``nn.Conv1d`` whose weight has a posterior; arguments and estimators as for :class:`MNConv2d`."""


class MNConv2d(_MNConvNd, nn.Conv2d):
    """``nn.Conv2d`` whose weight matrix, (out_channels, in_channels/groups·∏kernel), has a posterior.

    Takes that layer's own arguments (stride, padding, dilation, groups, bias, padding_mode, ...), then

    Args:
        posterior: family from :mod:`mnvi.posteriors`; ``None`` is ``BySize()``: factors by the weight's size. A
            ``Kronecker`` column factor splits the columns into (channels, kernel positions).
        prior: prior from :mod:`mnvi.priors`; ``None`` is ``Normal(1.0)``.
        estimator: ``"weight"`` draws one weight a call. ``"local"`` draws the output at every location with its exact
            marginal variance, but **independently of the other locations**: that approximates the joint distribution,
            in which locations share one weight and are correlated. ``"flipout"`` draws one weight a call and gives
            every example signs of its own (Wen et al., 2018, arXiv:1803.04386), here of the rows of E Bᵀ in
            M + A E Bᵀ: each example has an exact joint draw, and those of different examples are uncorrelated, for
            a second convolution. Grouped and transposed convolutions draw one weight then.

    Example:
        >>> layer = mnvi.MNConv2d(3, 16, 3, padding=1)
        >>> loss = F.mse_loss(layer(x), y) + layer.kl() / num_train
    """


class MNConv3d(_MNConvNd, nn.Conv3d):
    """``nn.Conv3d`` whose weight has a posterior; arguments and estimators as for :class:`MNConv2d`."""


class MNConvTranspose1d(_MNConvTransposeNd, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose weight matrix, (in_channels, out_channels/groups·∏kernel), has a posterior.

    Arguments as for :class:`MNConv2d`; ``estimator="local"`` draws all outputs independently of each other.
    """


class MNConvTranspose2d(_MNConvTransposeNd, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose weight matrix, (in_channels, out_channels/groups·∏kernel), has a posterior.

    Arguments as for :class:`MNConv2d`; ``estimator="local"`` draws all outputs independently of each other.
    """


class MNConvTranspose3d(_MNConvTransposeNd, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose weight matrix, (in_channels, out_channels/groups·∏kernel), has a posterior.

    Arguments as for :class:`MNConv2d`; ``estimator="local"`` draws all outputs independently of each other.
    """
