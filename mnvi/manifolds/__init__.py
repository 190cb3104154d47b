"""Manifolds of matrices, one a file; :class:`Manifold` states the laws that all of them keep."""

from .._deprecation import moved
from . import _spd_metrics
from ._matrix_group import MatrixGroup
from .base import Manifold, Point
from .cholesky_spd import CholeskySPD
from .euclidean import Euclidean
from .general_linear import GeneralLinear
from .grassmann import Grassmann
from .kronecker import Kronecker
from .orthogonal import Orthogonal
from .product import Product
from .spd import SPD
from .spd_kronecker import SPDKronecker
from .special_linear import SpecialLinear
from .special_orthogonal import SpecialOrthogonal
from .stiefel import Stiefel
from .unitary import Unitary

__all__ = [
    "SPD",
    "CholeskySPD",
    "Euclidean",
    "GeneralLinear",
    "Grassmann",
    "Kronecker",
    "Manifold",
    "MatrixGroup",
    "Orthogonal",
    "Point",
    "Product",
    "SPDKronecker",
    "SpecialLinear",
    "SpecialOrthogonal",
    "Stiefel",
    "Unitary",
]

moved(f"{__name__}.spd_metrics", **{type(metric).__name__: type(metric) for metric in _spd_metrics.METRICS.values()})
