"""The mean-field family: independent weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from .._torch.dtypes import Device
from ..covariance.base import NaturalPart, Split
from ..linalg.contraction import contract_diagonal
from ..linalg.elementary import safe_sqrt
from ..linalg.solve import inverse_diagonal
from .base import Convolve, FlipPart, Noise, Posterior, PosteriorSpec, Spread


@dataclass(frozen=True)
class Diagonal(PosteriorSpec):
    """Independent weights, W_ij = M_ij + exp(``log_scale``_ij)·ε; n·p numbers are held."""

    def build(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> "DiagonalPosterior":
        return DiagonalPosterior(shape, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        return shape[0] * shape[1]


class DiagonalPosterior(Posterior):
    """Cov = diag(exp 2·``log_scale``), ``log_scale`` of shape (n, p)."""

    log_scales = ("log_scale",)

    def __init__(self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(shape)
        self.log_scale = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @property
    def size(self) -> int:
        """n·p: as one factor, diag(exp ``log_scale``) is that of the flattened weight."""
        return self.log_scale.numel()

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_scale.fill_(scale).log_()

    def draw_noise(self) -> Noise:
        return (torch.randn_like(self.log_scale),)

    def deviation(self, noise: Noise) -> Tensor:
        return self.log_scale.exp() * noise[0]

    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp()

    def log_volume(self) -> Tensor:
        return self.log_scale.sum()

    def distribution(self, loc: Tensor) -> Independent:
        return Independent(Normal(loc, self.log_scale.exp()), 2)

    def output_deviation(self, x: Tensor) -> Tensor:
        return _noise_of(x.square() @ self.variance().mT)

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        return _noise_of(x.square() @ self.variance())

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        # A convolution routine may sum in a transformed domain, so a variance near 0 can come out below it.
        return _noise_of(convolve(x.square(), self.variance()).clamp_min(0))

    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        return self.conv_deviation(x, convolve, groups)

    def flip_parts(self, noise: Noise) -> list[FlipPart]:
        return [(self.deviation(noise), None)]

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        return self.scaled_variance(inverse_diagonal(tril_row), inverse_diagonal(tril_column))

    def natural_parts(self) -> list[tuple[NaturalPart, int]]:
        return [(self, 1)]

    def whitened(self, gradient: Tensor) -> Tensor:
        return self.log_scale.exp() * gradient

    def unwhitened(self, step: Tensor) -> Tensor:
        return self.deviation((step,))

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        return gradients[0]

    @torch.no_grad()
    def contract_(self, step: Tensor) -> None:
        self.log_scale.copy_(contract_diagonal(self.log_scale, step))


def _noise_of(variance: Tensor) -> Tensor:
    return safe_sqrt(variance) * torch.randn_like(variance)
