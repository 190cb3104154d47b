"""Families of posteriors and priors by the names that the command line has for them."""

from dataclasses import dataclass

import torch

import mnvi
from mnvi.covariance import BlockDiagonal, Dense, Factor, FactorSpec, Identity, LowRank

LARGEST = 1024  # rows or columns that are correlated all with each other
BLOCK = 196  # of neighbours that are, where there are more: 14×14 positions of a channel


@dataclass(frozen=True)
class Wide(FactorSpec):
    """``Dense``, or ``BlockDiagonal`` where that would be too large."""

    def build(
        self, size: int, *, split=None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Factor:
        return self._of(size).build(size, split=split, device=device, dtype=dtype)

    def num_parameters(self, size: int, split=None) -> int:
        return self._of(size).num_parameters(size, split)

    def _of(self, size: int) -> FactorSpec:
        return Dense() if size <= LARGEST else BlockDiagonal(BLOCK)


POSTERIORS = {
    "mn": mnvi.posteriors.MatrixNormal(Wide(), Wide()),
    "diagonal": mnvi.posteriors.Diagonal(),
    "mn+diagonal": mnvi.posteriors.MatrixNormalPlusDiagonal(Wide(), Wide()),
    "scaled": mnvi.posteriors.ScaledMatrixNormal(Identity(), LowRank(2)),
    "corrected": mnvi.posteriors.CorrectedMatrixNormal(Wide(), Wide()),
}
PRIORS = {
    "normal": mnvi.priors.Normal(None),
    "ard": mnvi.priors.ARD(),
    "group-ard": mnvi.priors.GroupARD(),
    "channel-ard": mnvi.priors.GroupARD(positions=False),
    "hierarchical": mnvi.priors.GroupARD(positions=False, degrees=1.0),
}
