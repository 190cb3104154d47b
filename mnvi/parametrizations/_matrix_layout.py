"""How a weight is a matrix with at least as many rows as columns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MatrixLayout:
    """Between a weight of ``shape`` and its matrix (..., n, p), n ≥ p, whose columns are to be orthonormal, say.

    A wide weight is transposed. The kernel of a convolution, (f_out, f_in, q, q), is a single matrix of shape
    (q²·f_in, f_out), as Likhosherstov et al. (2021) have it, or of the transposed shape if that is the taller one;
    of any other weight, dimensions before the last two are a batch.
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
        return self.flat[-2] < self.flat[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        flat = self.flat
        return (*flat[:-2], flat[-1], flat[-2]) if self.transposed else flat

    def matrix(self, weight: Tensor) -> Tensor:
        flat = weight.reshape(self.flat)
        return flat.mT if self.transposed else flat

    def weight(self, matrix: Tensor) -> Tensor:
        return (matrix.mT if self.transposed else matrix).reshape(self.shape)
