"""Factors of the covariance of a layer's weight matrix: one file each."""

from typing import TYPE_CHECKING

from .._deprecation import renamed
from .base import Factor, FactorSpec
from .block_diagonal import BlockDiagonal
from .dense import Dense
from .diagonal import Diagonal
from .identity import Identity
from .kronecker import Kronecker
from .low_rank import LowRank

__all__ = ["BlockDiagonal", "Dense", "Diagonal", "Factor", "FactorSpec", "Identity", "Kronecker", "LowRank"]

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Covariance": "FactorSpec"})
