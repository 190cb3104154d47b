"""Stochastic gradient descent on manifolds."""

from typing import Any

from torch import Tensor
from torch.optim.sgd import sgd

from .._checks import number
from ..manifolds.base import Point
from .base import Options, RiemannianOptimizer, State, each


class RiemannianSGD(RiemannianOptimizer):
    r"""torch.optim.SGD for parameters on manifolds, with momentum, Nesterov and weight decay.

    With g the Riemannian gradient at x, R the retraction and T the transport,

        b ← μ b + (1 − τ) g (at first b ← g),   d = b (Nesterov: g + μ b),   y = R_x(−lr·d),   b ← T_{x→y} b,   x ← y.

    On Euclidean groups the steps are those of torch.optim.SGD, to the last bit (in bfloat16, to rounding).

    Args:
        params: parameters, named parameters, or groups such as ``{"params": [W], "manifold": Stiefel()}``; a group that
            names no manifold is Euclidean. The tensors of a pair, of the Kronecker manifold say, are a group.
        lr: learning rate, a number or a tensor of one.
        momentum: μ.
        dampening: τ.
        weight_decay: adds half of this times the squared Frobenius norm of the point to the loss; no effect on
            manifolds whose points have constant norm.
        nesterov: Nesterov momentum; needs ``momentum`` > 0 and no dampening.
        maximize: ascend instead.
        reproject_every: after so many steps of a point it is projected onto the manifold and its momentum onto the
            tangent space, against the drift of rounding errors; 0 or None never does.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is not a point of its group's manifold.

    Sources: Bonnabel, 'Stochastic gradient descent on Riemannian manifolds' (2013), arXiv:1111.5280; Absil, Mahony &
    Sepulchre, 'Optimization Algorithms on Matrix Manifolds' (2008), doi:10.1515/9781400830244.

    Example:
        >>> groups = [{"params": [model.kernel], "manifold": Stiefel(), "lr": 0.1}, {"params": model.head.parameters()}]
        >>> optimiser = RiemannianSGD(groups, lr=0.01, momentum=0.9)
    """

    moment = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        reproject_every: int | None = 100,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(
            params, options | {"nesterov": nesterov, "maximize": maximize, "reproject_every": reproject_every}
        )

    def check_options(self, options: Options) -> None:
        super().check_options(options)
        number("momentum", options["momentum"], 0)
        number("dampening", options["dampening"])
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def tangent_step(self, group: Options, x: Point, gradient: Point, state: State, count: int) -> tuple[Point, State]:
        momentum, dampening, direction = group["momentum"], group["dampening"], gradient
        if momentum != 0:
            buffer = gradient
            if state:
                damped = each(lambda g: (1 - dampening) * g, gradient) if dampening else gradient
                buffer = each(lambda g, b: g.add(b, alpha=momentum), damped, state[self.moment])
            direction = each(lambda g, b: g.add(b, alpha=momentum), gradient, buffer) if group["nesterov"] else buffer
            state = {self.moment: buffer}
        return each(lambda d: -group["lr"] * d, direction), state

    def euclidean_step(self, group: Options, params: list[Tensor], grads: list[Tensor]) -> None:
        buffers = [self.state.get(p, {}).get(self.moment) for p in params]
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
        # With Nesterov torch's foreach code writes into the gradients; without, it takes the same steps, sooner (in
        # bfloat16 with other roundings).
        sgd(params, grads, buffers, foreach=not group["nesterov"], **{name: group[name] for name in names})
        if group["momentum"] != 0:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p][self.moment] = buffer
