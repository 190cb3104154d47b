"""Dynamic trivializations: a manifold, seen from the tangent space at a base point that moves along."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.types import Device

from .._checks import instance, one_of, positive_int
from .._deprecation import renamed_argument, renamed_attribute
from .._torch.after_step import follow
from .._torch.tracing import values_hidden
from ..linalg.exponential import exponential
from ..linalg.exponential_rows import exponential_rows
from ..linalg.shapes import Size
from ..manifolds import Manifold, MatrixGroup, Orthogonal, SpecialOrthogonal, Unitary
from ._initial_skew import draw_skew
from ._matrix_layout import MatrixLayout
from ._tangent_part import tangent_part
from .base import Originals, Parametrization

OPTIMIZER_STATES = ("keep", "transport", "reset")
MOMENTA = ("momentum_buffer", "exp_avg", "grad_avg")  # state of torch's optimisers that is a tangent vector


class Trivialization(Parametrization):
    """Q = R_B(V): the retraction R of a manifold at a base point B, a buffer, of a tangent vector V, the parameter.

    The base point moves along. After every K = ``rebase_every`` steps of the optimiser B becomes the present Q and V
    becomes 0: this is a *rebase*, which leaves Q as it is. It happens before the optimiser's ``step()`` returns. K = 1
    with SGD is Riemannian gradient descent. K = ∞ is a static parametrization around B.

    On a group V is an element of the Lie algebra and R_B(V) = B·φ(V), which is dtriv. Elsewhere V is an ambient array.
    Its tangent part counts, and its gradient is the one that ``manifold.inner`` at B defines.

    An average of models averages V, which is right only as long as B stays. After a rebase torch's ``AveragedModel`` is
    refused with a RuntimeError when it is used; :class:`mnvi.optim.AveragedModel` averages the weights themselves.

    Args:
        manifold: from :mod:`mnvi.manifolds`, of points that are one tensor; default
            ``SpecialOrthogonal(retraction="exp")``.
        rebase_every: K; None or math.inf for ∞.
        project_every: M. At every M-th rebase B is projected onto the manifold, against rounding; None or math.inf
            never does.
        optimizer_state: what a rebase does to the optimiser's state of V.
            ``"keep"`` leaves it. On a group its coordinates turn with B, so that nothing is lost.
            ``"transport"`` carries momenta to the new base point by ``manifold.transport``; on a group that is the
            same. Second moments stay.
            ``"reset"`` clears the state.
        init: ``"haar"`` (default), the random points of the manifold. On a group of square orthogonal or unitary
            matrices also ``"henaff"``, ``"cayley"`` and ``"identity"``, B = exp(K).

    Raises:
        TypeError, ValueError: an argument is none of these, or the weight has not a shape of the manifold.

    Source: Lezcano-Casado, 'Trivializations for gradient-based optimization on manifolds' (2019), arXiv:1909.09501,
    algorithm 5.1.

    Example:
        >>> dtriv = Trivialization(SpecialOrthogonal(retraction="exp"), rebase_every=100, init="henaff")
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", dtriv)
    """

    base: Tensor
    optimiser_state = renamed_attribute("optimiser_state", "optimizer_state")

    @renamed_argument("optimiser_state", "optimizer_state")
    def __init__(
        self,
        manifold: Manifold | None = None,
        rebase_every: float | None = 100,
        project_every: float | None = 100,
        *,
        optimizer_state: str = "keep",
        init: str = "haar",
    ) -> None:
        super().__init__(init)
        self.space = instance(
            "manifold", SpecialOrthogonal(retraction="exp") if manifold is None else manifold, Manifold
        )
        if self.space.num_tensors != 1:
            raise TypeError(f"a weight is one tensor, a point of {self.space} is {self.space.num_tensors}")
        if init != "haar" and not isinstance(self.space, (Orthogonal, SpecialOrthogonal, Unitary)):
            raise ValueError(f"init {init!r} needs a group of orthogonal matrices, got {self.space}; use 'haar'")
        self.rebase_every, self.project_every = (
            None if every in (None, math.inf) else positive_int(name, every)
            for name, every in (("rebase_every", rebase_every), ("project_every", project_every))
        )
        self.optimizer_state = one_of("optimizer_state", optimizer_state, OPTIMIZER_STATES)
        self.steps = self.rebases = 0
        self._coordinates: tuple[Tensor, ...] = ()
        self._outdated: tuple[Tensor, int] | None = None
        self._marked: tuple[Tensor, int, Tensor] | None = None

    def check_shape(self, size: Size) -> None:
        self.space.check_shape(size)
        if self.init != "haar" and size[-1] != size[-2]:
            raise ValueError(f"init {self.init!r} needs a square weight (..., n, n), got {tuple(size)}")

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return self.space

    def attach(self, layout: MatrixLayout, like: Tensor, generator: torch.Generator | None = None) -> None:
        super().attach(layout, like, generator)
        self.register_buffer("base", like.detach().new_zeros(layout.size))
        self._mark()

    def _attached(self, originals: tuple[Tensor, ...] = ()) -> MatrixLayout:
        if originals:
            self._refuse_foreign_base()
            self._refuse_outdated(originals[0])
        known = originals and self._coordinates and self._coordinates[0] is originals[0]
        if originals and not known and not torch.compiler.is_compiling() and isinstance(originals[0], nn.Parameter):
            self._coordinates = originals  # a tuple, so that they are no parameters of this module
            follow(originals[0], self)
        return super()._attached(originals)

    def _refuse_outdated(self, coordinates: Tensor) -> None:
        """Raise RuntimeError if the base point is that of another weight, which was given the same trivialization."""
        if self._outdated is None or torch.compiler.is_compiling():
            return
        old, version = self._outdated
        if coordinates is not old:
            return
        if old._version == version and old.any():
            raise RuntimeError(f"{self} has become that of another weight; give every weight its own")
        self._outdated = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "optimiser_state" in state:  # a pickle of an earlier version
            state = {**state, "optimizer_state": state["optimiser_state"]}
            del state["optimiser_state"]
        super().__setstate__(state)
        if self._coordinates:  # of a copy: those of the copied weight
            follow(self._coordinates[0], self)
        self._mark()

    def _mark(self) -> None:
        """Remember the base point, after every change of it that leaves the coordinates right."""
        base = None if self.layout is None else self.base
        self._marked = None if base is None or base.is_inference() else (base, base._version, base.sum())

    def _refuse_foreign_base(self) -> None:
        """Raise RuntimeError if others have written a new base point into the buffer: coordinates belong to the old."""
        if torch.compiler.is_compiling() or self._marked is None:
            return
        base, version, total = self._marked
        if self.base is not base or base._version == version or values_hidden(base):
            return
        if not torch.equal(base.sum(), total):  # what DistributedDataParallel writes is the same base point
            raise RuntimeError(
                f"the base point of {self} was changed without its coordinates, as by torch's AveragedModel, whose "
                "average of coordinates at different base points is not the average of the weights; use "
                "mnvi.optim.AveragedModel, or rebase_every=None"
            )
        self._mark()

    def matrix(self, *originals: Tensor) -> Tensor:
        if isinstance(self.space, MatrixGroup):
            return self.space.translate(self.base, self.space.algebra(originals[0]))
        return self.space.retract(self.base, tangent_part(originals[0], self.base, self.space))

    def coordinates(self, matrix: Tensor) -> Originals:
        """Zeros, after the base point has become ``matrix``; what they are where that is the matrix already."""
        if matrix.dtype != self.base.dtype:
            raise ValueError(f"{self} is attached to a weight of {self.base.dtype}, got one of {matrix.dtype}")
        if self._coordinates:
            old = self._coordinates[0]
            if torch.equal(self.matrix(old), matrix):
                self._mark()
                return old.detach().clone()
            self._outdated = old, old._version  # until the coordinates are taken
        self.base.copy_(matrix)
        self._mark()
        return matrix.new_zeros(matrix.shape)

    def draw(
        self,
        size: Size,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Originals:
        if self.init == "haar":
            point = self.space.random(*size, generator=generator, dtype=dtype, device=device)
        else:
            point = exponential(draw_skew(self.init, size, generator)).to(device, dtype)
        return self.coordinates(point)

    def rows(self, x: Tensor, *originals: Tensor) -> Tensor:
        if isinstance(self.space, MatrixGroup) and getattr(self.space, "retraction", None) == "exp":
            return exponential_rows(x, self.space.algebra(originals[0]).mT) @ self.base.mT
        return super().rows(x, *originals)

    def stepped(self, parameter: Tensor, optimiser: Optimizer) -> None:
        """Count a step of the optimiser; at every K-th, :meth:`rebase`."""
        self.steps += 1
        if self.rebase_every is not None and self.steps % self.rebase_every == 0:
            self.rebase(parameter, optimiser)

    @renamed_argument("optimiser", "optimizer")
    @torch.no_grad()
    def rebase(self, coordinates: Tensor, optimizer: Optimizer | None = None) -> None:
        """Make the present matrix the base point and its coordinates 0; the matrix stays, up to rounding.

        Args:
            coordinates: V, the unconstrained parameter of the weight.
            optimizer: whose state of V is treated as ``optimizer_state`` says.
        """
        space, x = self.space, self.base
        group = isinstance(space, MatrixGroup)
        new = space.retract(x, x @ space.algebra(coordinates) if group else space.tangent(x, coordinates))
        self.rebases += 1
        if self.project_every is not None and self.rebases % self.project_every == 0:
            new = self.space.project(new)
        if optimizer is not None:
            self._carry(optimizer.state.get(coordinates, {}), new)
        self.base.copy_(new)
        self._mark()
        coordinates.zero_()

    def _carry(self, state: dict[str, Any], new: Tensor) -> None:
        """Bring the optimiser's state of V to the base point ``new``."""
        if self.optimizer_state == "reset":
            state.clear()
        elif self.optimizer_state == "transport" and not isinstance(self.space, MatrixGroup):
            for name in MOMENTA:
                if isinstance(moment := state.get(name), Tensor):
                    moment.copy_(self.space.transport(self.base, new, self.space.tangent(self.base, moment)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Trivialization":
        before = None if self.layout is None else self.base.dtype
        super()._apply(fn, recurse)
        self._refine(before)
        self._mark()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.layout is not None and isinstance(saved := state_dict.get(prefix + "base"), Tensor):
            self._refine(saved.dtype)
        self._mark()

    @torch.no_grad()
    def _refine(self, before: torch.dtype | None) -> None:
        """Project the base point where it holds more digits than before, ``before``."""
        base = self.base
        if before is None or base.is_meta or type(base) is not Tensor:  # without numbers
            return
        if torch.finfo(base.dtype).eps < torch.finfo(before).eps and base.isfinite().all():
            base.copy_(self.space.project(base))

    def get_extra_state(self) -> Tensor:
        self._refuse_foreign_base()  # nor is it to be saved
        return torch.tensor([self.steps, self.rebases])

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.rebases = state.tolist()

    def __dir__(self) -> list[str]:
        # Torch's tracer reads all that is listed, which would warn of the old name.
        return [name for name in super().__dir__() if name != "optimiser_state"]

    def extra_repr(self) -> str:
        every = f"rebase_every={self.rebase_every}, project_every={self.project_every}"
        return f"{self.space}, {every}, optimizer_state={self.optimizer_state!r}, {super().extra_repr()}"
