"""The Bayesian layer: everything that a layer gains with a posterior; each kind adds how its input meets a weight."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .. import posteriors, priors
from .._checks import instance, one_of, positive_int
from .._torch.autocast import full_precision
from ._pruning import PrunableLayer
from ._sampling import SamplingLayer
from ._vectors import VectorPosterior, root_mean_square, vector_parameter
from ._widening import NARROW, widened

Result = TypeVar("Result")
INITIAL_RATIO = 0.1  # posterior standard deviation / standard deviation of the weights, at the start


class BayesianLayer(SamplingLayer, PrunableLayer):
    """Mixin before a torch layer with ``weight`` and ``bias``: ``class MNLinear(BayesianLayer, nn.Linear)``.

    The posterior of the matrix W = ``weight.flatten(1)``, shape (n, p), has mean ``weight`` and the deviation of
    ``self.posterior``; ``bias`` is deterministic, unless :func:`mnvi.to_bayesian` gave it a posterior, too. In
    ``train()`` mode forward draws. In ``eval()`` mode it uses the mean, except inside :func:`mnvi.sampling` and
    :func:`mnvi.frozen_sample`.

    A new kind of layer is a subclass and a row of :mod:`mnvi.layers.kinds`. The subclass has a constructor, which ends
    with :meth:`_add_posterior`, and says how an input meets a weight: :meth:`_check_input`, :meth:`_transform` and
    :meth:`_deviation`. What a call has beside its input goes to all three (the second input of a bilinear layer, say).
    Where torch's initial weights have another size than 1/√(3·fan_in), :meth:`_initial_scale` says so.

    Initial scale: every weight's posterior standard deviation starts at a tenth of the standard deviation that torch's
    default initialisation gives the weights, 0.1/√(3·fan_in). A layer's noise then carries 1 % of its output's
    variance, whatever the width. After twenty layers it carries a fifth (1.01²⁰ ≈ 1.22), so activations are as torch's.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    prior: priors.Prior
    posterior: posteriors.Posterior
    default_estimator = "local"
    local_estimator: str | None = None  # the posterior's method that ``_deviation`` uses

    def _add_posterior(
        self, posterior: posteriors.PosteriorSpec | None, prior: priors.PriorSpec | None, estimator: str | None
    ) -> None:
        """The end of a constructor: posterior and prior of the weight that the torch layer's ``__init__`` has made."""
        self._make_bayesian(*build_parts(self.weight, posterior, prior, self._initial_scale()), estimator)

    def _make_bayesian(self, prior: priors.Prior, posterior: posteriors.Posterior, estimator: str | None) -> None:
        """Attach what :func:`build_parts` made."""
        self.estimator = estimator or self.default_estimator
        self.prior, self.posterior = prior, posterior
        self._register_sampling()
        self._register_pruned()

    def _add_bias_posterior(self) -> None:
        """Make ``bias`` the mean of a posterior; a tenth of its root mean square is the standard deviation to start."""
        if (bias := vector_parameter(self, "bias")) is not None:
            scale = INITIAL_RATIO * root_mean_square(bias) or self._initial_scale()
            self.bias_posterior = VectorPosterior(bias, scale).train(self.training)

    def _make_plain(self, kind: type[nn.Module]) -> None:
        """Make a layer of ``kind`` of this one: take off what :meth:`_make_bayesian` attached."""
        for name in ("posterior", "prior", "estimator"):
            delattr(self, name)
        self._modules.pop("bias_posterior", None)
        self._unregister_sampling()
        self._unregister_pruned()
        self.__class__ = kind  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        """Torch's initial weight and bias, the posterior's initial scale, the prior's initial values, and no pruning.

        After it every parameter and buffer has its value, also where ``to_empty`` left them without.
        """
        if "posterior" in self._modules:  # torch's constructor calls this before there is one
            self._reset_posterior()
        super().reset_parameters()  # type: ignore[misc]

    def _reset_posterior(self) -> None:
        self.prior.reset_parameters()
        self.posterior.set_scale_(self._initial_scale())
        if (vector := self._vector()) is not None:
            vector.posterior.set_scale_(self._initial_scale())
        self.pruned.zero_()
        self.settle_()

    def _initial_scale(self) -> float:
        """The posterior standard deviation at the start: a tenth of the standard deviation of initial weights."""
        return initial_scale(self.weight)

    def mean_weight(self) -> Tensor:
        """The posterior mean in the layer's own shape, zero where it is pruned."""
        return self.masked(self.weight)

    def draw_weight(self) -> Tensor:
        """One joint draw of the weight in the layer's own shape, zero where it is pruned."""
        with full_precision(self.weight):
            noise = self.posterior.draw_noise() if self.frozen_noise is None else self.frozen_noise
            deviation = self._widened(lambda dtype: self.posterior.deviation(tuple(e.to(dtype) for e in noise)))
            weight = self.weight + deviation.view_as(self.weight).to(self.weight.dtype)
        return self.masked(weight)

    def current_weight(self) -> Tensor:
        """The weight of one use: a draw where the layer is sampling, else the mean; in the layer's own shape."""
        return self.draw_weight() if self.is_sampling else self.mean_weight()

    def current_bias(self) -> Tensor | None:
        """The bias of one use: a draw where it has a posterior and the layer is sampling, else its mean."""
        vector = self._vector()
        return self.bias if vector is None or self.bias is None else vector(self.bias)

    def _vector(self) -> VectorPosterior | None:
        return self._modules.get("bias_posterior")  # type: ignore[return-value]

    def distribution(self) -> Distribution:
        """The distribution of the (n, p) weight matrix, before any pruning; gradients flow through it.

        That of a 16-bit layer is in float32, as is its KL.
        """
        return self._widened(lambda dtype: self.posterior.distribution(self.weight.flatten(1).to(dtype)))

    def variance(self) -> Tensor:
        """Marginal posterior variances in the weight's own shape, before any pruning."""
        with full_precision(self.weight):
            return self._widened(lambda _: self.posterior.variance().view_as(self.weight))

    def kl(self) -> Tensor:
        """KL(posterior ‖ prior) in nats for the whole weight, a scalar; masks play no part in it.

        That of the bias is added where it has a posterior.
        """
        with full_precision(self.weight):
            of_weight = self._widened(lambda dtype: self.prior.kl(self.weight.flatten(1).to(dtype), self.posterior))
        vector = self._vector()
        return of_weight if vector is None or self.bias is None else of_weight + vector.kl(self.bias)

    def _widened(self, compute: Callable[[torch.dtype], Result]) -> Result:
        """``compute`` of the type to compute in: the weight's, or float32 for 16 bits, which all else then has too."""
        if self.weight.dtype not in NARROW:
            return compute(self.weight.dtype)
        return widened((self.posterior, self.prior), lambda: compute(torch.float32))

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """The torch layer's output for a drawn weight (or the mean): same shapes as the torch layer."""
        self._check_input(input, *args)
        self._notice()
        if not self.is_sampling:
            return self._transform(self.mean_weight(), self.bias, input, *args)
        self._refuse_recomputation()
        if self._flips_signs():
            output = self._transform(self.weight, self.current_bias(), input, *args)
            return output + self._flipped_deviation(input, *args)
        if not self._draws_outputs():
            return self._transform(self.draw_weight(), self.current_bias(), input, *args)
        output = self._transform(self.weight, self.current_bias(), input, *args)
        with full_precision(self.weight):
            deviation = self._widened(lambda dtype: self._deviation(*_of_type(dtype, input, *args)))
        return output + deviation.to(output.dtype)

    def _draws_outputs(self) -> bool:
        """Whether a draw is one of outputs, each example's its own, and not one weight for all of them.

        Where the layer is pruned, its deviation has no factors any more. A frozen draw is one weight for all inputs.
        A family may have no estimator for this kind of layer.
        """
        if self.estimator != "local" or self.frozen_noise is not None or self.is_pruned:
            return False
        return self.local_estimator is not None and self.posterior.provides(self.local_estimator)

    @property
    def channel_axis(self) -> int | None:
        """The axis of the output whose entries belong to the rows of the weight matrix, one each; None if none does."""
        return None

    def _flips_signs(self) -> bool:
        """Whether a draw is one weight with signs that differ from example to example; conditions as above."""
        if self.estimator != "flipout" or self.channel_axis is None or self.frozen_noise is not None or self.is_pruned:
            return False
        return self.posterior.provides("flip_parts")

    def _flipped_deviation(self, input: Tensor, *args: Any) -> Tensor:
        """Σ F·(r∘(D x)) over the parts of one drawn deviation, with random signs r of D's rows for each example."""
        with full_precision(self.weight):
            noise = self.posterior.draw_noise()
            parts = self._widened(lambda dtype: self.posterior.flip_parts(tuple(each.to(dtype) for each in noise)))
        return sum(self._flipped(*part, input, *args) for part in parts)  # type: ignore[return-value]

    def _flipped(self, matrix: Tensor, factor: Any, input: Tensor, *args: Any) -> Tensor:
        weight = matrix.view(-1, *self.weight.shape[1:]).to(self.weight.dtype)
        output = self._transform(weight, None, input, *args).movedim(self.channel_axis, -1)  # type: ignore[arg-type]
        locations = self.weight.dim() - 2  # of a convolution share the signs of their example
        shape = [*output.shape[: output.dim() - 1 - locations], *[1] * locations, output.shape[-1]]
        output = output * (2 * torch.randint(2, shape, device=output.device, dtype=output.dtype) - 1)
        if factor is not None:
            with full_precision(self.weight):
                output = self._widened(lambda dtype: factor.multiply(output.to(dtype))).to(output.dtype)
        return output.movedim(-1, self.channel_axis)  # type: ignore[arg-type]

    def _check_input(self, input: Tensor, *args: Any) -> None:
        """Raise ValueError for an input that does not fit the layer."""
        raise NotImplementedError(f"{type(self).__name__} has no _check_input()")

    def _transform(self, weight: Tensor, bias: Tensor | None, input: Tensor, *args: Any) -> Tensor:
        """The torch layer with this weight and bias."""
        raise NotImplementedError(f"{type(self).__name__} has no _transform()")

    def _deviation(self, input: Tensor, *args: Any) -> Tensor:
        """A draw of the output's deviation from the mean weight's output (``estimator="local"``)."""
        raise NotImplementedError(f"{type(self).__name__} has no _deviation()")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._posterior_repr()}"

    def _posterior_repr(self) -> str:
        return f"posterior={self.posterior.described()}, estimator={self.estimator!r}"


