"""Manifolds of matrices, one a file; :class:`Manifold` states the laws that all of them keep."""

from .base import Manifold
from .cholesky_spd import CholeskySPD
from .euclidean import Euclidean
from .grassmann import Grassmann
from .kronecker import Kronecker
from .orthogonal import Orthogonal
from .product import Product
from .spd import SPD
from .spd_kronecker import SPDKronecker
from .special_orthogonal import SpecialOrthogonal
from .stiefel import Stiefel
from .unitary import Unitary

__all__ = [
    "SPD",
    "CholeskySPD",
    "Euclidean",
    "Grassmann",
    "Kronecker",
    "Manifold",
    "Orthogonal",
    "Product",
    "SPDKronecker",
    "SpecialOrthogonal",
    "Stiefel",
    "Unitary",
]
