"""Stochastic Riemannian coordinate descent on the orthogonal group: every step rotates a few pairs of columns."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._checks import number, one_of
from ..linalg.givens import exponential_, rotate_
from ..manifolds import Euclidean, Orthogonal, SpecialOrthogonal
from ..manifolds.base import Point
from ._gradient_checks import check_gradients, first_non_finite
from ._matching import block_size, check_block, numbers, select
from .base import Options, RiemannianOptimizer, State
from .riemannian_adam import RiemannianAdam, check_betas
from .riemannian_sgd import RiemannianSGD

MOMENTS = ("turns", "exp_avg", "exp_avg_sq")  # of the Adam-like rule, the first how often a coordinate was chosen


class CoordinateDescent(RiemannianOptimizer):
    r"""Coordinate descent for orthogonal matrices: W ← W·exp(Σ θᵢHᵢ) over a few coordinates i = (j, l) of so(d).

    With the orthonormal basis H_jl = (e_j e_lᵀ − e_l e_jᵀ)/√2 of the skew-symmetric matrices, and G the Euclidean
    gradient, the partial derivatives and the plain step are

        gᵢ = ⟨G, W Hᵢ⟩ = (w_jᵀg_l − w_lᵀg_j)/√2,   θᵢ = −lr·gᵢ,

    and W exp(θᵢHᵢ) turns the columns w_j and w_l by the angle θᵢ/√2, a Givens rotation. The chosen pairs are disjoint,
    a matching, so that their rotations commute and are done at once, in O(d) each.

    - ``selection="uniform"``: random pairs. They and the columns of G are all that is read, so a step of one pair is
      O(d), and NaN elsewhere in G goes unnoticed.
    - ``selection="gauss-southwell"``: the largest |gᵢ|, for which WᵀG is formed once; of several pairs the greedy
      matching, that is the largest |gᵢ| whose columns are free, and gᵢ is not 0.

    Momentum and the Adam-like rule keep moments of gᵢ for every coordinate,

        b ← μb + gᵢ,  θᵢ = −lr·b;   m ← β₁m + (1 − β₁)gᵢ,  v ← β₂v + (1 − β₂)gᵢ²,  θᵢ = −lr·m̂/(√v̂ + ε).

    They are coordinates in the frame {W Hᵢ}, which goes with W: under W ← WR the same numbers are the moment's left
    translation, an isometry, so there is nothing to transport. (In a fixed frame each rotation would mix all moments of
    its two columns.) Only those of the chosen coordinates are updated, with m̂ and v̂ corrected for how often the
    coordinate itself was chosen, so these rules are O(d) too; the others wait with the gradients of their last turn.

    Groups that name no manifold are Euclidean and take torch's SGD, or its Adam where ``betas`` are given. A batch of
    matrices, shape (..., d, d), is stepped one matrix after the other. A parameter without a gradient is passed over.

    Args:
        params: parameters, named parameters, or groups such as ``{"params": [W], "manifold": Orthogonal()}``; the
            manifold is ``Orthogonal`` or ``SpecialOrthogonal`` (its retraction is not used) or none. A group may set
            any of the options below but ``generator``.
        lr: learning rate, a number or a tensor of one.
        selection: ``"uniform"`` or ``"gauss-southwell"``.
        block: the number of pairs of a step as an int, at most d/2; or as a float in (0, 1] the fraction of the
            d(d − 1)/2 coordinates, rounded, at least one pair and at most d/2.
        disjoint: False lets pairs share columns and ``block`` reach all d(d − 1)/2 coordinates, where the step is that
            of Riemannian gradient descent; by the matrix exponential, in O(d³).
        momentum: μ.
        betas: (β₁, β₂) for the Adam-like rule, without ``momentum``.
        eps: ε.
        weight_decay: for Euclidean groups; orthogonal matrices have constant norm.
        maximize: ascend instead.
        reproject_every: after so many steps of a parameter it is projected onto the manifold, in O(d³), against the
            drift of rounding errors; None or 0 never does. Without it ‖WᵀW − I‖ was 1.7·10⁻⁴ after 10⁵ steps of all
            pairs of a random matching in float32, d = 190, and grew with the root of the number of steps.
        generator: of the random pairs, torch's own if None. Its state is in ``state_dict()``, so that a resumed run
            draws as one that never stopped; torch's own is the user's to save.

    Raises:
        TypeError, ValueError: an option is out of range, a manifold is another one, or a parameter is not a point of
            its group's manifold.

    Source: Massart & Abrol, 'Coordinate descent on the orthogonal group for recurrent neural network training' (2022),
    algorithm 2, arXiv:2108.00051. They take blocks that are not disjoint; the matchings and the rules with moments are
    additions.

    Example:
        >>> groups = [{"params": [point], "manifold": Orthogonal()}, {"params": others}]
        >>> optimiser = CoordinateDescent(groups, lr=2e-4, selection="gauss-southwell", block=0.005)
    """

    moment = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        selection: str = "uniform",
        block: int | float = 1,
        disjoint: bool = True,
        momentum: float = 0,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        maximize: bool = False,
        reproject_every: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
        self.generator = generator
        options = {"lr": lr, "selection": selection, "block": block, "disjoint": disjoint, "momentum": momentum}
        options |= {"eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        if betas is not None:  # torch's schedules of momentum turn to betas where the defaults have them
            options["betas"] = betas
        super().__init__(params, options | {"reproject_every": reproject_every})

    def check_options(self, options: Options) -> None:
        super().check_options(options)
        if not isinstance(options["manifold"], (Euclidean, Orthogonal, SpecialOrthogonal)):
            raise TypeError(
                f"CoordinateDescent steps points of Orthogonal() and SpecialOrthogonal(), got {options['manifold']}; "
                "RiemannianSGD and RiemannianAdam step others"
            )
        one_of("selection", options["selection"], ("uniform", "gauss-southwell"))
        check_block(options["block"])
        if not isinstance(options["disjoint"], bool):
            raise TypeError(f"disjoint must be True or False, got {options['disjoint']!r}")
        number("momentum", options["momentum"], 0)
        number("eps", options["eps"], 0)
        if options.get("betas") is not None:
            check_betas(options["betas"])
            if options["momentum"]:
                raise ValueError(f"betas {options['betas']} replace momentum, got momentum {options['momentum']} too")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what ``closure``, which evaluates the loss again, returned.

        Raises:
            ValueError: a gradient is sparse, or NaN or infinite where it is read, or a step overflows. All parameters,
                all state and the generator are as before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        euclidean = [(group, params) for group, params in active if isinstance(group["manifold"], Euclidean)]
        points = [(group, p) for group, ps in active if not isinstance(group["manifold"], Euclidean) for p in ps]
        check_gradients([p for _, params in euclidean for p in params], self._name)
        for plan in self._plans(points):
            self._take(plan)
        for group, p in points:
            self._count(group, p)
        for group, params in euclidean:
            if params:
                self.euclidean_step(group, params, [cast(Tensor, p.grad) for p in params])
        return loss

    def tangent_step(self, group: Options, x: Point, gradient: Point, state: State, count: int) -> tuple[Point, State]:
        """The step from the partial derivatives ``gradient``; it, ``state`` and the result are for chosen coordinates.

        All have the shape (k,); neither ``x`` nor ``count`` matters.
        """
        gradient, moments = cast(Tensor, gradient), cast(dict[str, Tensor], state)
        if group.get("betas"):
            beta1, beta2 = group["betas"]
            new: dict[str, Any] = {"turns": moments["turns"] + 1}
            new["exp_avg"] = m = moments["exp_avg"].lerp(gradient, 1 - beta1)
            new["exp_avg_sq"] = v = moments["exp_avg_sq"].lerp(gradient.square(), 1 - beta2)
            m, v = m / (1 - beta1 ** new["turns"]), v / (1 - beta2 ** new["turns"])
            return -group["lr"] * m / (v.sqrt() + group["eps"]), new
        if group["momentum"]:
            buffer = group["momentum"] * moments[self.moment] + gradient
            return -group["lr"] * buffer, {self.moment: buffer}
        return -group["lr"] * gradient, {}

    def euclidean_step(self, group: Options, params: list[Tensor], grads: list[Tensor]) -> None:
        rule = cast(Any, RiemannianAdam if group.get("betas") else RiemannianSGD)
        options = {"dampening": 0, "nesterov": False, "amsgrad": False, **group}
        rule.euclidean_step(self, options, params, grads)

    def state_dict(self) -> dict[str, Any]:
        """As of any torch optimiser, with each manifold's repr in its place, and the state of the generator if any."""
        state_dict = super().state_dict()
        return state_dict if self.generator is None else {**state_dict, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave; this optimiser needs a generator where that one had one."""
        saved = state_dict.get("generator")
        if saved is not None and self.generator is None:
            raise ValueError("the saved state has that of a generator: give CoordinateDescent a generator to load it")
        super().load_state_dict(state_dict)
        if saved is not None and self.generator is not None:
            self.generator.set_state(saved.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "generator": self.generator}

    def _check_points(self, group: Options) -> None:
        super()._check_points(group)
        for p in [] if isinstance(group["manifold"], Euclidean) else group["params"]:
            try:
                block_size(group["block"], p.shape[-1], group["disjoint"])
            except ValueError as error:
                raise ValueError(f"{self._name(p)}: {error}") from None

    def _plans(self, points: list[tuple[Options, Tensor]]) -> "list[_Plan]":
        """What the step does to each matrix; nothing is written but the generator, which an error puts back."""
        generator = torch.default_generator if self.generator is None else self.generator
        before = generator.get_state()
        try:
            plans = [self._plan(group, p, i, generator) for group, p in points for i in _matrices(p)]
            self._check_plans(plans)
        except ValueError:
            generator.set_state(before)
            raise
        return plans

    def _plan(self, group: Options, p: Tensor, index: tuple[int, ...], generator: torch.Generator) -> "_Plan":
        grad, tables, state = cast(Tensor, p.grad), self.state.get(p, {}), {}
        if grad.layout != torch.strided:
            raise ValueError(f"the gradient of {self._name(p)} is sparse; it must be dense")
        d, disjoint, uniform = p.shape[-1], group["disjoint"], group["selection"] == "uniform"
        size = block_size(group["block"], d, disjoint)
        pairs, derivatives = select(p[index], grad[index], size, generator, uniform=uniform, disjoint=disjoint)
        for name in MOMENTS if group.get("betas") else (self.moment,) * bool(group["momentum"]):
            table = tables.get(name)
            state[name] = torch.zeros_like(derivatives) if table is None else table[index][numbers(pairs, d)]
        gradient = -derivatives if group["maximize"] else derivatives
        moved = self.tangent_step(group, p[index], gradient, state, tables.get("step", 0) + 1)
        theta, new = cast(tuple[Tensor, dict[str, Tensor]], moved)
        return _Plan(p, index, disjoint, pairs, derivatives, theta.to(p.dtype), new)

    def _check_plans(self, plans: "list[_Plan]") -> None:
        results = [(plan, t) for plan in plans for t in (plan.derivatives, plan.theta, *plan.new.values())]
        culprit = first_non_finite([t for _, t in results])
        if culprit is not None:
            plan, values = results[culprit]
            if values is plan.derivatives:
                raise ValueError(f"the gradient of {self._name(plan.p)} is not finite, or its product with it is not")
            raise ValueError(self._overflow((plan.p,)))

    def _take(self, plan: "_Plan") -> None:
        p, index, pairs, tables = plan.p, plan.index, plan.pairs, self.state[plan.p]
        (rotate_ if plan.disjoint else exponential_)(p[index], pairs, plan.theta)
        d = p.shape[-1]
        for name, values in plan.new.items():
            if name not in tables:
                tables[name] = p.new_zeros(*p.shape[:-2], d * (d - 1) // 2)
            tables[name][index][numbers(pairs, d)] = values

    def _count(self, group: Options, p: Tensor) -> None:
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        if group["reproject_every"] and state["step"] % group["reproject_every"] == 0:
            p.copy_(group["manifold"].project(p))


class _Plan(NamedTuple):
    """The step of the matrix p[index]: along ``theta`` in the coordinates of ``pairs``."""

    p: Tensor
    index: tuple[int, ...]
    disjoint: bool
    pairs: Tensor  # shape: (2, k)
    derivatives: Tensor  # shape: (k,)
    theta: Tensor  # shape: (k,)
    new: dict[str, Tensor]  # moments, shape: (k,)


def _matrices(p: Tensor) -> product:
    """The indices of the matrices of a batch; one that is empty for a single matrix."""
    return product(*map(range, p.shape[:-2]))
