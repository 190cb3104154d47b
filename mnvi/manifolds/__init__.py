"""Manifolds of matrices, one a file; :class:`Manifold` states the laws that all of them keep."""

from .base import Manifold
from .euclidean import Euclidean
from .product import Product

__all__ = ["Euclidean", "Manifold", "Product"]
