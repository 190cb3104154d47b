"""Natural-gradient descent for matrix-normal posteriors: steps measured by the distribution they change."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._checks import instance, number, positive_float, positive_int
from ..layers import BayesianLayer, bayesian_layers
from ._gathering import gathered
from ._gradient_checks import check_gradients, first_non_finite


class NaturalGradient(Optimizer):
    """Steps of the posteriors MN(M, U = AAᵀ, V = BBᵀ) of a model in the geometry of the Fisher information.

    **Derivation.** The Fisher metric of MN(M, U, V), M of shape (n, p), is

        ds² = tr(U⁻¹dM V⁻¹dMᵀ) + (p/2)‖S_U‖² + (n/2)‖S_V‖² + tr S_U · tr S_V,   dU = −A S_U Aᵀ, dV = −B S_V Bᵀ.

    The steepest descent of a loss (Amari, 1998) is therefore dM = −lr·U ∇_M V and, but for the last term,
    S_U = lr·H_U/p with H_U = Aᵀ∇_A, which is symmetric, and S_V = lr·H_V/n. The last term couples the scales of U and
    V, which are one scale of the posterior: the step of that scale is shared out, not made twice. Factors move by
    A ← A·chol(R⁻¹), R = I + S + ½S² (:mod:`mnvi.linalg.contraction`), triangular and invertible after every step.
    Means are stepped in whitened coordinates, where the metric is the identity: the gradient becomes ξ = Aᵀ∇_M B with
    the factors at which it was taken, the step A ξ Bᵀ with the new ones. Then the gauge (cA, B/c) is fixed. All
    momentum is kept in whitened coordinates.

    For a conjugate model (linear regression with known noise) ``lr=1`` comes within 0.01 nat of the evidence in about
    ten steps. With minibatches the rates must average noise: for some thousand steps start with lr=0.3, momentum=0.9,
    second_moment=0.99 and covariance_lr=0.08, or with 0.03 for both rates without second_moment, and let a scheduler
    end them near 0. A mean that runs away, or a gradient that is not finite, asks for second_moment, or else for rates
    ten times smaller; a loss that hardly moves, for ``num_data``.

    Stepped are the means and covariances of layers whose family is ``MatrixNormal`` or ``Diagonal``, with ``Dense``,
    ``Diagonal`` and ``BlockDiagonal`` factors and ``Kronecker`` products of those. All else (biases, other layers,
    ``LowRank`` factors, the family ``MatrixNormalPlusDiagonal``) is for another optimiser: :func:`other_parameters`. A
    family or factor of one's own is stepped where it has ``natural_parts`` (:class:`mnvi.covariance.base.NaturalPart`).
    There are two parameter groups, named "means" and "covariances", each with its own lr and momentum.

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
        TypeError, ValueError: an option is out of range, the model has nothing to step, two of its layers share a
            parameter (share the layer instead), or only a part of a factor is frozen.

    Sources: Amari (1998), 'Natural gradient works efficiently in learning', doi:10.1162/089976698300017746; Khan & Lin
    (2017), 'Conjugate-computation variational inference', arXiv:1703.04265; Zhang, Sun, Duvenaud & Grosse (2018),
    'Noisy natural gradient as variational inference', arXiv:1712.02390; Lin et al. (2023), 'Simplifying momentum-based
    positive-definite submanifold optimization', arXiv:2302.09738 (inverse-free Kronecker updates in Lie-algebra
    coordinates).

    Example:
        >>> natural = mnvi.optim.NaturalGradient(
        ...     model, lr=0.3, momentum=0.9, second_moment=0.99, covariance_lr=0.08, num_data=60_000
        ... )
        >>> adam = torch.optim.Adam(mnvi.optim.other_parameters(model), lr=1e-3)
        >>> natural.zero_grad(), adam.zero_grad()
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
        instance("model", model, nn.Module)
        positive_float("lr", lr)
        covariance_lr = lr if covariance_lr is None else positive_float("covariance_lr", covariance_lr)
        number("momentum", momentum, 0, 1, below=True)
        number("covariance_momentum", covariance_momentum, 0, 1, below=True)
        if second_moment is not None:
            number("second_moment", positive_float("second_moment", second_moment), 0, 1, below=True)
        self._layers = list(_natural_layers(model))
        if not self._layers:
            raise ValueError("the model has no layer with a MatrixNormal or Diagonal posterior; see mnvi.to_bayesian")
        _check_means(model)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        _check_layers(self._layers, self._name)
        means = {"params": [layer.weight for layer in self._layers], "name": "means", "lr": lr, "momentum": momentum}
        means |= {"second_moment": second_moment, "num_data": positive_int("num_data", num_data)}
        covariances = {"params": [p for layer in self._layers for p in _covariance_parameters(layer)]}
        covariances |= {"name": "covariances", "lr": covariance_lr, "momentum": covariance_momentum}
        covariances |= {"num_data": num_data, "every": positive_int("every", every)}
        groups = [means, covariances] if covariances["params"] else [means]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if param_group.get("name") not in ("means", "covariances"):
            raise ValueError("NaturalGradient steps the posteriors of its model only; see mnvi.optim.other_parameters")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step from the gradients of the loss and return what ``closure``, if given, returned.

        A mean or a factor without gradients is passed over.

        Raises:
            ValueError: a gradient is sparse, NaN or infinite, only some parameters of a factor have one, the model has
                other parameters than at the start, or the step overflows. All parameters and states are as before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._check(parameters)
        # State tensors are replaced, never written to, so that their old ones can be put back.
        states = {p: dict(state) for p, state in self.state.items()}
        values = {p: p.clone() for layer in self._layers for p in (layer.weight, *layer.posterior.parameters())}
        try:
            for layer in self._layers:
                self._step_layer(layer)
            culprit = first_non_finite(parameters)
            if culprit is not None:
                raise ValueError(f"it makes {self._name(parameters[culprit])} infinite")
        except (ValueError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            for p, value in values.items():
                p.copy_(value)
            self.state.clear()
            self.state.update(states)
            raise ValueError(f"the step overflows: {error}{self._advice()}") from error
        return loss

    def _check(self, parameters: list[nn.Parameter]) -> None:
        current = {p for layer in self._layers for p in (layer.weight, *_covariance_parameters(layer))}
        if current != {*parameters}:
            raise ValueError("the model's parameters were replaced since NaturalGradient was made; make it anew")
        check_gradients(parameters, self._name, self._advice())
        for layer in self._layers:
            for part, _ in layer.posterior.natural_parts():
                missing = [p for p in part.parameters() if p.grad is None]
                if 0 < len(missing) < len(list(part.parameters())):
                    raise ValueError(f"{self._name(missing[0])} has no gradient, but others of its factor have")

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("NaturalGradient belongs to the layers of its model and cannot be copied: use state_dict()")

    def _step_layer(self, layer: BayesianLayer) -> None:
        gradient, group = layer.weight.grad, self._group("means")
        # The gradient is whitened by the factors at which it was taken, the step made by the new ones.
        if gradient is not None:
            gradient = layer.posterior.whitened(gradient.flatten(1) * float(group["num_data"]))
        self._step_covariance(layer)
        if gradient is not None:
            self._step_mean(layer, gradient, group)

    def _step_covariance(self, layer: BayesianLayer) -> None:
        active = [(part, k) for part, k in layer.posterior.natural_parts() if next(part.parameters()).grad is not None]
        due = [(part, k) for part, k in active if self._accumulate(list(part.parameters()))]
        for part, count in due:
            group = self._group("covariances")
            totals = [self.state[p].pop("total") for p in part.parameters()]
            step = part.whitened_gradient(*totals) * (float(group["num_data"]) / (group["every"] * count))
            if len(due) > 1:
                scale = step if step.dim() == 1 else step.diagonal(dim1=-2, dim2=-1)
                scale.sub_(scale.sum() / part.size * (1 - 1 / len(due)))  # its share of the common scale's step
            state = self.state[next(part.parameters())]
            part.contract_(group["lr"] * _average(state, "velocity", step, group["momentum"]))
        if due and all(p.requires_grad for p in layer.posterior.parameters()):
            layer.posterior.balance_()

    def _accumulate(self, parameters: list[nn.Parameter]) -> bool:
        """Add the gradients to their sums; whether it is time for a step."""
        for p in parameters:
            state, gradient = self.state[p], p.grad
            assert gradient is not None
            state["total"] = state["total"] + gradient if "total" in state else gradient.clone()
        first = self.state[parameters[0]]
        first["accumulated"] = (first.get("accumulated", 0) + 1) % self._group("covariances")["every"]
        return first["accumulated"] == 0

    def _step_mean(self, layer: BayesianLayer, whitened: Tensor, group: dict[str, Any]) -> None:
        state = self.state[layer.weight]
        step = _average(state, "velocity", whitened, group["momentum"])
        if group["second_moment"] is not None:
            square = _average(state, "square", whitened.square(), group["second_moment"])
            step = step / (1 + square.sqrt())
        change = layer.masked(layer.posterior.unwhitened(step).view_as(layer.weight))
        layer.weight.sub_(change, alpha=group["lr"])

    def _advice(self) -> str:
        """What helps where the means or covariances run away: the end of an error message."""
        means, given = self._group("means"), [f"{group['name']} {group['lr']:g}" for group in self.param_groups]
        shorter = "" if means["second_moment"] else "second_moment=0.99, which shortens steps of large gradients, or "
        return (
            f"; nothing was changed. If inputs and targets are finite, what helps is {shorter}ten times smaller rates "
            f"(now {', '.join(given)}) and larger batches; num_data={means['num_data']} must be what the loss was "
            "divided by"
        )

    def _group(self, name: str) -> dict[str, Any]:
        return next(group for group in self.param_groups if group["name"] == name)

    def _name(self, parameter: Tensor) -> str:
        return self._names[parameter]


def other_parameters(model: nn.Module | Sequence[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of ``model`` that :class:`NaturalGradient` leaves to another optimiser, in the model's order.

    The list is empty where it steps them all; there is no need of another optimiser then, and torch's refuse it.

    Args:
        model: the model, or a list of it and what else trains, as for :func:`parameter_groups`: a likelihood, an ELBO
            that holds one, single parameters.
    """
    model = gathered(model)
    own = {p for layer in _natural_layers(model) for p in (layer.weight, *_covariance_parameters(layer))}
    return [p for p in model.parameters() if p not in own]


def _natural_layers(model: nn.Module) -> Iterator[BayesianLayer]:
    return (layer for _, layer in bayesian_layers(model) if layer.posterior.provides("natural_parts"))


def _covariance_parameters(layer: BayesianLayer) -> list[nn.Parameter]:
    return [p for part, _ in layer.posterior.natural_parts() for p in part.parameters()]


def _check_layers(layers: list[BayesianLayer], name: Callable[[Tensor], str]) -> None:
    seen = set()
    for layer in layers:
        missing = [method for method in ("whitened", "unwhitened") if not layer.posterior.provides(method)]
        if missing:
            family = type(layer.posterior).__name__
            raise ValueError(f"{family} has natural_parts() but no {missing[0]}(), which natural gradient needs")
        for p in (layer.weight, *_covariance_parameters(layer)):
            if p in seen:
                raise ValueError(f"two layers share {name(p)}, which would be stepped twice; share the layer instead")
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"natural gradient needs float32 or float64 parameters, {name(p)} is {p.dtype}")
            seen.add(p)
        for part, _ in layer.posterior.natural_parts():
            if len({p.requires_grad for p in part.parameters()}) > 1:
                first = next(part.parameters())
                raise ValueError(f"the factor of {name(first)} is frozen in part: freeze all its parameters or none")


def _check_means(model: nn.Module) -> None:
    for name, layer in bayesian_layers(model):
        natural = layer.posterior.provides("natural_parts")
        if natural and not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise ValueError(
                f"the mean of layer {name!r} is made from other tensors (mnvi.constrain, torch.nn.utils.prune), and "
                "NaturalGradient steps means that are parameters: give it a part of the model without this layer"
            )


def _average(state: dict[str, Any], name: str, value: Tensor, rate: float) -> Tensor:
    """The exponential moving average of ``value`` kept in ``state``, corrected for its start at 0; itself at rate 0."""
    if rate == 0:
        return value
    count = state[f"{name}_steps"] = state.get(f"{name}_steps", 0) + 1
    if name not in state:
        state[name] = torch.zeros_like(value)
    state[name] = state[name].lerp(value, 1 - rate)
    return state[name] / (1 - rate**count)
