"""What a posterior family is: a description a user writes, and the module of a layer that computes with it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..linalg.solve import solve_triangular

Noise = tuple[Tensor, ...]
Convolve = Callable[[Tensor, Tensor], Tensor]
Spread = Callable[[Tensor], Tensor]


class Posterior(nn.Module, ABC):
    """A zero-mean Gaussian over (n, p) matrices, the deviation W − M of a layer's weight from its mean.

    Laws, for every family: ``deviation(draw_noise())`` has covariance Cov over the row-major flattened matrix, Cov's
    diagonal is ``variance()``, and ``log_volume()`` is ½ log|Cov| or, where ``exact`` is False, a lower bound of it,
    which makes an ELBO built from it a lower bound still. ``output_deviation(x)`` is distributed as (W − M) x,
    independently for each row x.
    """

    exact = True
    natural = False  # whether the Fisher metric has a closed form, and with it ``whitened`` and ``natural_parts``

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def set_scale_(self, scale: float) -> None:
        """Make every weight's standard deviation (about) ``scale``."""

    @abstractmethod
    def draw_noise(self) -> Noise:
        """Standard normal tensors that determine one deviation."""

    @abstractmethod
    def deviation(self, noise: Noise) -> Tensor:
        """The deviation W − M that belongs to ``noise``, shape (n, p)."""

    @abstractmethod
    def output_deviation(self, x: Tensor) -> Tensor:
        """A draw of (W − M) x for every row of ``x``: (..., p) to (..., n). Kingma, Salimans & Welling (2015)."""

    @abstractmethod
    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        """A draw of (W − M)ᵀ x for every row of ``x``, independently: (..., n) to (..., p)."""

    @abstractmethod
    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        """A draw of the deviation of a convolution's output: exact marginal variances, independent locations.

        ``convolve(x, kernels)`` applies (groups·k, p) kernels to ``x`` and returns (N, groups·k, *locations).
        """

    @abstractmethod
    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        """The same for a transposed convolution, all outputs independent of each other.

        ``convolve(x, weight)`` takes an (n, p) weight; ``spread(z)`` takes (N, 1, *locations) and returns
        (N, K, *out_locations): z moved by each of the K kernel positions.
        """

    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances of the weights, shape (n, p)."""

    def total_variance(self) -> Tensor:
        """Σ_ij Var_ij, a scalar."""
        return self.variance().sum()

    @abstractmethod
    def scaled_variance(self, row: Tensor, column: Tensor) -> Tensor:
        """Σ_ij row_i·Var_ij·column_j, a scalar, for weights (n,) and (p,)."""

    @abstractmethod
    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        """tr[(U₁ ⊗ V₁)⁻¹ Cov] for U₁, V₁ given by their lower Cholesky factors."""

    @abstractmethod
    def log_volume(self) -> Tensor:
        """½ log|Cov| or a lower bound of it (see ``exact``), a scalar."""

    def log_det(self) -> Tensor:
        """log|Cov| or a lower bound of it (see ``exact``), a scalar."""
        return 2 * self.log_volume()

    @abstractmethod
    def distribution(self, loc: Tensor) -> Distribution:
        """The family's distribution with mean ``loc``, shape (n, p)."""

    def entropy(self) -> Tensor:
        """½·n·p·(1 + log 2π) + ½·log|Cov|, in nats; a lower bound where ``exact`` is False."""
        n, p = self.shape
        return 0.5 * n * p * (1 + math.log(2 * math.pi)) + self.log_volume()

    def balance_(self) -> None:
        """Fix what can vary without changing the distribution; nothing, for most families."""
        return

    def natural_parts(self) -> list[tuple[Any, int]]:
        """What has natural-gradient steps, and of how many vectors each is the covariance; see
        :class:`mnvi.optim.NaturalGradient`."""
        return []

    def whitened(self, gradient: Tensor) -> Tensor:
        """Aᵀ ∇ B for an (n, p) gradient of the mean, the transpose of :meth:`deviation`."""
        raise NotImplementedError(f"{type(self).__name__} has no natural-gradient step")

    def extra_repr(self) -> str:
        return f"shape={self.shape}"


@dataclass(frozen=True)
class PosteriorSpec(ABC):
    """A small immutable description of a posterior family; a layer turns it into its own parameters with ``build``."""

    @abstractmethod
    def build(self, shape: tuple[int, int], *, split: tuple[int, int] | None = None, device=None, dtype=None):
        """A :class:`Posterior` for (n, p) weights; ``split`` as in :meth:`mnvi.covariance.FactorSpec.build`."""

    @abstractmethod
    def num_parameters(self, shape: tuple[int, int], split: tuple[int, int] | None = None) -> int:
        """How many numbers the posterior's covariance will hold, without allocating them."""


def safe_sqrt(variance: Tensor) -> Tensor:
    """√variance, with gradient 0 instead of ∞ where the variance is 0 (an all-zero input has no noise)."""
    positive = variance > 0
    return torch.where(positive, variance, 1).sqrt() * positive


def inverse_diagonal(tril: Tensor) -> Tensor:
    """The diagonal of (L Lᵀ)⁻¹ for a lower Cholesky factor L, shape (n,)."""
    identity = torch.eye(tril.shape[-1], device=tril.device, dtype=tril.dtype)
    return solve_triangular(tril, identity, upper=False).square().sum(0)