def _of_type(dtype: torch.dtype, *values: Any) -> list[Any]:
    return [value.to(dtype) if isinstance(value, Tensor) else value for value in values]


def bayesian_layers(model: nn.Module) -> Iterator[tuple[str, BayesianLayer]]:
    """(name, layer) of every Bayesian layer of ``model``, shared ones once."""
    for name, module in model.named_modules():
        if isinstance(module, BayesianLayer):
            yield name, module


def build_parts(
    weight: Tensor, posterior: posteriors.PosteriorSpec | None, prior: priors.PriorSpec | None, scale: float
) -> tuple[priors.Prior, posteriors.Posterior]:
    """The prior and posterior of a layer's ``weight``, ``None`` the default of each; standard deviations ``scale``."""
    matrix = weight.flatten(1)
    options = {"device": weight.device, "dtype": weight.dtype}
    shape = (matrix.shape[0], matrix.shape[1])
    split = column_split(weight)
    made_prior = (prior or priors.Normal()).build_for(shape, split, **options)
    spec: Any = posterior or posteriors.BySize()
    made_posterior = spec.build(shape, split=split, **options)
    made_posterior.set_scale_(scale)
    return made_prior, made_posterior


def initial_scale(weight: Tensor) -> float:
    """The posterior standard deviation to start with (see :class:`BayesianLayer`); fan_in as torch has it."""
    return INITIAL_RATIO / (3 * weight[0].numel()) ** 0.5


def column_split(weight: Tensor) -> tuple[int, int] | None:
    """How the columns are made of two axes, (channels, kernel positions), for Kronecker factors."""
    return (weight.shape[1], weight[0, 0].numel()) if weight.dim() > 2 else None


def check_layer_arguments(
    posterior: posteriors.PosteriorSpec | None, prior: priors.PriorSpec | None, estimator: str | None, **sizes: int
) -> None:
    """Raise for anything a Bayesian layer cannot be built from, before it is built."""
    for name, size in sizes.items():
        positive_int(name, size)
    if posterior is not None:
        instance("posterior", posterior, posteriors.PosteriorSpec)
    if prior is not None:
        instance("prior", prior, priors.PriorSpec)
    if estimator is not None:
        one_of("estimator", estimator, ("local", "weight", "flipout"))
