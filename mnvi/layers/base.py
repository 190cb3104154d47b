"""All the Bayesian behaviour of a layer, once; linear.py and conv.py add only how an input meets a weight."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim.optimizer import Optimizer

from .. import posteriors, priors
from ..checks import instance, one_of, positive_int
from ..covariance.triangular import in_transform
from ..following import follow
from ..posteriors.base import Noise
from ..precision import full_precision
from .widening import NARROW, widened

Result = TypeVar("Result")
INITIAL_RATIO = 0.1  # posterior standard deviation / standard deviation of the weights, at the start


class BayesianLayer(nn.Module):
    """Mixin before a torch layer with ``weight`` and ``bias``: ``class MNLinear(BayesianLayer, nn.Linear)``.

    The posterior of the matrix W = ``weight.flatten(1)``, shape (n, p), has mean ``weight`` and the deviation of
    ``self.posterior``; ``bias`` is deterministic. In ``train()`` mode forward draws; in ``eval()`` mode it uses the
    mean, except inside :func:`mnvi.sampling` and :func:`mnvi.frozen_sample`.

    Initial scale: every weight's posterior standard deviation starts at a tenth of the standard deviation that torch's
    default initialisation gives the weights, 0.1/√(3·fan_in). A layer's noise then carries 1 % of its output's
    variance, whatever the width, and after twenty layers a fifth (1.01²⁰ ≈ 1.22), so activations are as torch's are.

    Pruning: ``pruned``, a buffer in the weight's shape that is 0 where a weight is left, is part of the state from the
    start, so that checkpoints, averages (``AveragedModel``) and exponential moving averages carry it. Where it is not
    0, draws are 0 and so is the stored mean, after every step of a torch optimiser too. What writes into ``pruned`` in
    place is noticed by :meth:`settle_`, which ``train()``, ``eval()``, loading and saving call. It is a floating-point
    tensor, of 16 bits, because averages of models take buffers for numbers.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    pruned: Tensor
    prior: priors.PriorModule
    posterior: posteriors.Posterior
    default_estimator = "local"

    def _make_bayesian(self, prior: priors.PriorModule, posterior: posteriors.Posterior, estimator: str | None) -> None:
        """Attach what :func:`build_parts` made; the torch layer's own ``__init__`` has run."""
        self.estimator = estimator or self.default_estimator
        self._sampling = False
        self._frozen: Noise | None = None
        self.prior, self.posterior = prior, posterior
        self._register_pruned()

    def _register_pruned(self) -> None:
        self.register_buffer("pruned", torch.zeros(self.weight.shape, dtype=torch.float16, device=self.weight.device))
        self._is_pruned, self._seen = False, _version(self.pruned)

    def reset_parameters(self) -> None:
        """Torch's initial weight and bias, the posterior's initial scale, the prior's initial values, and no pruning.

        After it every parameter and buffer has its value, also where ``to_empty`` left them without.

        Raises:
            ValueError: the prior's own tensors, which were given with it, are lost: they were moved to the meta device.
        """
        if "posterior" in self._modules:  # torch's constructor calls this before there is one
            self.prior.reset_parameters()
            self.posterior.set_scale_(initial_scale(self.weight))
            self.pruned.zero_()
            self.settle_()
        super().reset_parameters()  # type: ignore[misc]

    @property
    def samples(self) -> bool:
        """Whether forward draws (True) or uses the mean (False)."""
        return self.training or self._sampling or self._frozen is not None

    @property
    def is_pruned(self) -> bool:
        """Whether any weight is pruned, as of the last :meth:`settle_`."""
        return self._is_pruned

    def masked(self, weight: Tensor) -> Tensor:
        """``weight``, of the layer's weight's shape, with zeros where the layer is pruned."""
        return weight.masked_fill(self.pruned != 0, 0) if self._is_pruned else weight

    def mean_weight(self) -> Tensor:
        """The posterior mean in the layer's own shape, zero where it is pruned."""
        return self.masked(self.weight)

    def draw_weight(self) -> Tensor:
        """One joint draw of the weight in the layer's own shape, zero where it is pruned."""
        with full_precision(self.weight):
            noise = self.posterior.draw_noise() if self._frozen is None else self._frozen
            deviation = self._widened(lambda dtype: self.posterior.deviation(tuple(e.to(dtype) for e in noise)))
            weight = self.weight + deviation.view_as(self.weight).to(self.weight.dtype)
        return self.masked(weight)

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
        """KL(posterior ‖ prior) in nats for the whole weight, a scalar; masks play no part in it."""
        with full_precision(self.weight):
            return self._widened(lambda dtype: self.prior.kl(self.weight.flatten(1).to(dtype), self.posterior))

    def _widened(self, compute: Callable[[torch.dtype], Result]) -> Result:
        """``compute`` of the type to compute in: the weight's, or float32 for 16 bits, which all else then has too."""
        if self.weight.dtype not in NARROW:
            return compute(self.weight.dtype)
        return widened((self.posterior, self.prior), lambda: compute(torch.float32))

    def forward(self, input: Tensor, *args) -> Tensor:
        """The torch layer's output for a drawn weight (or the mean): same shapes as the torch layer."""
        self._check_input(input)
        if not self.samples:
            return self._transform(input, self.mean_weight(), self.bias, *args)
        # A pruned layer's deviation has no factors any more, and a frozen draw must be one weight for all inputs.
        if self.estimator == "weight" or self._frozen is not None or self._is_pruned:
            return self._transform(input, self.draw_weight(), self.bias, *args)
        output = self._transform(input, self.weight, self.bias, *args)
        with full_precision(self.weight):
            deviation = self._widened(lambda dtype: self._deviation(input.to(dtype), *args))
        return output + deviation.to(output.dtype)

    def _check_input(self, input: Tensor) -> None:
        """Raise ValueError for an input that does not fit the layer."""
        raise NotImplementedError

    def _transform(self, input: Tensor, weight: Tensor, bias: Tensor | None, *args) -> Tensor:
        """The torch layer with this weight and bias."""
        raise NotImplementedError

    def _deviation(self, input: Tensor, *args) -> Tensor:
        """A draw of the output's deviation from the mean weight's output (``estimator="local"``)."""
        raise NotImplementedError

    @torch.no_grad()
    def settle_(self) -> None:
        """Notice what was written into ``pruned``, and zero the stored mean where it is not 0.

        Called whenever something else may have written: by ``train()`` and ``eval()``, at the entry of
        :func:`mnvi.sampling` and :func:`mnvi.frozen_sample`, before saving and after loading.
        """
        mask = self.pruned
        if torch.compiler.is_compiling() or in_transform() or mask.is_meta:
            return
        version = _version(mask)
        if version != self._seen:  # asking a device for numbers waits for it
            self._seen, self._is_pruned = version, bool((mask != 0).any())
        weight = self._parameters.get("weight")
        if not self._is_pruned or weight is None or weight.is_meta:
            return
        follow(weight, self)
        if torch.is_inference_mode_enabled() or not weight.is_inference():
            # Past the version counter: it would break the backward pass of a forward pass before, and needs not.
            weight.data.masked_fill_(_beside(mask != 0, weight), 0)

    def stepped(self, parameter: Tensor, optimiser: Optimizer) -> None:
        """After a step of an optimiser, whose momentum or weight noise may move pruned means."""
        self.settle_()

    def train(self, mode: bool = True):
        """As the torch layer's."""
        self.settle_()
        return super().train(mode)

    def _save_to_state_dict(self, *args) -> None:
        self.settle_()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + "pruned"
        if key not in state_dict and (found := _pruned_before(state_dict, prefix, self.pruned)) is not None:
            state_dict[key] = found
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._seen = None
        self.settle_()

    def __getstate__(self) -> dict:
        # A copy or a pickle made inside a context must not stay in it.
        return {**self.__dict__, "_sampling": False, "_frozen": None, "_seen": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "pruned" not in self._buffers:  # pickled by the first version
            mask = self._buffers.pop("weight_mask", None)
            self._register_pruned()
            if mask is not None:
                self.pruned.copy_(mask == 0)
        self.settle_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, estimator={self.estimator!r}"


def _version(tensor: Tensor) -> tuple[int, int | None]:
    """What changes when the tensor is written to or another takes its place."""
    return id(tensor), None if tensor.is_inference() else tensor._version


def _beside(mask: Tensor, weight: Tensor) -> Tensor:
    """``mask``, which every rank has whole, as a tensor that goes with a ``weight`` sharded by FSDP2."""
    if not hasattr(weight, "device_mesh"):
        return mask
    from torch.distributed.tensor import DTensor, Replicate

    mesh = weight.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _pruned_before(state_dict: dict, prefix: str, like: Tensor) -> Tensor | None:
    """The buffer ``pruned`` of a layer's checkpoint that has none; None where there is nothing of a layer.

    The first version saved ``weight_mask``, 1 where a weight is left, with a pruned layer only. A torch layer says
    nothing of pruning: what there is stays. (``weight_mask`` beside ``weight_orig`` is that of torch's own pruning.)
    """
    own = [value for name, value in state_dict.items() if name.startswith(prefix + "posterior.")]
    if not own:
        return like if prefix + "weight" in state_dict else None
    if prefix + "weight_mask" in state_dict and prefix + "weight_orig" not in state_dict:
        return (state_dict.pop(prefix + "weight_mask") == 0).to(like.dtype)
    return torch.zeros_like(like, device=own[0].device)


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
