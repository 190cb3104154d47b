"""The default family: for each weight the matrix normal whose factors are small beside it."""

from dataclasses import dataclass

import torch

from .._torch.dtypes import Device
from ..covariance import Dense, Diagonal, FactorSpec
from ..covariance.base import Split
from .base import Posterior, PosteriorSpec
from .matrix_normal import MatrixNormal

LARGEST = 64  # rows or columns that a dense factor may have
SHARE = 1 / 8  # of the weight's numbers that a dense factor may hold


@dataclass(frozen=True)
class BySize(PosteriorSpec):
    """A :class:`MatrixNormal` for every weight, with dense factors where they are small beside it.

    The factor of a side of length k, of an (n, p) weight, is ``Dense`` where k ≤ 64 and k² ≤ n·p/8, and else
    ``Diagonal``. So an (n, p) weight has at most n·p/4 + n + p numbers of posterior, and a training step takes about
    2 to 3 times that of the plain layer, whatever the layer's size. ``Dense`` goes where correlations are cheap: over
    the classes of an output layer, over the few units that a wide layer ends in, over the inputs of a table.

    - (400, 784): ``Diagonal`` rows and columns;
    - (64, 6272): ``Dense`` rows, ``Diagonal`` columns;
    - (10, 400): ``Dense`` rows, ``Diagonal`` columns.

    This is what layers and :func:`mnvi.to_bayesian` take for ``posterior=None``.
    """

    def family(self, shape: tuple[int, int]) -> MatrixNormal:
        """The family chosen for weights of ``shape`` (n, p)."""
        return MatrixNormal(*(_factor(side, shape[0] * shape[1]) for side in shape))

    def build(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Posterior:
        return self.family(shape).build(shape, split=split, device=device, dtype=dtype)

    def num_parameters(self, shape: tuple[int, int], split: Split | None = None) -> int:
        return self.family(shape).num_parameters(shape, split)

    def multiply_adds(self, shape: tuple[int, int], split: Split | None = None, *, outputs: int | None = None) -> int:
        return self.family(shape).multiply_adds(shape, split, outputs=outputs)


def _factor(side: int, numbers: int) -> FactorSpec:
    return Dense() if side <= LARGEST and side**2 <= SHARE * numbers else Diagonal()
