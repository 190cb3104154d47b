"""The mean-field family: independent weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ..linalg.contraction import contract_diagonal
from .base import Convolve, Noise, Posterior, PosteriorSpec, Spread, inverse_diagonal, safe_sqrt


@dataclass(frozen=True)
class Diagonal(PosteriorSpec):
    """Independent weights, W_ij = M_ij + exp(``log_scale``_ij)·ε; n·p numbers are held."""

    def build(self, shape: tuple[int, int], *, split: tuple[int, int] | None = None, device=None, dtype=None):
        return DiagonalPosterior(shape, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: tuple[int, int] | None = None) -> int:
        return shape[0] * shape[1]


class DiagonalPosterior(Posterior):
    """Cov = diag(exp 2·``log_scale``), ``log_scale`` of shape (n, p)."""

    natural = True

    def __init__(self, shape: tuple[int, int], *, device=None, dtype=None) -> None:
        super().__init__(shape)
        self.log_scale = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale: float) -> None:
        self.log_scale.fill_(scale).log_()

    def draw_noise(self) -> Noise:
        return (torch.randn_like(self.log_scale),)

    def deviation(self, noise: Noise) -> Tensor:
        return self.log_scale.exp() * noise[0]

    def output_deviation(self, x: Tensor) -> Tensor:
        return _noise_of(x.square() @ self.variance().mT)

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        return _noise_of(x.square() @ self.variance())

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        # A convolution routine may sum in a transformed domain, so a variance near 0 can come out below it.
        return _noise_of(convolve(x.square(), self.variance()).clamp_min(0))

    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        return self.conv_deviation(x, convolve, groups)

    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp()

    def scaled_variance(self, row: Tensor, column: Tensor) -> Tensor:
        return row @ self.variance() @ column

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        return self.scaled_variance(inverse_diagonal(tril_row), inverse_diagonal(tril_column))

    def log_volume(self) -> Tensor:
        return self.log_scale.sum()

    def natural_parts(self) -> list[tuple["DiagonalPosterior", int]]:
        return [(self, 1)]

    def whitened(self, gradient: Tensor) -> Tensor:
        return self.log_scale.exp() * gradient

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        return gradients[0]

    @torch.no_grad()
    def contract_(self, step: Tensor) -> None:
        self.log_scale.copy_(contract_diagonal(self.log_scale, step))

    def distribution(self, loc: Tensor) -> Independent:
        return Independent(Normal(loc, self.log_scale.exp()), 2)


def _noise_of(variance: Tensor) -> Tensor:
    return safe_sqrt(variance) * torch.randn_like(variance)
