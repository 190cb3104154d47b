"""The tables that the laws of test_laws.py run on: a new manifold or retraction is one row."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mnvi.manifolds import (
    SPD,
    CholeskySPD,
    Euclidean,
    GeneralLinear,
    Grassmann,
    Kronecker,
    Manifold,
    Orthogonal,
    Product,
    SPDKronecker,
    SpecialLinear,
    SpecialOrthogonal,
    Stiefel,
    Unitary,
)


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
    any_length: bool = True  # whether steps of every length end on the manifold; else those too long raise ValueError


def gram(a):
    return a @ a.mT


def kron(x):
    return torch.einsum("...ij,...kl->...ikjl", *x).flatten(-4, -3).flatten(-2, -1)


def kron_gram(x):
    return kron((gram(x[0]), gram(x[1])))


def every(x):
    return torch.cat([x[0].flatten(-2), kron(x[1:]).flatten(-2)], -1)


def flat(x):
    return torch.cat([each.flatten(-2) for each in x], -1)


NOT_SQUARE = ((3,), (3, 4), (0, 0))

MANIFOLDS = {
    "euclidean": Case(Euclidean(), (4, 3), bad_shapes=()),
    "spd-affine-invariant": Case(SPD(), (4, 4), bad_shapes=NOT_SQUARE),
    "spd-log-euclidean": Case(SPD("log-euclidean"), (4, 4), bad_shapes=NOT_SQUARE),
    "spd-bures-wasserstein": Case(SPD("bures-wasserstein"), (4, 4), bad_shapes=NOT_SQUARE),
    "spd-euclidean": Case(SPD("euclidean"), (4, 4), bad_shapes=NOT_SQUARE),
    "spd-scalar": Case(SPD(), (1, 1)),
    "cholesky-spd": Case(CholeskySPD(), (4, 4), gram, bad_shapes=NOT_SQUARE),
    "kronecker": Case(Kronecker(), ((4, 3), (2, 5)), kron, bad_shapes=((3, 3), ((3,), (3, 3)), ((2, 3, 3), (3, 3)))),
    "spd-kronecker": Case(SPDKronecker(), ((3, 3), (2, 2)), kron_gram, bad_shapes=((3, 3), ((3, 3), (3, 4)))),
    "product": Case(Product(SPD(), Kronecker()), ((3, 3), (2, 3), (2, 2)), every, bad_shapes=((3, 3),)),
}


def projector(x):
    return x @ x.mH


# Their orders: under the canonical and the Euclidean metric of Stiefel, and on the groups.
RETRACTIONS = {
    "qr": (1, 1, 1),
    "cayley": (2, 1, 2),
    "polar": (1, 2, 2),
    "exp": (math.inf, math.inf, math.inf),
}
THIN = ((3,), (3, 4), (2, 3, 4), (0, 0))  # too few sizes, or fewer rows than columns

MANIFOLDS |= {
    f"stiefel-{metric}-{retraction}-{n}x{p}": Case(
        Stiefel(metric, retraction), (n, p), closed=("exp",), bad_shapes=THIN
    )
    for metric in ("canonical", "euclidean")
    for retraction in RETRACTIONS
    for n, p in ((5, 3), (5, 4), (4, 4), (5, 1))
}
MANIFOLDS |= {
    f"{group.__name__}-{retraction}": Case(
        group(retraction), (n, n), bad_shapes=NOT_SQUARE, dtype=torch.complex128 if group is Unitary else torch.float64
    )
    for group, n in ((Orthogonal, 4), (SpecialOrthogonal, 3), (Unitary, 3))
    for retraction in RETRACTIONS
}
MANIFOLDS |= {
    f"{group.__name__}-{retraction}": Case(
        group(retraction), (n, n), closed=("exp",), bad_shapes=NOT_SQUARE, any_length=False
    )
    for group, n in ((GeneralLinear, 4), (SpecialLinear, 3))
    for retraction in ("lie", "exp")
}
MANIFOLDS |= {
    f"grassmann-{n}x{p}": Case(Grassmann(), (n, p), projector, bad_shapes=THIN) for n, p in ((6, 3), (5, 4), (5, 1))
}
MANIFOLDS |= {
    "stiefel-complex": Case(Stiefel(), (5, 3), closed=("exp",), dtype=torch.complex128),
    "grassmann-complex": Case(Grassmann(), (5, 2), projector, dtype=torch.complex128),
    "product-mixed": Case(Product(Stiefel(), SPD()), ((4, 2), (3, 3)), closed=("exp",), dense=flat),
}
