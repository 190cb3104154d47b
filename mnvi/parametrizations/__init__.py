"""Parametrizations: unconstrained tensors to matrices on a manifold; attach one with :func:`mnvi.constrain`."""

from .._deprecation import moved
from ._matrix_layout import MatrixLayout
from .base import Parametrization
from .cayley import Cayley, ScaledCayley
from .constrain import constrain, factors, multiply
from .cwy import CWY, TCWY
from .eunn import EUNN
from .exponential import Exponential
from .householder import Householder
from .own import OWN
from .trivialization import Trivialization
from .urnn import URNN

__all__ = [
    "CWY",
    "EUNN",
    "OWN",
    "TCWY",
    "URNN",
    "Cayley",
    "Exponential",
    "Householder",
    "Parametrization",
    "ScaledCayley",
    "Trivialization",
    "constrain",
    "factors",
    "multiply",
]

moved(f"{__name__}.layout", Layout=MatrixLayout)
