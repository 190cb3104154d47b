"""The product of Householder reflections, applied one after the other."""

from torch import Tensor

from ..linalg.elementary import identity
from ..linalg.reflections import reflect, unit_rows
from ._reflection_product import ReflectionProduct


class Householder(ReflectionProduct):
    """Q = H(v₁)···H(v_L), H(v) = I − 2vvᵀ/vᵀv: an orthogonal matrix of determinant (−1)^L, in L steps of O(n²).

    The same matrix, of the same unconstrained tensor, as :class:`CWY`, which is the faster; this is its reference.
    :func:`mnvi.parametrizations.multiply` applies the reflections to the rows; recurrent layers, for L < n, use the
    factors of CWY. The backward pass keeps the result only and takes the reflections off again, each being its own
    inverse. Differentiable once, and to any order in ``torch.func`` transforms.

    Args:
        reflections: L, at most the number of rows n; None (default) for n.
        init: as for :class:`CWY`, default ``"haar"``.

    Raises:
        TypeError, ValueError: as for :class:`CWY`.

    Source: Mhammedi, Hellicar, Rahman & Bailey, 'Efficient orthogonal parametrisation of recurrent neural networks
    using Householder reflections' (2017), arXiv:1612.00188, section 3.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", Householder(reflections=16))
    """

    def matrix(self, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        return reflect(identity(u).expand(*u.shape[:-2], -1, -1), u)

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        return self.transposed_rows(x, originals[0].flip(-2))

    def transposed_rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        u = unit_rows(originals[0])
        return reflect(x.reshape(-1, x.shape[-1]), u).reshape(x.shape)
