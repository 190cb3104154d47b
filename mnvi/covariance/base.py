"""A factor F of a covariance F Fᵀ: the description a user writes, and the module that computes with it.

Factors, posteriors and priors follow one scheme. The description (here ``FactorSpec``) is small, immutable and holds no
parameters. Its ``build`` makes the module (here ``Factor``), which holds the parameters and computes with them. A new
factor is one file beside this one with both, and one row in a test table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._torch.dtypes import Device

Convolve = Callable[[Tensor, Tensor], Tensor]
DiagonalAndLoading = tuple[Tensor, Tensor]
Split = tuple[int, int]  # how a vector of a·b numbers is made of two axes: channels, kernel positions


@dataclass(frozen=True)
class FactorSpec(ABC):
    """The description of a factor; a posterior makes a :class:`Factor` of it with ``build``."""

    @abstractmethod
    def build(
        self, size: int, *, split: Split | None = None, device: Device = None, dtype: torch.dtype | None = None
    ) -> "Factor":
        """The factor's module for vectors of length ``size``.

        ``split`` = (a, b) with a·b = ``size`` says how the vector is made of two axes (channels, kernel positions);
        only factors with such a structure use it.
        """

    @abstractmethod
    def num_parameters(self, size: int, split: Split | None = None) -> int:
        """How many numbers the module will hold, without allocating them."""

    def multiply_adds(self, size: int, split: Split | None = None) -> int:
        """About how many multiplications the product of F and one vector takes: one for every number held."""
        return self.num_parameters(size, split)


@runtime_checkable
class NaturalPart(Protocol):
    """A module that holds one factor F of a covariance and has natural-gradient steps.

    It may be a :class:`Factor`, or a posterior that is one factor as a whole. Laws, where a loss depends on F only
    through F Fᵀ:

    - H = ``whitened_gradient(*gradients)`` is FᵀG, which is symmetric, of the loss's gradient G = ∂loss/∂F;
    - as S → 0, ``contract_(S)`` changes the loss by −½·⟨H, S⟩ + O(‖S‖²), so that S = lr·H descends;
    - ``contract_(S)`` leaves F finite and invertible for every finite S, and as it is for S = 0.

    H and S have the structure of the factor: (n, n), a diagonal of shape (n,), or blocks of shape (k, b, b).
    """

    @property
    def size(self) -> int:
        """The length n of the vectors whose covariance this is."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of F."""
        ...

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        """H = FᵀG from the gradients of the parameters, in the order of ``parameters()``."""
        ...

    def contract_(self, step: Tensor) -> None:
        """F ← F·chol((I + S + ½S²)⁻¹) in place, S = ``step`` (:mod:`mnvi.linalg.contraction`)."""
        ...


class Factor(nn.Module, ABC):
    """A factor F of shape (n, m), so that F e has covariance F Fᵀ for standard normal e in Rᵐ.

    Laws, for every factor: ``multiply(e)`` is ``e @ matrix().mT``; ``multiply_transpose(x)`` is ``x @ matrix()``;
    ``multiply_squared(e)`` is ``e @ matrix().square().mT``;
    ``variance()`` is the diagonal and ``log_det()`` the log-determinant of ``covariance()``; the last two dimensions
    of an input are (anything, m) or (anything, n), earlier ones are batch dimensions.
    """

    has_scale = True  # False where the factor has no overall scale of its own (Identity)
    log_scales: ClassVar[tuple[str, ...]] = ()  # which parameters of its own are logarithms of scales

    def __init__(self, size: int, width: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.width = size if width is None else width

    @abstractmethod
    def set_scale_(self, scale: float) -> None:
        """Set F Fᵀ to (about) ``scale``² times the identity."""

    @abstractmethod
    def multiply(self, e: Tensor) -> Tensor:
        """F e for every row of ``e``: (..., m) to (..., n)."""

    @abstractmethod
    def multiply_transpose(self, x: Tensor) -> Tensor:
        """Fᵀ x for every row of ``x``: (..., n) to (..., m)."""

    def multiply_squared(self, e: Tensor) -> Tensor:
        """(F∘F) e for every row of ``e``: (..., m) to (..., n). Variances of F e, from those of independent e."""
        return e @ self.matrix().square().mT

    def transpose_norm(self, x: Tensor) -> Tensor:
        """‖Fᵀ x‖ for every row of ``x``: (..., n) to (..., 1); its gradient is 0 at x = 0."""
        return torch.linalg.vector_norm(self.multiply_transpose(x), dim=-1, keepdim=True)

    def patch_norm(self, x: Tensor, convolve: Convolve, groups: int) -> Tensor:
        """‖Fᵀ x‖ for every patch of a convolution's input ``x`` (N, channels, …): shape (N, groups, *locations).

        ``convolve(x, kernels)`` applies (groups·k, n) kernels to ``x`` and returns (N, groups·k, *locations).
        """
        products = convolve(x, self.matrix().mT.repeat(groups, 1))  # the columns of F as kernels, once for each group
        return torch.linalg.vector_norm(products.unflatten(1, (groups, -1)), dim=2)

    @abstractmethod
    def variance(self) -> Tensor:
        """The diagonal of F Fᵀ, shape (n,)."""

    def trace(self) -> Tensor:
        """The trace of F Fᵀ, a scalar."""
        return self.variance().sum()

    @abstractmethod
    def log_volume(self) -> Tensor:
        """½ log |F Fᵀ|, a scalar."""

    def log_det(self) -> Tensor:
        """log |F Fᵀ|, a scalar."""
        return 2 * self.log_volume()

    @abstractmethod
    def rescale_(self, log_scale: Tensor) -> None:
        """Multiply F by exp(``log_scale``) in place."""

    def log_cholesky_diagonal(self) -> Tensor | None:
        """Logarithm of the diagonal of the Cholesky factor of F Fᵀ, shape (n,); None where it is not at hand."""
        return None

    def diagonal_and_loading(self) -> DiagonalAndLoading | None:
        """d (n,) and C (n, rank) of F = [diag d, C]; None where F is not made so."""
        return None

    @abstractmethod
    def matrix(self) -> Tensor:
        """The dense factor F, shape (n, m)."""

    def covariance(self) -> Tensor:
        """The dense covariance F Fᵀ, shape (n, n)."""
        matrix = self.matrix()
        return matrix @ matrix.mT

    def scale_tril(self) -> Tensor:
        """The lower Cholesky factor of F Fᵀ, shape (n, n)."""
        return torch.linalg.cholesky(self.covariance())

    def natural_parts(self, count: int) -> list[tuple[NaturalPart, int]]:
        """The parts of this factor that have natural-gradient steps, each with the number of vectors that have it.

        ``count`` is how many vectors have this factor's covariance. Parts that are not listed are left to another
        optimiser.
        """
        return []

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the factor, by name: its dtype and device. A replica of ``DataParallel`` has no parameters()."""

    def extra_repr(self) -> str:
        return f"size={self.size}"
