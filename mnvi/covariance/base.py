"""One factor F of a covariance F Fᵀ: the description a user writes and the module a posterior computes with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Factor(nn.Module, ABC):
    """A factor F of shape (n, m), so that F e has covariance F Fᵀ for standard normal e in Rᵐ.

    Laws, for every factor: ``multiply(e)`` is ``e @ matrix().mT``; ``multiply_transpose(x)`` is ``x @ matrix()``;
    ``variance()`` is the diagonal and ``log_det()`` the log-determinant of ``covariance()``; the last two dimensions
    of an input are (anything, m) or (anything, n), earlier ones are batch dimensions.
    """

    has_scale = True  # False where the factor has no overall scale of its own (Identity)

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

    def transpose_norm(self, x: Tensor) -> Tensor:
        """‖Fᵀ x‖ for every row of ``x``: (..., n) to (..., 1); its gradient is 0 at x = 0."""
        return torch.linalg.vector_norm(self.multiply_transpose(x), dim=-1, keepdim=True)

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

    def natural_parts(self, count: int) -> list[tuple["Factor", int]]:
        """The factors in this one that have natural-gradient steps, each with how many vectors it is the covariance of.

        ``count`` is that number for this factor. Parts that are not listed are left to another optimiser.
        """
        return []

    def whitened_gradient(self, *gradients: Tensor) -> Tensor:
        """H = FᵀG, symmetric, from the gradients of this factor's parameters in the order of ``parameters()``."""
        raise NotImplementedError(f"{type(self).__name__} has no natural-gradient step")

    def contract_(self, step: Tensor) -> None:
        """F ← F·chol((I + S + ½S²)⁻¹) in place, S = ``step`` of the structure of :meth:`whitened_gradient`."""
        raise NotImplementedError(f"{type(self).__name__} has no natural-gradient step")

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the factor, by name: its dtype and device. A replica of ``DataParallel`` has no parameters()."""

    def extra_repr(self) -> str:
        return f"size={self.size}"


@dataclass(frozen=True)
class FactorSpec(ABC):
    """A small immutable description of a factor; a posterior turns it into parameters with ``build``."""

    @abstractmethod
    def build(self, size: int, *, split: tuple[int, int] | None = None, device=None, dtype=None) -> Factor:
        """A :class:`Factor` for vectors of length ``size``.

        ``split`` = (a, b) with a·b = ``size`` says how the vector is made of two axes (channels, kernel positions);
        only factors with such a structure use it.
        """

    @abstractmethod
    def num_parameters(self, size: int, split: tuple[int, int] | None = None) -> int:
        """How many numbers the factor will hold, without allocating them."""
