"""Priors of a layer's weight matrix: one file each."""

from .ard import ARD
from .base import Prior, PriorModule
from .group_ard import GroupARD
from .matrix_normal import MatrixNormal
from .normal import Normal

__all__ = ["ARD", "GroupARD", "MatrixNormal", "Normal", "Prior", "PriorModule"]
