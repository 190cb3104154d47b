"""Natural-gradient descent for matrix-normal posteriors: steps measured by the distribution they change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import positive_float, positive_int
from ..layers import BayesianLayer
from ..module import bayesian_layers
from .checks import check_gradients


class NaturalGradient(Optimizer):
    """Steps of the posteriors MN(M, U = AAᵀ, V = BBᵀ) of a model in the geometry of the Fisher information.

    **Derivation.** The Fisher metric of MN(M, U, V), M of shape (n, p), is

        ds² = tr(U⁻¹dM V⁻¹dMᵀ) + (p/2)‖S_U‖² + (n/2)‖S_V‖² + tr S_U · tr S_V,   dU = −A S_U Aᵀ, dV = −B S_V Bᵀ.

    The steepest descent of a loss (Amari, 1998) is therefore dM = −lr·U ∇_M V and, but for the last term,
    S_U = lr·H_U/p with H_U = Aᵀ∇_A, which is symmetric, and S_V = lr·H_V/n. The last term couples the scales of U and
    V, which are one scale of the posterior: the step of that scale is shared out, not made twice. Factors move by
    A ← A·chol(R⁻¹), R = I + S + ½S² (:mod:`mnvi.covariance.contraction`), triangular and invertible after every step.
    Then the mean moves with the new U and V, and the gauge (cA, B/c) is fixed. Means are stepped in whitened
    coordinates, ξ = Aᵀ∇_M B, where the metric is the identity; all momentum is kept in whitened coordinates.

    For a conjugate model (linear regression with known noise) ``lr=1`` comes within 0.01 nat of the evidence in about
    ten steps. With minibatches, rates of 0.02 to 0.2 average the noise; let a scheduler end them near 0.

    Stepped are the means and covariances of layers whose family is ``MatrixNormal`` or ``Diagonal``, with ``Dense``,
    ``Diagonal`` and ``BlockDiagonal`` factors and ``Kronecker`` products of those. All else (biases, other layers,
    ``LowRank`` factors, the family ``MatrixNormalPlusDiagonal``) is for another optimiser: :func:`other_parameters`.
    There are two parameter groups, named "means" and "covariances", with the options lr, momentum and second_moment.

    Args:
        model: a module with Bayesian layers.
        lr: step size of the means; 1 is a full step.
        momentum: β in [0, 1) of an exponential moving average of the means' steps, corrected as Adam's is, so that
            ``lr`` keeps its meaning.
        second_moment: None for the plain natural gradient; or the rate in (0, 1), such as 0.99, of a moving average v
            of squared whitened gradients. The mean's step is then ξ/(1 + √v), shorter where ξ is large, which is noise.
        covariance_lr: step size of the covariances; ``None`` is ``lr``.
        covariance_momentum: the same average for the covariances' steps.
        num_data: what the loss was divided by: 1 for a loss in nats for all data, the number of training examples for a
            loss in nats per example, such as that of :class:`mnvi.ELBO`.
        every: covariances are stepped at every so many steps, by the mean of the gradients since the last time.

    Raises:
        TypeError, ValueError: an option is out of range, or the model has nothing to step.

    Sources: Amari (1998), 'Natural gradient works efficiently in learning'; Khan & Lin (2017), 'Conjugate-computation
    variational inference'; Zhang, Sun, Duvenaud & Grosse (2018), 'Noisy natural gradient as variational inference';
    Lin et al. (2023), 'Simplifying momentum-based positive-definite submanifold optimization' (inverse-free Kronecker
    updates in Lie-algebra coordinates).

    Example:
        >>> natural = mnvi.optim.NaturalGradient(model, lr=0.1, momentum=0.9, second_moment=0.99, num_data=60_000)
        >>> adam = torch.optim.Adam(mnvi.optim.other_parameters(model), lr=1e-3)
        >>> loss.backward()
        >>> natural.step(), adam.step()
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        *,
        momentum: float = 0.0,
        second_moment: float | None = None,
        covariance_lr: float | None = None,
        covariance_momentum: float = 0.0,
        num_data: int = 1,
        every: int = 1,
    ) -> None:
        positive_float("lr", lr)
        covariance_lr = lr if covariance_lr is None else positive_float("covariance_lr", covariance_lr)
        _rate("momentum", momentum)
        _rate("covariance_momentum", covariance_momentum)
        if second_moment is not None:
            _rate("second_moment", second_moment)
        self.num_data, self.every = positive_int("num_data", num_data), positive_int("every", every)
        self._layers = list(_natural_layers(model))
        if not self._layers:
            raise ValueError("the model has no layer with a MatrixNormal or Diagonal posterior; see mnvi.to_bayesian")
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        means = {"params": [layer.weight for layer in self._layers], "name": "means"}
        means |= {"lr": lr, "momentum": momentum, "second_moment": second_moment}
        covariances = {"params": [p for layer in self._layers for p in _covariance_parameters(layer)]}
        covariances |= {"name": "covariances", "lr": covariance_lr, "momentum": covariance_momentum}
        super().__init__([means, covariances] if covariances["params"] else [means], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step from the gradients of the loss and return what ``closure``, if given, returned.

        A layer without gradients is passed over.

        Raises:
            ValueError: a gradient is sparse, NaN or infinite; all parameters and states are as before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_gradients([p for group in self.param_groups for p in group["params"]], self._name)
        for layer in self._layers:
            gradient, posterior = layer.weight.grad, layer.posterior
            # The gradient is whitened by the factors at which it was taken, the step made by the new ones.
            whitened = None if gradient is None else posterior.whitened(gradient.flatten(1) * self.num_data)
            self._step_covariance(layer)
            if whitened is not None:
                self._step_mean(layer, whitened)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("NaturalGradient belongs to the layers of its model and cannot be copied: use state_dict()")

    def _step_covariance(self, layer: BayesianLayer) -> None:
        parameters = _covariance_parameters(layer)
        if not parameters or any(p.grad is None for p in parameters) or not self._accumulate(parameters):
            return
        parts, group = layer.posterior.natural_parts(), self.param_groups[1]
        for part, count in parts:
            totals = [self.state[p].pop("total") for p in part.parameters()]
            step = part.whitened_gradient(*totals) * (self.num_data / (self.every * count))
            if len(parts) > 1:
                scale = step if step.dim() == 1 else step.diagonal(dim1=-2, dim2=-1)
                scale.sub_(scale.sum() / part.size * (1 - 1 / len(parts)))  # its share of the common scale's step
            state = self.state[next(part.parameters())]
            part.contract_(group["lr"] * _average(state, "velocity", step, group["momentum"]))
        layer.posterior.balance_()

    def _accumulate(self, parameters: list[nn.Parameter]) -> bool:
        """Add the gradients to their sums; whether it is time for a step."""
        for p in parameters:
            state, gradient = self.state[p], p.grad
            assert gradient is not None
            state["total"] = state["total"].add_(gradient) if "total" in state else gradient.clone()
        first = self.state[parameters[0]]
        first["accumulated"] = (first.get("accumulated", 0) + 1) % self.every
        return first["accumulated"] == 0

    def _step_mean(self, layer: BayesianLayer, whitened: Tensor) -> None:
        group, state = self.param_groups[0], self.state[layer.weight]
        step = _average(state, "velocity", whitened, group["momentum"])
        if group["second_moment"] is not None:
            square = _average(state, "square", whitened.square(), group["second_moment"])
            step = step / (1 + square.sqrt())
        change = layer.posterior.deviation((step,)).view_as(layer.weight)
        if layer.weight_mask is not None:
            change = change * layer.weight_mask
        layer.weight.sub_(change, alpha=group["lr"])

    def _name(self, parameter: Tensor) -> str:
        return next(name for p, name in self._names.items() if p is parameter)


def other_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``model`` that :class:`NaturalGradient` leaves to another optimiser, in the model's order."""
    own = {p for layer in _natural_layers(model) for p in (layer.weight, *_covariance_parameters(layer))}
    return [p for p in model.parameters() if p not in own]


def _natural_layers(model: nn.Module):
    return (layer for _, layer in bayesian_layers(model) if layer.posterior.natural)


def _covariance_parameters(layer: BayesianLayer) -> list[nn.Parameter]:
    return [p for part, _ in layer.posterior.natural_parts() for p in part.parameters()]


def _average(state: dict[str, Any], name: str, value: Tensor, rate: float) -> Tensor:
    """The exponential moving average of ``value`` kept in ``state``, corrected for its start at 0; itself at rate 0."""
    if rate == 0:
        return value
    count = state[f"{name}_steps"] = state.get(f"{name}_steps", 0) + 1
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].lerp_(value, 1 - rate) / (1 - rate**count)


def _rate(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
