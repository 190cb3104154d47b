"""The exponential parametrization."""

from torch import Tensor

from ..linalg.exponential import exponential
from ..linalg.exponential_rows import exponential_rows
from ..linalg.logarithm import logarithm
from ._skew_parametrization import SkewParametrization


class Exponential(SkewParametrization):
    """Q = exp(A), A skew-symmetric: all rotations, SO(n); of a complex weight, all of U(n).

    With ``determinant=-1`` the first column is negated, which gives the other half of O(n). As a recurrent kernel this
    is expRNN. At angles near π the map loses its slope in some directions; :class:`Trivialization` does not.

    Args:
        determinant: 1 or −1, of a real weight.
        init: ``"henaff"`` (default), ``"cayley"``, ``"haar"`` or ``"identity"``.

    Raises:
        ValueError: an argument is none of these; at :func:`mnvi.constrain`, the weight is not square; when a
            weight is assigned, it is not orthogonal, has the other determinant, or an angle of π, whose logarithm is
            not unique.

    Source: Lezcano-Casado & Martínez-Rubio, 'Cheap orthogonal constraints in neural networks' (2019), arXiv:1901.08428.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", Exponential())
    """

    def __init__(self, determinant: int = 1, *, init: str = "henaff") -> None:
        super().__init__(init)
        if determinant not in (1, -1):
            raise ValueError(f"determinant must be 1 or -1, got {determinant!r}")
        self.determinant = determinant
        self.other_determinant = f"there are Exponential({-determinant}) and Trivialization(Orthogonal())"

    def negative_signs(self, n: int) -> int:
        return 0 if self.determinant == 1 else 1

    def phi(self, a: Tensor) -> Tensor:
        return exponential(a, skew_hermitian=True)

    def inverse(self, q: Tensor) -> Tensor:
        return logarithm(q)

    def check_complex(self) -> None:
        if self.determinant == -1:
            raise ValueError(f"{self} is for a real weight; a complex one reaches every phase of the determinant")

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        return exponential_rows(self.scaled(x), self.skew(originals[0]).mT)

    def extra_repr(self) -> str:
        return f"determinant={self.determinant}, {super().extra_repr()}"
