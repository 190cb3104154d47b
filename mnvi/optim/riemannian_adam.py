"""Adam on manifolds."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from .._checks import number
from ..manifolds.base import Point
from .base import Options, RiemannianOptimizer, State, each

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class RiemannianAdam(RiemannianOptimizer):
    r"""Adam for parameters on manifolds: its first moment a tangent vector, its second one number a point.

    With g the Riemannian gradient at x in step t, R the retraction and T the transport,

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) ‖g‖²ₓ,   d = m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε),
        y = R_x(−lr·d),   m ← T_{x→y} m,   x ← y.

    A point is a matrix: each matrix of a batch has its own v. On Euclidean groups a point is a coordinate, and the
    steps are those of torch.optim.Adam, to the last bit.

    Args:
        params: parameters, named parameters, or groups such as ``{"params": [W], "manifold": Stiefel()}``; a group that
            names no manifold is Euclidean. The tensors of a pair, of the Kronecker manifold say, are a group.
        lr: learning rate, a number or a tensor of one: about the length of a step in the manifold's metric.
        betas: (β₁, β₂).
        eps: ε.
        weight_decay: adds half of this times the squared Frobenius norm of the point to the loss; no effect on
            manifolds whose points have constant norm.
        amsgrad: take the largest v so far, as the convergence proof does.
        maximize: ascend instead.
        reproject_every: after so many steps of a point it is projected onto the manifold and its momentum onto the
            tangent space, against the drift of rounding errors; 0 or None never does.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is not a point of its group's manifold.

    On ``Stiefel(retraction="cayley")`` this is Riemannian Adam with exact Cayley steps, not the Cayley ADAM of Li, Li &
    Todorovic (2020), arXiv:2002.01113, which takes the second moment of the Euclidean gradient, a skew-symmetric
    momentum, a step of bounded length, and two fixed-point iterations for the Cayley transform.

    Source: Bécigneul & Ganea, 'Riemannian adaptive optimization methods' (2019), algorithm 1, arXiv:1810.00760.

    Example:
        >>> optimiser = RiemannianAdam([{"params": [q], "manifold": Orthogonal()}, {"params": others}], lr=1e-3)
    """

    moment = "exp_avg"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        reproject_every: int | None = 100,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, options | {"amsgrad": amsgrad, "maximize": maximize, "reproject_every": reproject_every}
        )

    def check_options(self, options: Options) -> None:
        super().check_options(options)
        number("eps", options["eps"], 0)
        check_betas(options["betas"])

    def tangent_step(self, group: Options, x: Point, gradient: Point, state: State, count: int) -> tuple[Point, State]:
        beta1, beta2 = group["betas"]
        square = group["manifold"].squared_norm(x, gradient)
        if not state:
            state = {"exp_avg": each(torch.zeros_like, gradient), "exp_avg_sq": each(torch.zeros_like, square)}
        new = {
            "exp_avg": each(lambda m, g: m.lerp(g, 1 - beta1), state["exp_avg"], gradient),
            "exp_avg_sq": each(lambda v, s: v.lerp(s, 1 - beta2), state["exp_avg_sq"], square),
        }
        v = new["exp_avg_sq"]
        if group["amsgrad"]:
            v = new["max_exp_avg_sq"] = each(torch.maximum, v, state.get("max_exp_avg_sq", v))
        rate = -group["lr"] / (1 - beta1**count)
        step = each(lambda m, v: m * (rate / ((v / (1 - beta2**count)).sqrt() + group["eps"])), new["exp_avg"], v)
        return step, new

    def euclidean_step(self, group: Options, params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "step" not in state:
                state["step"] = torch.tensor(0.0)
            for name in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
                if name not in state:
                    state[name] = torch.zeros_like(p)
        exp_avg, exp_avg_sq, largest = ([state[name] for state in states if name in state] for name in MOMENTS)
        beta1, beta2 = group["betas"]
        options = {name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
        steps = [state["step"] for state in states]
        adam(params, grads, exp_avg, exp_avg_sq, largest, steps, beta1=beta1, beta2=beta2, **options)


def check_betas(betas: Any) -> None:
    """Raise TypeError or ValueError unless ``betas`` are two numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)):
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
