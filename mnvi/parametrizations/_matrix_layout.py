"""The layout of a weight: how its numbers stand in the matrix that a parametrization constrains.

Parametrizations are written for matrices with at least as many rows as columns, whose columns are orthonormal, say.
Weights come with more columns than rows too, and as the kernels of convolutions, which have four dimensions.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MatrixLayout:
    """The way from a weight of ``shape`` to its matrix (..., n, p), n ≥ p, and back.

    A wide weight is transposed. The kernel of a convolution, (f_out, f_in, q, q), is a single matrix of shape
    (q²·f_in, f_out), or of the transposed shape if that is the taller one. Of any other weight, dimensions before the
    last two are a batch. Laws: ``weight(matrix(w))`` is w, and ``matrix(weight(m))`` is m.

    Args:
        shape: of the weight.
        kernel: whether it is that of a convolution.

    Source: for kernels, Likhosherstov et al., 'CWY parametrization' (2021), arXiv:2004.08675, section 3.4.
    """

    shape: tuple[int, ...]
    kernel: bool = False

    @property
    def flat(self) -> tuple[int, ...]:
        """The weight's shape as a matrix or a batch of them."""
        if not self.kernel:
            return self.shape
        size = 1
        for each in self.shape[1:]:
            size *= each
        return self.shape[0], size

    @property
    def transposed(self) -> bool:
        """Whether the matrix is the transpose of :attr:`flat`."""
        return self.flat[-2] < self.flat[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        flat = self.flat
        return (*flat[:-2], flat[-1], flat[-2]) if self.transposed else flat

    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix of a weight: a view, where there can be one."""
        flat = weight.reshape(self.flat)
        return flat.mT if self.transposed else flat

    def weight(self, matrix: Tensor) -> Tensor:
        """The weight of a matrix."""
        return (matrix.mT if self.transposed else matrix).reshape(self.shape)
