"""A posterior of a layer's weights: the description a user writes, and the module that computes with it.

Factors, posteriors and priors follow one scheme. The description (here ``PosteriorSpec``) is small, immutable and holds
no parameters. Its ``build`` makes the module (here ``Posterior``), which holds the parameters and computes with them. A
new family is one file beside this one with both, and one row in a test table.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .._deprecation import warn_renamed
from .._torch.dtypes import Device
from ..covariance.base import Convolve, Factor, NaturalPart, Split

Noise = tuple[Tensor, ...]
Spread = Callable[[Tensor], Tensor]
FlipPart = tuple[Tensor, Factor | None]


@dataclass(frozen=True)
class PosteriorSpec(ABC):
    """The description of a posterior family; a layer makes a :class:`Posterior` of it with ``build``."""

    @abstractmethod
    def build(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> "Posterior":
        """The family's module for (n, p) weights; ``split`` as in :meth:`mnvi.covariance.FactorSpec.build`."""

    @abstractmethod
    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        """How many numbers the module will hold, without allocating them."""

    def multiply_adds(self, shape: tuple[int, int], split: Split | None = None, *, outputs: int | None = None) -> int:
        """About how many multiplications a draw takes, of the weight, or of so many ``outputs`` of a linear layer.

        One for every number of the weight where a family does not say.
        """
        return (outputs or 1) * shape[0] * shape[1]


