"""One factor of a covariance: small descriptions here, the modules that compute with them beside each."""

from .base import Covariance, Factor
from .block_diagonal import BlockDiagonal
from .dense import Dense
from .diagonal import Diagonal
from .identity import Identity
from .kronecker import Kronecker
from .low_rank import LowRank

__all__ = ["BlockDiagonal", "Covariance", "Dense", "Diagonal", "Factor", "Identity", "Kronecker", "LowRank"]
