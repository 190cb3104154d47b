"""Priors of a layer's weight matrix: one file each."""

from typing import TYPE_CHECKING

from .._deprecation import renamed
from .ard import ARD
from .base import Prior, PriorSpec
from .group_ard import GroupARD
from .matrix_normal import MatrixNormal
from .normal import Normal

__all__ = ["ARD", "GroupARD", "MatrixNormal", "Normal", "Prior", "PriorSpec"]

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"PriorModule": "Prior"})
