"""Retractions of matrices with orthonormal columns: a file each, and a row each of the table :data:`RETRACTIONS`.

:class:`mnvi.manifolds.Stiefel` and the groups of orthogonal and unitary matrices take them by their names. A new one is
a file here with a subclass of :class:`Retraction`, and a row of the table.

**Accuracy.** The result is orthonormal to rounding for a step of any length: beyond steps of ordinary length, where the
Gram matrices that make them fast would lose accuracy, each has a slower way. The rounding errors of x do not build up
from step to step, for what the result is made from is the Gram matrix of x as it is.

**Derivatives.** All are differentiable at steps of ordinary length, v = 0 and v without full rank included; the slower
ways of ``"qr"``, ``"cayley"`` and ``"exp"`` need [x, v] to have full rank for that.

**Traced graphs** cannot choose by the numbers: there ``"qr"`` and ``"polar"`` go the slower way, and ``"cayley"`` and
``"exp"`` the fast one, which is right while no column of v is longer than about 3.
"""

from .base import Retraction
from .cayley import Cayley
from .exp import Exponential
from .polar import Polar
from .qr import QR

RETRACTIONS: dict[str, Retraction] = {
    "qr": QR(),
    "polar": Polar(),
    "cayley": Cayley(),
    "exp": Exponential(),
}

__all__ = ["QR", "RETRACTIONS", "Cayley", "Exponential", "Polar", "Retraction"]
