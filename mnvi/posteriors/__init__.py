"""Posterior families of a layer's weight matrix: one file each."""

from typing import TYPE_CHECKING

from .._deprecation import renamed
from .base import Posterior, PosteriorSpec
from .by_size import BySize
from .corrected_matrix_normal import CorrectedMatrixNormal
from .diagonal import Diagonal
from .matrix_normal import MatrixNormal
from .matrix_normal_plus_diagonal import MatrixNormalPlusDiagonal
from .scaled_matrix_normal import ScaledMatrixNormal

__all__ = [
    "BySize",
    "CorrectedMatrixNormal",
    "Diagonal",
    "MatrixNormal",
    "MatrixNormalPlusDiagonal",
    "Posterior",
    "PosteriorSpec",
    "ScaledMatrixNormal",
]

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Family": "PosteriorSpec"})
