"""The table of manifolds that every law of test_manifolds.py runs on: a new manifold is one row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mnvi.manifolds import Euclidean, Manifold


@dataclass(frozen=True)
class Case:
    """A manifold, the shape of a point, and what is known of it."""

    manifold: Manifold
    shape: tuple
    dense: Callable = lambda x: x  # the matrix a point stands for, or any faithful picture of it; quotients differ
    closed: tuple[str, ...] = ("exp", "log", "dist")  # the closed forms it has
    length: float = 0.3  # of the tangent vectors in tests: well inside the injectivity radius
    bad_shapes: tuple = ((3,),)  # shapes that cannot be points
    dtype: torch.dtype = torch.float64
    options: dict = field(default_factory=dict)  # tolerances that a row may loosen, and why


MANIFOLDS = {
    "euclidean": Case(Euclidean(), (4, 3), bad_shapes=()),
}
