"""All the Bayesian behaviour of a layer, once; linear.py and conv.py add only how an input meets a weight."""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .. import posteriors, priors
from ..checks import instance, one_of, positive_int
from ..posteriors.base import Noise
from ..precision import full_precision
from .checkpointing import recomputes_more_than

INITIAL_RATIO = 0.1  # posterior standard deviation / standard deviation of the weights, at the start


class BayesianLayer(nn.Module):
    """Mixin before a torch layer with ``weight`` and ``bias``: ``class MNLinear(BayesianLayer, nn.Linear)``.

    The posterior of the matrix W = ``weight.flatten(1)``, shape (n, p), has mean ``weight`` and the deviation of
    ``self.posterior``; ``bias`` is deterministic. In ``train()`` mode forward draws; in ``eval()`` mode it uses the
    mean, except inside :func:`mnvi.sampling` and :func:`mnvi.frozen_sample`.

    Initial scale: every weight's posterior standard deviation starts at a tenth of the standard deviation that torch's
    default initialisation gives the weights, 0.1/√(3·fan_in). A layer's noise then carries 1 % of its output's
    variance, whatever the width, and after twenty layers a fifth (1.01²⁰ ≈ 1.22), so activations are as torch's are.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_mask: Tensor | None
    prior: priors.PriorModule
    posterior: posteriors.Posterior
    default_estimator = "local"

    def _make_bayesian(self, prior: priors.PriorModule, posterior: posteriors.Posterior, estimator: str | None) -> None:
        """Attach what :func:`build_parts` made; the torch layer's own ``__init__`` has run."""
        self.estimator = estimator or self.default_estimator
        self._sampling = False
        self._frozen: Noise | None = None
        self._checkpoints = 0  # around the outermost sampling() or frozen_sample()
        self.register_buffer("weight_mask", None)
        self.prior, self.posterior = prior, posterior

    def _make_plain(self, kind: type[nn.Module]) -> None:
        """Make a layer of ``kind`` of this one: take off what :meth:`_make_bayesian` attached."""
        del self.posterior, self.prior, self.weight_mask
        del self.estimator, self._sampling, self._frozen, self._checkpoints
        self.__class__ = kind  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        """Torch's initial weight and bias, the posterior's initial scale, and no pruning."""
        super().reset_parameters()  # type: ignore[misc]
        if "posterior" in self._modules:  # torch's constructor calls this before there is one
            self.posterior.set_scale_(initial_scale(self.weight))
            self.weight_mask = None

    @property
    def samples(self) -> bool:
        """Whether forward draws (True) or uses the mean (False)."""
        return self.training or self._sampling or self._frozen is not None

    def mean_weight(self) -> Tensor:
        """The posterior mean in the layer's own shape, zero where it is pruned."""
        return self.weight if self.weight_mask is None else self.weight * self.weight_mask

    def draw_weight(self) -> Tensor:
        """One joint draw of the weight in the layer's own shape, zero where it is pruned."""
        with full_precision(self.weight):
            noise = self.posterior.draw_noise() if self._frozen is None else self._frozen
            weight = self.weight + self.posterior.deviation(noise).view_as(self.weight)
        return weight if self.weight_mask is None else weight * self.weight_mask

    def distribution(self) -> Distribution:
        """The distribution of the (n, p) weight matrix, before any pruning; gradients flow through it."""
        return self.posterior.distribution(self.weight.flatten(1))

    def kl(self) -> Tensor:
        """KL(posterior ‖ prior) in nats for the whole weight, a scalar; masks play no part in it."""
        with full_precision(self.weight):
            return self.prior.kl(self.weight.flatten(1), self.posterior)

    def forward(self, input: Tensor, *args) -> Tensor:
        """The torch layer's output for a drawn weight (or the mean): same shapes as the torch layer."""
        self._check_input(input)
        if self._frozen is not None or (self._sampling and not self.training):
            self._check_recomputation()
        if not self.samples:
            return self._transform(input, self.mean_weight(), self.bias, *args)
        # A pruned layer's deviation has no factors any more, and a frozen draw must be one weight for all inputs.
        if self.estimator == "weight" or self._frozen is not None or self.weight_mask is not None:
            return self._transform(input, self.draw_weight(), self.bias, *args)
        output = self._transform(input, self.weight, self.bias, *args)
        with full_precision(self.weight):
            deviation = self._deviation(input.to(self.weight.dtype), *args)
        return output + deviation.to(output.dtype)

    def _check_recomputation(self) -> None:
        if not torch.compiler.is_compiling() and recomputes_more_than(self._checkpoints):
            raise RuntimeError(
                "activation checkpointing inside sampling() or frozen_sample() would recompute the layer in the "
                "backward pass without that context, with another draw; enter the context inside the function, "
                "switch checkpointing off, or gradients (torch.no_grad())"
            )

    def _check_input(self, input: Tensor) -> None:
        """Raise ValueError for an input that does not fit the layer."""
        raise NotImplementedError

    def _transform(self, input: Tensor, weight: Tensor, bias: Tensor | None, *args) -> Tensor:
        """The torch layer with this weight and bias."""
        raise NotImplementedError

    def _deviation(self, input: Tensor, *args) -> Tensor:
        """A draw of the output's deviation from the mean weight's output (``estimator="local"``)."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A checkpoint of this layer says whether it is pruned; one of a torch layer, or of other layers, does not.
        mask = state_dict.get(prefix + "weight_mask")
        if mask is not None and self.weight_mask is None:
            self.weight_mask = torch.ones_like(self.weight)
        elif mask is None and any(key.startswith(prefix + "posterior.") for key in state_dict):
            self.weight_mask = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict:
        # A copy or a pickle made inside a context must not stay in it.
        return {**self.__dict__, "_sampling": False, "_frozen": None, "_checkpoints": 0}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, estimator={self.estimator!r}"


def build_parts(weight: Tensor, posterior, prior) -> tuple[priors.PriorModule, posteriors.Posterior]:
    """The prior and posterior modules for a layer's ``weight``; ``None`` is the default of each."""
    matrix = weight.flatten(1)
    options = {"device": weight.device, "dtype": weight.dtype}
    shape = (matrix.shape[0], matrix.shape[1])
    made_prior = (prior or priors.Normal()).build(shape, **options)
    made_posterior = (posterior or posteriors.MatrixNormal()).build(shape, split=column_split(weight), **options)
    made_posterior.set_scale_(initial_scale(weight))
    return made_prior, made_posterior


def initial_scale(weight: Tensor) -> float:
    """The posterior standard deviation to start with (see :class:`BayesianLayer`); fan_in as torch has it."""
    return INITIAL_RATIO / (3 * weight[0].numel()) ** 0.5


def column_split(weight: Tensor) -> tuple[int, int] | None:
    """How the columns are made of two axes, (channels, kernel positions), for Kronecker factors."""
    return (weight.shape[1], weight[0, 0].numel()) if weight.dim() > 2 else None


def check_layer_arguments(posterior, prior, estimator: str | None, **sizes: int) -> None:
    """Raise for anything a Bayesian layer cannot be built from, before it is built."""
    for name, size in sizes.items():
        positive_int(name, size)
    if posterior is not None:
        instance("posterior", posterior, posteriors.Family)
    if prior is not None:
        instance("prior", prior, priors.Prior)
    if estimator is not None:
        one_of("estimator", estimator, ("local", "weight"))