class Posterior(nn.Module, ABC):
    """The deviation W − M of an (n, p) weight from its mean, a Gaussian of mean zero. M is the layer's ``weight``.

    Laws, for every family: ``deviation(draw_noise())`` has covariance Cov over the row-major flattened matrix, Cov's
    diagonal is ``variance()``, and ``log_volume()`` is ½ log|Cov| or, where ``exact`` is False, a lower bound of it.
    With a bound every KL is too large and an ELBO too small: it is a lower bound of the evidence still, but looser than
    that of an exact family, which matters where the two are compared.

    A family writes the six abstract methods. The others have a default or are optional: a family offers an optional
    method by writing it, and :meth:`provides` tells whether it does.

    - ``output_deviation`` and the three that follow it serve ``estimator="local"``, which draws outputs instead of
      weights (Kingma, Salimans & Welling, 2015, arXiv:1506.02557), each for one kind of layer. A layer for which the
      family has none draws one weight a call.
    - ``flip_parts`` serves ``estimator="flipout"``, which gives every example signs of its own in one drawn weight.
    - ``mahalanobis`` serves the prior :class:`mnvi.priors.MatrixNormal`.
    - ``natural_parts``, ``whitened`` and ``unwhitened`` serve :class:`mnvi.optim.NaturalGradient`: a family whose
      Fisher metric has a closed form writes all three.
    """

    exact: ClassVar[bool] = True  # whether log_volume() is ½ log|Cov| itself
    log_scales: ClassVar[tuple[str, ...]] = ()  # which parameters of its own are logarithms of scales

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape

    def provides(self, method: str) -> bool:
        """Whether the family has the optional ``method``."""
        return getattr(type(self), method) is not getattr(Posterior, method)

    # What every family writes -----------------------------------------------------------------------------------------

    @abstractmethod
    def set_scale_(self, scale: float) -> None:
        """Make every weight's standard deviation (about) ``scale``."""

    @abstractmethod
    def draw_noise(self) -> Noise:
        """Standard normal tensors that determine one deviation."""

    @abstractmethod
    def deviation(self, noise: Noise) -> Tensor:
        """The deviation W − M that belongs to ``noise``, linear in it, shape (n, p)."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances of the weights, shape (n, p)."""

    @abstractmethod
    def log_volume(self) -> Tensor:
        """½ log|Cov| or a lower bound of it (see ``exact``), a scalar."""

    @abstractmethod
    def distribution(self, loc: Tensor) -> Distribution:
        """The family's distribution with mean ``loc``, shape (n, p); its entropy is exact."""

    # What has a default -----------------------------------------------------------------------------------------------

    def total_variance(self) -> Tensor:
        """Σ_ij Var_ij, a scalar."""
        return self.variance().sum()

    def scaled_variance(self, row: Tensor, column: Tensor) -> Tensor:
        """Σ_ij row_i·Var_ij·column_j, a scalar, for weights (n,) and (p,)."""
        return row @ self.variance() @ column

    def balance_(self) -> None:
        """Fix what can vary without changing the distribution; nothing, for most families."""
        return

    # What is optional -------------------------------------------------------------------------------------------------

    def output_deviation(self, x: Tensor) -> Tensor:
        """A draw of (W − M) x for every row of ``x``, independently: (..., p) to (..., n)."""
        raise self._without("output_deviation", "a linear layer's local estimator")

    def transposed_output_deviation(self, x: Tensor) -> Tensor:
        """A draw of (W − M)ᵀ x for every row of ``x``, independently: (..., n) to (..., p)."""
        raise self._without("transposed_output_deviation", "a transposed linear layer's local estimator")

    def conv_deviation(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        """A draw of the deviation of a convolution's output: exact marginal variances, independent locations.

        ``convolve(x, kernels)`` applies (groups·k, p) kernels to ``x`` and returns (N, groups·k, *locations).
        """
        raise self._without("conv_deviation", "a convolution's local estimator")

    def conv_transpose_deviation(self, x: Tensor, convolve: Convolve, spread: Spread, groups: int) -> Tensor:
        """The same for a transposed convolution, all outputs independent of each other.

        ``convolve(x, weight)`` takes an (n, p) weight; ``spread(z)`` takes (N, 1, *locations) and returns
        (N, K, *out_locations): z moved by each of the K kernel positions.
        """
        raise self._without("conv_transpose_deviation", "a transposed convolution's local estimator")

    def flip_parts(self, noise: Noise) -> list[FlipPart]:
        """The deviation as Σ F·D over pairs (D, F): (k, p) matrices and the (n, k) factors that mix their rows.

        ``None`` stands for F = I. D is made of ``noise``, and the sign of each of its rows may be flipped without
        changing its distribution.
        """
        raise self._without("flip_parts", "the estimator 'flipout'")

    def mahalanobis(self, tril_row: Tensor, tril_column: Tensor) -> Tensor:
        """tr[(U₁ ⊗ V₁)⁻¹ Cov], a scalar, for U₁, V₁ given by their lower Cholesky factors, (n, n) and (p, p)."""
        raise self._without("mahalanobis", "the prior mnvi.priors.MatrixNormal")

    def natural_parts(self) -> list[tuple[NaturalPart, int]]:
        """What has natural-gradient steps, each with the number of vectors whose covariance it is."""
        raise self._without("natural_parts", "mnvi.optim.NaturalGradient")

    def whitened(self, gradient: Tensor) -> Tensor:
        """The (n, p) ``gradient`` of a loss for M in coordinates in which the deviation is standard normal.

        Of the shape of the noise; for a matrix normal it is Aᵀ∇B.
        """
        raise self._without("whitened", "mnvi.optim.NaturalGradient")

    def unwhitened(self, step: Tensor) -> Tensor:
        """The (n, p) change of M that is ``step`` in those coordinates; for a matrix normal it is A·step·Bᵀ.

        The adjoint of :meth:`whitened`: ⟨``unwhitened(s)``, g⟩ = ⟨s, ``whitened(g)``⟩ for every s and g.
        """
        raise self._without("unwhitened", "mnvi.optim.NaturalGradient")

    def _without(self, method: str, user: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {method}(), which {user} needs")

    def described(self) -> str:
        """The family and its factors, such as ``"MatrixNormal(Dense(), Diagonal())"``."""
        return _described(self)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"

    # Names of version 0.1 ---------------------------------------------------------------------------------------------

    def log_det(self) -> Tensor:
        warn_renamed("Posterior.log_det()", "2·Posterior.log_volume()")
        return 2 * self.log_volume()

    def entropy(self) -> Tensor:
        warn_renamed("Posterior.entropy()", "layer.distribution().entropy(), the exact one")
        n, p = self.shape
        return 0.5 * n * p * (1 + math.log(2 * math.pi)) + self.log_volume()


def _described(part: nn.Module) -> str:
    name = type(part).__name__.removesuffix("Posterior").removesuffix("Factor")
    return f"{name}({', '.join(map(_described, part.children()))})"
