"""A parametrization: a module that maps unconstrained tensors to matrices on a manifold."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .._checks import one_of
from .._torch.autocast import full_precision
from .._torch.dtypes import COMPLEX, REAL
from .._torch.tracing import fixed_sizes
from ..linalg.shapes import Size, is_square
from ..linalg.solve import slogdet
from ..manifolds import Manifold
from ._initial_skew import INITS
from ._matrix_layout import MatrixLayout

Originals = Tensor | tuple[Tensor, ...]  # the unconstrained tensors, which torch calls original, original0, ...


class Parametrization(nn.Module, ABC):
    """A map from unconstrained tensors onto matrices of a manifold, for ``torch.nn.utils.parametrize``.

    :func:`mnvi.constrain` attaches it to a weight, from which it takes its size. A weight with more columns than rows
    is constrained through its transpose, a convolution's kernel as a matrix (see :class:`MatrixLayout`). Laws:

    - ``forward(*originals)`` is on the manifold, up to 10·n·eps, whatever the originals are;
    - ``forward(right_inverse(w))`` is w for every w that the parametrization reaches; for others, a ValueError;
    - ``multiply(x, *originals)`` is ``x @ forward(*originals).mT``, by another way where that saves work.

    Every use of the weight maps anew, but inside ``with torch.nn.utils.parametrize.cached():`` the first is kept, and
    :class:`mnvi.rnn.OrthogonalRNN` maps once a sequence.

    A real weight cannot become complex later, nor the reverse; torch.jit.script is not supported. In ``torch.func``
    transforms, ``torch.export`` and ``torch.jit.trace`` a map is plain operations, differentiable to any order;
    but points of SPD are differentiable once, and not by ``torch.func.vmap``.

    **What a subclass writes.** :meth:`check_shape`, :meth:`manifold`, :meth:`matrix`, :meth:`coordinates` and
    :meth:`draw`, all of the matrix (..., n, p), n ≥ p, and none of the weight's own shape. It may also set ``dtypes``,
    make its buffers in :meth:`attach`, know a better :meth:`nearest`, and save work in :meth:`rows`,
    :meth:`transposed_rows` and :meth:`factors`.

    **What** :func:`mnvi.constrain` **calls.** First :meth:`attach`, which takes the size and the type from the weight.
    Then one of three for the first unconstrained tensors: :meth:`checked_coordinates` of the weight,
    :meth:`coordinates` of the :meth:`nearest` point, or :meth:`draw`. Torch asks :meth:`right_inverse` for them
    while it registers the parametrization, inside ``with self.beginning_at(them)``. If any of that fails,
    :meth:`detach` leaves the parametrization free for another weight.

    Args:
        init: where :meth:`draw` starts, ``"haar"``, ``"henaff"``, ``"cayley"`` or ``"identity"``.
    """

    dtypes: tuple[torch.dtype, ...] = REAL + COMPLEX  # of the weights that it can be attached to

    def __init__(self, init: str) -> None:
        super().__init__()
        self.init = one_of("init", init, INITS)
        self.layout: MatrixLayout | None = None  # None until it is attached to a weight
        self._start: Originals | None = None  # what right_inverse gives, while it is being attached
        self._complex: tuple[bool, ...] | None = None  # which of the originals are

    @abstractmethod
    def check_shape(self, size: Size) -> None:
        """Raise ValueError unless there are matrices of this shape (..., n, p), n ≥ p."""

    @abstractmethod
    def manifold(self, dtype: torch.dtype) -> Manifold:
        """What the matrices with entries of this type lie on."""

    @abstractmethod
    def matrix(self, *originals: Tensor) -> Tensor:
        """The matrix (..., n, p), n ≥ p, of the unconstrained tensors."""

    @abstractmethod
    def coordinates(self, matrix: Tensor) -> Originals:
        """Unconstrained tensors that :meth:`matrix` maps to ``matrix``, a point of the manifold, exactly.

        Raises:
            ValueError: if there are none.
        """

    @abstractmethod
    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        """Unconstrained tensors of a starting matrix of this shape, by the initialiser."""

    def nearest(self, matrix: Tensor) -> Tensor:
        """The nearest point of the manifold."""
        return self.manifold(matrix.dtype).project(matrix)

    def attach(self, layout: MatrixLayout, like: Tensor, generator: torch.Generator | None = None) -> None:
        """Take the size and the type from a weight; a subclass makes its buffers here.

        Args:
            layout: how the weight is a matrix.
            like: the weight, of which only shape, type and device count.
            generator: for buffers that are drawn.

        Raises:
            ValueError: the weight does not fit, or the parametrization is attached already.
        """
        if self.layout is not None:
            raise ValueError(f"{self} is attached to a weight already; give every weight its own")
        self.check_shape(layout.size)
        if like.dtype not in self.dtypes:
            raise ValueError(f"{self} needs a weight of {self.dtypes}, got one of {like.dtype}")
        self.manifold(like.dtype).check_dtype(like.dtype)
        self.layout, self._of_complex = layout, like.is_complex()

    def detach(self) -> None:
        """Undo :meth:`attach`, as if there had been no weight."""
        self.layout = None

    @contextmanager
    def beginning_at(self, originals: Originals) -> Iterator[None]:
        """Let :meth:`right_inverse` give ``originals``, whatever it is asked for, while torch registers this module."""
        each = originals if isinstance(originals, tuple) else (originals,)
        self._start, self._complex = originals, tuple(one.is_complex() for one in each)
        try:
            yield
        finally:
            self._start = None

    def forward(self, *originals: Tensor) -> Tensor:
        with full_precision(originals[0]), fixed_sizes():
            return self._attached(originals).weight(self.matrix(*originals))

    def right_inverse(self, weight: Tensor) -> Originals:
        """Unconstrained tensors of a weight on the manifold.

        Raises:
            ValueError: the weight is not on the manifold, or out of the parametrization's reach.
        """
        if self._start is not None:  # inside beginning_at()
            return self._start
        if not isinstance(weight, Tensor):
            raise TypeError(f"a weight is a tensor, got {type(weight).__name__}")
        if self.layout is None:
            return self._first(weight)
        layout = self._attached()
        if tuple(weight.shape) != layout.shape:
            raise ValueError(f"{self} is attached to a weight of shape {layout.shape}, got {tuple(weight.shape)}")
        if weight.is_complex() != self._of_complex:
            kind = "complex" if self._of_complex else "real"
            raise ValueError(f"{self} is attached to a {kind} weight, got one of {weight.dtype}")
        with torch.no_grad(), full_precision(weight):
            return self.checked_coordinates(layout.matrix(weight))

    def _first(self, weight: Tensor) -> Originals:
        """:meth:`right_inverse` of the weight that it is attached to by that, unless there is an error."""
        self.attach(MatrixLayout(tuple(weight.shape)), weight)
        try:
            return self.right_inverse(weight)
        except BaseException:
            self.detach()
            raise

    def checked_coordinates(self, matrix: Tensor) -> Originals:
        """:meth:`coordinates` of a point of the manifold, which is projected if it is off by more than rounding.

        Raises:
            ValueError: it is no such point, or out of reach.
        """
        manifold = self.manifold(matrix.dtype)
        manifold.check(matrix)
        off = manifold.residual(matrix).max() > 10 * matrix.shape[-2] * torch.finfo(matrix.dtype).eps
        return self.coordinates(manifold.project(matrix) if off else matrix)

    def multiply(self, x: Tensor, *originals: Tensor) -> Tensor:
        """``x @ weight.mT`` for rows x of shape (..., in), as a linear layer has it."""
        layout = self._attached(originals)
        if len(layout.size) > 2:
            raise ValueError(f"multiply needs a single matrix, got a batch of shape {layout.shape}")
        if x.dim() == 0 or x.shape[-1] != layout.flat[-1]:
            raise ValueError(f"expected rows of shape (..., {layout.flat[-1]}), got {tuple(x.shape)}")
        precision = originals[0].real.dtype
        x = x.to(precision.to_complex() if x.is_complex() else precision)
        with full_precision(x), fixed_sizes():
            return self.transposed_rows(x, *originals) if layout.transposed else self.rows(x, *originals)

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        """x Qᵀ, of shape (..., n), for the matrix Q (n, p) and rows x of shape (..., p)."""
        return F.linear(x, self.matrix(*originals))

    def transposed_rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        """x Q, of shape (..., p), for rows x of shape (..., n)."""
        return x @ self.matrix(*originals)

    def factors(self, *originals: Tensor) -> tuple[Tensor, ...]:
        """What many products are made with, found once: (Q,), or thin (U, P) of shape (L, n) where Q = I − UᵀP."""
        return (self.forward(*originals),)

    def _attached(self, originals: tuple[Tensor, ...] = ()) -> MatrixLayout:
        if self.layout is None:
            raise ValueError(f"{self} is not attached to a weight: use mnvi.constrain(module, name, parametrization)")
        if originals and originals[0].real.dtype not in REAL:
            raise TypeError(f"{self} needs parameters of {REAL}, under autocast too, got {originals[0].dtype}")
        if originals and self._complex and self._complex != tuple(each.is_complex() for each in originals):
            raise TypeError(f"the weight of {self} was made real or complex; convert it before mnvi.constrain")
        return self.layout

    def extra_repr(self) -> str:
        return f"init={self.init!r}"


def check_determinant(matrix: Tensor, determinant: int, what: str, cure: str) -> None:
    """Raise ValueError unless the orthogonal matrices have this determinant; ``cure`` is what reaches the others."""
    if bool((slogdet(matrix)[0] != determinant).any()):
        raise ValueError(f"{what} reaches determinant {determinant}, got one of {-determinant}, for which {cure}")


def check_square(size: Size, what: str) -> None:
    """Raise ValueError unless ``size`` is (..., n, n), n ≥ 1."""
    *_, n, p = size
    if not is_square(size) or not n:
        sides = f"sides of {n} and {p}"
        raise ValueError(
            f"{what} needs a square weight, got {sides}; TCWY, OWN and Trivialization(Stiefel()) take these"
        )
