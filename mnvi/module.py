"""Whole models: their KL, and the two contexts in which they draw outside training."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._models.tied_weights import refuse_shared_means
from .layers import BayesianLayer, bayesian_layers
from .layers._sampling import SamplingLayer, sampling_context
from .layers.norms import BayesianNorm
from .posteriors.base import Noise


def kl(model: nn.Module) -> Tensor:
    """Σ KL(posterior ‖ prior) over the Bayesian layers of ``model``, in nats, a scalar; never divided by anything.

    Biases and norms count where they have posteriors (``to_bayesian(…, bias_posterior=True)``). A layer that occurs
    several times counts once; a model without Bayesian layers has KL 0.

    Raises:
        ValueError: two layers have the same parameter as their mean.

    Example:
        >>> loss = F.cross_entropy(model(x), y) + mnvi.kl(model) / num_train
    """
    layers = list(with_posterior(model))
    if not torch.compiler.is_compiling():
        refuse_shared_means(layers)
    terms = [layer.kl() for _, layer in layers]
    if not terms:
        like = next(model.parameters(), torch.zeros(()))
        return torch.zeros((), device=like.device, dtype=like.dtype)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if len(terms) > 1 else terms[0]


def with_posterior(model: nn.Module) -> Iterator[tuple[str, BayesianLayer | BayesianNorm]]:
    """(name, module) of all that have a KL: Bayesian layers, and norms with a posterior."""
    for name, part in model.named_modules():
        if isinstance(part, (BayesianLayer, BayesianNorm)):
            yield name, part


def warn_without_posterior(model: nn.Module, consequence: str, stacklevel: int = 3) -> None:
    """Warn where nothing in ``model`` has a posterior, which mostly means that a conversion was forgotten."""
    if not torch.compiler.is_compiling() and next(with_posterior(model), None) is None:
        advice = "mnvi.to_bayesian converts a model, mnvi.MNLinear and its kin are such layers"
        warnings.warn(f"the model has no Bayesian layer, so {consequence}; {advice}", stacklevel=stacklevel)


def warn_without_draws(model: nn.Module, stacklevel: int = 3) -> None:
    """Warn where a loss of a model in eval mode is to be differentiated, in which no posterior has been drawn from."""
    if model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    layers = [part for part in model.modules() if isinstance(part, SamplingLayer)]
    if layers and not any(layer.is_sampling for layer in layers):
        warnings.warn(
            "the model is in eval mode, in which its weights are not drawn, so that the data say nothing of their "
            "variances; call model.train() to train, and use torch.no_grad() to evaluate",
            stacklevel=stacklevel,
        )


def disable_fast_path(model: nn.Module) -> None:
    """Switch off the fast path of torch's transformer encoders that contain Bayesian layers, for good.

    In eval mode such an encoder may give the weights of its layers to one fused function, and call no layer: none would
    draw. The two attributes are what the encoder asks before it does so; the ordinary path computes the same.
    """
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)) and any(bayesian_layers(module)):
            module.use_nested_tensor = False  # type: ignore[assignment]
            module.activation_relu_or_gelu = 0  # type: ignore[assignment]


@contextmanager
def _drawing(model: nn.Module, noise: Callable[[Any], Noise | None]):
    """Inside, the Bayesian layers of ``model`` draw, or hold the draw of their ``noise(layer)``."""
    disable_fast_path(model)
    for _, layer in bayesian_layers(model):
        layer.settle_()
    with sampling_context((part for part in model.modules() if isinstance(part, SamplingLayer)), noise):
        yield


@contextmanager
def sampling(model: nn.Module):
    """Inside, Bayesian layers draw in eval mode too; batch norm and dropout stay as they are.

    The previous state comes back at the end, also when an exception is raised. The state lies on the layers: contexts
    may be nested, but not overlap, nor be shared between threads.

    With activation checkpointing, enter the context inside the checkpointed function, which then makes the same draws
    again in the backward pass. Around a checkpointed function it is refused.

    Raises:
        RuntimeError: from ``forward``, of a layer that activation checkpointing would run again outside the context.

    Example:
        >>> with torch.no_grad(), mnvi.sampling(model):
        ...     outputs = torch.stack([model(x) for _ in range(32)])
    """
    with _drawing(model, lambda layer: None):
        yield model


@contextmanager
def frozen_sample(model: nn.Module):
    """Inside, every call uses one joint draw of all weights, in train and eval mode: the model is one fixed function.

    The draw is kept as noise, so gradients reach the posterior's parameters. The previous state comes back at the end,
    also when an exception is raised. For activation checkpointing see :func:`sampling`.

    Example:
        >>> with mnvi.frozen_sample(model):
        ...     f_grid = model(grid)  # one function of the posterior, at all points of the grid
    """
    with _drawing(model, lambda layer: layer.posterior.draw_noise()):
        yield model


class Module(nn.Module):
    """``nn.Module`` with ``kl()``: a base class for models that contain Bayesian layers."""

    def kl(self) -> Tensor:
        """Σ KL(posterior ‖ prior) over the Bayesian layers, in nats; see :func:`mnvi.kl`."""
        return kl(self)


class Sequential(nn.Sequential, Module):
    """``nn.Sequential`` with ``kl()``."""
