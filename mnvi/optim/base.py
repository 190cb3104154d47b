"""Riemannian optimisers: checks, the loop over points, re-projection, saving and loading; a rule is a subclass."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._checks import instance, number, positive_int
from ..manifolds import Euclidean, Manifold
from ..manifolds.base import Point, tensors
from ._gradient_checks import check_gradients, first_non_finite

OPTIONAL = ("manifold", "reproject_every", "differentiable")  # in a saved group; torch adds the last by itself

Options = dict[str, Any]
State = dict[str, Point]
Move = tuple[tuple[Tensor, ...], Point, State]  # a point's tensors, where it goes, and the state that goes with it


class RiemannianOptimizer(Optimizer, ABC):
    """A torch optimiser whose parameter groups name a manifold; groups that name none are Euclidean.

    A step turns the gradient of every point into the Riemannian one, asks the rule for a tangent vector, retracts along
    it, and transports the momentum to the new point. Euclidean groups take torch's own step. Nothing is written
    before all gradients and all new points have been found finite, so that an error leaves parameters and state as
    they were; for that, the new points of a step and their state are held beside the old. ``.grad`` is only read.

    A rule is a subclass: :meth:`tangent_step` for points, :meth:`euclidean_step` for ordinary parameters.

    Args:
        params: parameters, named parameters or groups, as for any torch optimiser. On a manifold with
            ``num_tensors`` > 1 a group's ``"params"`` are the tensors of exactly one point, in order.
        options: of the groups that do not set their own: ``lr``, ``weight_decay``, ``maximize``, ``reproject_every``
            and the rule's.
    """

    moment: str  # the name of the state that is a tangent vector

    def __init__(self, params: Any, options: Options) -> None:
        options = {**options, "manifold": Euclidean()}
        self.check_options(options)
        super().__init__(params, options)

    def check_options(self, options: Options) -> None:
        """Raise TypeError or ValueError unless these options of a group are in range; a rule adds its own."""
        instance("manifold", options["manifold"], Manifold)
        for key, value in options.items():
            if isinstance(value, Manifold) and key != "manifold":
                raise TypeError(f"a group names its manifold by the key 'manifold', got {value} under {key!r}")
        lr = options["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"a tensor lr must have one element, got shape {tuple(lr.shape)}")
        number("lr", lr.item() if isinstance(lr, Tensor) else lr, 0)
        number("weight_decay", options["weight_decay"], 0)
        if options["reproject_every"]:
            positive_int("reproject_every", options["reproject_every"])

    @abstractmethod
    def tangent_step(self, group: Options, x: Point, gradient: Point, state: State, count: int) -> tuple[Point, State]:
        """The tangent vector at ``x`` to retract along in step number ``count``, and the new state."""

    @abstractmethod
    def euclidean_step(self, group: Options, params: list[Tensor], grads: list[Tensor]) -> None:
        """Update ordinary parameters and their state in place."""

    def add_param_group(self, param_group: Options) -> None:
        super().add_param_group(param_group)
        try:
            self.check_options(param_group)
            self._check_points(param_group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what ``closure``, which evaluates the loss again, returned.

        Raises:
            ValueError: a gradient is sparse, NaN or infinite, only a part of a point has one, or a step on a manifold
                overflows. All parameters and states are as before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        euclidean = [group for group in self.param_groups if _is_euclidean(group)]
        points = [(group, x) for group in self.param_groups if not _is_euclidean(group) for x in self._points(group)]
        check_gradients(
            [p for group in euclidean for p in group["params"]] + [p for _, x in points for p in x], self._name
        )
        moves = [self._move(group, x) for group, x in points]
        self._check_moves(moves)
        for move in moves:
            self._commit(*move)
        for group in euclidean:
            if params := [p for p in group["params"] if p.grad is not None]:
                self.euclidean_step(group, params, [p.grad for p in params])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As of any torch optimiser, with each manifold's repr in its place, so that ``weights_only=True`` loads it."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group["manifold"] = repr(group["manifold"])
        return state_dict

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" not in state:  # called by load_state_dict, with names where unpickling has the manifolds
            groups = list(zip(self.param_groups, state["param_groups"], strict=True))
            for i, (own, saved) in enumerate(groups):
                manifold = saved.get("manifold", repr(Euclidean()))
                if manifold != repr(own["manifold"]):
                    raise ValueError(f"group {i} is on {own['manifold']}, its saved state on {manifold}")
                if missing := [name for name in self.defaults if name not in saved and name not in OPTIONAL]:
                    raise ValueError(f"the saved state of group {i} has no {', '.join(missing)}: of another optimiser?")
                if saved.get("decoupled_weight_decay"):
                    raise ValueError(f"the saved state of group {i} is AdamW's; weight decay is not decoupled here")
            for own, saved in groups:
                saved["manifold"] = own["manifold"]
                saved.setdefault("reproject_every", own["reproject_every"])
        super().__setstate__(state)

    def _check_points(self, group: Options) -> None:
        manifold, params = group["manifold"], group["params"]
        if manifold.num_tensors not in (1, len(params)):
            raise ValueError(
                f"a group on {manifold} holds the {manifold.num_tensors} tensors of one point, got {len(params)}: "
                + ", ".join(map(self._name, params))
            )
        if manifold.num_tensors > 1 and len(set(params)) < len(params):
            raise ValueError(f"the tensors of a point on {manifold} must differ, got one of them twice")
        for point in [] if _is_euclidean(group) else _cut(group):
            try:
                manifold.check(_structure(point))
            except ValueError as error:
                raise ValueError(f"{', '.join(map(self._name, point))}: {error}") from None

    def _points(self, group: Options) -> list[tuple[Tensor, ...]]:
        """The points of a group that have a gradient."""
        points = _cut(group)
        for point in points:
            missing = [p for p in point if p.grad is None]
            if 0 < len(missing) < len(point):
                raise ValueError(f"a point on {group['manifold']} lacks the gradient of {self._name(missing[0])}")
        return [point for point in points if point[0].grad is not None]

    def _move(self, group: Options, point: tuple[Tensor, ...]) -> Move:
        manifold, x = group["manifold"], _structure(point)
        states = [self.state.get(p, {}) for p in point]
        state = {name: _structure(tuple(each[name] for each in states)) for name in states[0] if name != "step"}
        count = int(states[0].get("step", 0)) + 1
        try:
            step, new = self.tangent_step(group, x, _gradient(group, x), state, count)
            y = manifold.retract(x, step)
            if (moment := new.get(self.moment)) is not None:
                moment = manifold.transport(x, y, moment)
            if group["reproject_every"] and count % group["reproject_every"] == 0:
                y = manifold.project(y)
                moment = None if moment is None else manifold.tangent(y, moment)
        except (ValueError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            raise ValueError(self._overflow(point)) from error
        return point, y, new if moment is None else {**new, self.moment: moment}

    def _check_moves(self, moves: list[Move]) -> None:
        results = [(point, t) for point, y, new in moves for value in (y, *new.values()) for t in tensors(value)]
        culprit = first_non_finite([t for _, t in results])
        if culprit is not None:
            raise ValueError(self._overflow(results[culprit][0]))

    def _overflow(self, point: tuple[Tensor, ...]) -> str:
        return f"the step of {self._name(point[0])} is not finite: its gradient or learning rate is too large"

    def _commit(self, point: tuple[Tensor, ...], y: Point, new: State) -> None:
        for i, p in enumerate(point):
            p.copy_(tensors(y)[i])
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            for name, value in new.items():
                if name in state:
                    state[name].copy_(tensors(value)[i])
                else:
                    state[name] = tensors(value)[i].clone()  # the first momentum may be the gradient itself

    def _name(self, parameter: Tensor) -> str:
        for i, group in enumerate(self.param_groups):
            for j, p in enumerate(group["params"]):
                if p is parameter:
                    name = repr(group["param_names"][j]) if "param_names" in group else f"{j} of group {i}"
                    return f"parameter {name}, shape {tuple(p.shape)}"
        raise KeyError("no parameter of this optimiser")


def each(function: Callable[..., Tensor], *points: Point) -> Point:
    """``function`` of the tensors of points, one of each, in the structure of the points."""
    return _structure(tuple(function(*parts) for parts in zip(*map(tensors, points), strict=True)))


def _structure(parts: tuple[Tensor, ...]) -> Point:
    return parts[0] if len(parts) == 1 else parts


def _cut(group: Options) -> list[tuple[Tensor, ...]]:
    params = group["params"]
    return [(p,) for p in params] if group["manifold"].num_tensors == 1 else [tuple(params)]


def _is_euclidean(group: Options) -> bool:
    return type(group["manifold"]) is Euclidean


def _gradient(group: Options, x: Point) -> Point:
    """The Riemannian gradient of the loss plus ½·weight_decay·‖x‖²."""
    manifold = group["manifold"]
    g = each(lambda p: -p.grad if group["maximize"] else p.grad, x)
    if group["weight_decay"] and not manifold.constant_norm:
        g = each(lambda g, n: g.add(n, alpha=group["weight_decay"]), g, manifold.norm_grad(x))
    return manifold.rgrad(x, g)
