"""Posterior families of a layer's weight matrix: one file each."""

from .base import Family, Posterior
from .diagonal import Diagonal
from .matrix_normal import MatrixNormal
from .matrix_normal_plus_diagonal import MatrixNormalPlusDiagonal

__all__ = ["Diagonal", "Family", "MatrixNormal", "MatrixNormalPlusDiagonal", "Posterior"]
