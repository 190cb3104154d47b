"""A retraction: a step from a matrix with orthonormal columns along a tangent vector, to another such matrix."""

from abc import ABC, abstractmethod

from torch import Tensor


class Retraction(ABC):
    """From x with xᴴx = I and v with xᴴv skew-Hermitian, both (..., n, p), real or complex, to a y with yᴴy = I.

    It may depend on the metric, which is ``"canonical"`` or ``"euclidean"``, those of :class:`mnvi.manifolds.Stiefel`,
    or ``"bi-invariant"``, that of square x, which form a group. Laws:

    - ``retract(x, 0, metric)`` is x, and the derivative of ``retract(x, t·v, metric)`` at t = 0 is v;
    - the distance of ``retract(x, t·v, metric)`` from the metric's geodesic is O(t^(``order(metric)`` + 1));
    - y is orthonormal to rounding for a v of any length; where v is not finite, a ValueError is raised;
    - for p < n no n×n matrix is made.

    Source: Absil, Mahony & Sepulchre, 'Optimization Algorithms on Matrix Manifolds' (2008), section 4.1,
    doi:10.1515/9781400830244.
    """

    @abstractmethod
    def order(self, metric: str) -> float:
        """The order to which the retraction agrees with the metric's geodesics; infinite where it is one."""

    @abstractmethod
    def retract(self, x: Tensor, v: Tensor, metric: str) -> Tensor:
        """The point y reached from ``x`` along the tangent vector ``v``, shape (..., n, p)."""

    def translate(self, x: Tensor, a: Tensor) -> Tensor:
        """x·φ(a) on the group of square x, for a skew-Hermitian ``a``, φ being the retraction at the identity."""
        return self.retract(x, x @ a, "bi-invariant")
