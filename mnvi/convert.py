"""Conversion of a network: trained torch layers become Bayesian ones, and go back."""

import copy
import math
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import posteriors, priors
from ._deprecation import moved
from ._models.bypassed_layers import check_first_pass, stop_checking
from ._models.choosing import below, choose_layers, choose_norms, names_of, without_effect
from ._models.conversion_costs import log_conversion, warn_if_large
from ._models.deterministic_weights import described, deterministic_modules
from ._models.early_optimizers import watch_early_optimizers
from ._models.tied_weights import refuse_tied
from .layers import bayesian_layers, kinds
from .layers.base import INITIAL_RATIO, build_parts, check_layer_arguments, initial_scale
from .layers.norms import bayesian_norms, make_norm_bayesian
from .module import disable_fast_path, frozen_sample, kl

TIED = "a parameter cannot be drawn in one place and be another, or its mean, in the other"


def to_bayesian(
    model: nn.Module,
    posterior: posteriors.PosteriorSpec | None = None,
    prior: priors.PriorSpec | None = None,
    skip: Iterable[str] = (),
    *,
    only: Iterable[str] | None = None,
    estimator: str | None = None,
    bias_posterior: bool = False,
) -> nn.Module:
    """Make the linear and convolutional layers of ``model`` Bayesian, in place; return the model.

    Each stays the same object with the same parameters (and hooks): its weights become posterior means, and the
    posterior's standard deviation starts at a tenth of their root mean square. The model gets a ``kl()`` method, unless
    it has an attribute of that name; :func:`mnvi.kl` works in any case.

    What becomes Bayesian are ``nn.Linear``, all convolutions, and ``Conv1D`` of Hugging Face's transformers: the rows
    of :mod:`mnvi.layers.kinds`. Layers of other kinds (embeddings, recurrent and attention weights) stay as they are,
    and so do subclasses of torch's and layers whose weight is no parameter. Layers that are Bayesian already keep their
    posteriors and priors: a model may be converted part by part, and a later call takes the layers that are left.

    Make the optimiser afterwards: one made before steps the means, but not the new parameters of the posteriors. The
    first training pass with gradients checks that every layer draws; a layer whose weight is read past its ``forward``
    is refused then.

    Args:
        model: any module; nested modules are searched.
        posterior: family from :mod:`mnvi.posteriors` for every converted layer; ``None`` is
            :class:`mnvi.posteriors.BySize`, which chooses small factors for each.
        prior: prior from :mod:`mnvi.priors` for every converted layer; ``None`` is ``Normal(None)``, one scale fitted
            to each. Trained weights have a size of their own in each layer, mostly far below 1, and a prior of another
            size pulls them off it. (A layer that is made anew has ``Normal(1.0)``.)
        skip: qualified names (``"classifier.2"``) left alone, with all that is below them.
        only: qualified names; convert only these and what is below them.
        estimator: ``"local"``, ``"weight"`` or ``"flipout"``; ``None`` is each layer's default (linear local,
            convolution weight).
        bias_posterior: whether the biases of the converted layers have posteriors, too, and so weights and biases of
            ``BatchNorm1d/2d/3d``, ``LayerNorm`` and ``GroupNorm``. These are independent normal, under N(0, 1), or
            N(1, 1) for weights of norms, and one draw serves a call. A bias right before a batch norm, which takes it
            out again in training, so that data say nothing of it, stays deterministic. Without it all do.

    Raises:
        ValueError: a name in ``skip`` or ``only`` does not exist, nothing at a name in ``only`` can be converted, there
            is nothing to convert, or a weight to convert is also a parameter elsewhere, such as that of a tied
            embedding. The model is then unchanged. From ``forward``: a weight was read past its layer.

    Warns:
        UserWarning: covariance factors that are larger than their weights will take more than 32 MiB, with the amount
            and how much longer a step will take; modules with weights stay deterministic that neither ``skip`` names
            nor ``only`` leaves out; at the first step of an optimiser that was made before, it does not have the
            posteriors' parameters.

    Logs:
        One line of what was chosen, to the logger ``"mnvi"`` at level ``INFO``: ``logging.basicConfig(level="INFO")``
        shows it. ``print(model)`` shows each layer's family.

    Example:
        >>> model = mnvi.to_bayesian(GPT2LMHeadModel(config), skip=["lm_head", "transformer.wte", "transformer.wpe"])
        >>> optimiser = torch.optim.Adam(mnvi.parameter_groups(model))
    """
    check_layer_arguments(posterior, prior, estimator)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module object, got {model!r}")
    if not isinstance(bias_posterior, bool):
        raise TypeError(f"bias_posterior must be a bool, got {bias_posterior!r}")
    posterior, prior = posterior or posteriors.BySize(), prior or priors.Normal(None)
    skip, only = names_of(skip), None if only is None else names_of(only)
    norms = choose_norms(model, skip, only) if bias_posterior else {}
    chosen = choose_layers(model, skip, only, norms)
    refuse_tied(model, [*chosen, *norms], TIED, ("weight", "bias") if bias_posterior else ("weight",))
    for layer, name in chosen.items():
        _refuse_sizes(name, layer.weight.detach())
    warn_if_large(chosen, posterior, estimator)
    _warn_of_deterministic(model, chosen, skip, only)
    # All parts before any change, so that a prior that does not fit leaves the model as it was.
    parts = [_parts(layer.weight, posterior, prior) for layer in chosen]
    certain = without_effect(model, chosen) if bias_posterior else {*chosen}
    for layer, made in zip(chosen, parts, strict=True):
        _replace_class(layer, *made, estimator)
        if layer not in certain:
            layer._add_bias_posterior()
    for norm in norms:
        make_norm_bayesian(norm)
    disable_fast_path(model)
    stop_checking(model)
    model.register_forward_hook(check_first_pass)
    watch_early_optimizers(chosen)
    log_conversion(chosen, len(norms))
    if not hasattr(model, "kl"):
        model.kl = partial(kl, model)  # type: ignore[assignment]  # unlike a bound method, copies and pickles with it
    return model


def to_deterministic(model: nn.Module, *, sample: bool = False) -> nn.Module:
    """A copy of ``model`` with plain torch layers: each Bayesian layer's mean (masked where pruned) and bias.

    ``model`` itself keeps its posteriors. In eval mode both give the same outputs. A constrained mean stays
    constrained (:func:`mnvi.constrain`), unless its layer is pruned. What knows torch's layers by their types, such as
    ``torch.ao.quantization.quantize_dynamic``, finds them in the copy, and passes over Bayesian ones.

    Args:
        sample: take one joint draw of the weights in place of their means, that of :func:`mnvi.frozen_sample`; it is
            not constrained. Several such copies are an ensemble for :func:`mnvi.predict`. Batch norms may then have
            the statistics of each draw, which a model's running ones are not (Maddox et al., 2019, arXiv:1902.02476).

    Raises:
        TypeError: a subclass of a layer of this library, for which no plain layer is known.
        ValueError: the weight of a layer is made in a hook, as under ``torch.nn.utils.prune``.

    Example:
        >>> networks = [mnvi.to_deterministic(model, sample=True) for _ in range(32)]
        >>> for network in networks:
        ...     torch.optim.swa_utils.update_bn(loader, network)
        >>> mnvi.predict(networks, x, num_samples=1).mean
    """
    for name, layer in bayesian_layers(model):
        if kinds.kind_of(layer) is None:
            raise TypeError(f"layer {name!r} is a {type(layer).__name__}, which has no plain torch layer to go back to")
        if not parametrize.is_parametrized(layer, "weight") and "weight" not in layer._parameters:
            raise ValueError(f"the weight of layer {name!r} is made in a hook; call torch.nn.utils.prune.remove first")
        layer.settle_()
    plain = copy.deepcopy(model)
    drawn = _draw(plain) if sample else []
    for _, layer in list(bayesian_layers(plain)):
        constrained, pruned, top = parametrize.is_parametrized(layer), layer.pruned != 0, type(layer)
        kind = kinds.plain_kind(layer) or layer.__dict__.pop("plain")
        layer._make_plain(_constrained(kind, top) if constrained else kind)
        if parametrize.is_parametrized(layer, "weight") and (sample or pruned.any()):
            parametrize.remove_parametrizations(layer, "weight")
            layer.weight.data.masked_fill_(pruned, 0)
    for norm in list(bayesian_norms(plain)):
        norm.make_plain()
    for module, name, value in drawn:
        module.get_parameter(name).data.copy_(value)
    stop_checking(plain)
    for module in plain.modules():
        if isinstance(module.__dict__.get("kl"), partial) and module.__dict__["kl"].func is kl:
            del module.kl
    return plain


@torch.no_grad()
def _draw(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, name of its parameter, value) of one joint draw of everything that has a posterior."""
    drawn: list[tuple[nn.Module, str, Tensor]] = []
    with frozen_sample(model):
        for _, layer in bayesian_layers(model):
            drawn.append((layer, "weight", layer.draw_weight()))
            bias = layer.current_bias()
            drawn += [] if bias is None or bias is layer.bias else [(layer, "bias", bias)]
        for norm in bayesian_norms(model):
            drawn += [(norm, *each) for each in norm.drawn().items()]
    return drawn


def _replace_class(layer: Any, prior: priors.Prior, posterior: posteriors.Posterior, estimator: str | None) -> None:
    """Make a plain ``layer`` the Bayesian one of its kind; it stays the same object."""
    kind: Any = kinds.kind_of(layer)
    if kind.plain is None:
        layer.plain = type(layer)  # for the way back
    layer.__class__ = kind.bayesian
    layer._make_bayesian(prior, posterior, estimator)
    posterior.train(layer.training)
    prior.train(layer.training)


def _constrained(kind: type, top: type) -> type:
    """The class that torch puts on top of a parametrized layer's, ``top``, on top of ``kind`` instead."""
    own = {name: value for name, value in vars(top).items() if name not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{kind.__name__}", (kind,), own)


def _parts(
    weight: Tensor, posterior: posteriors.PosteriorSpec, prior: priors.PriorSpec
) -> tuple[priors.Prior, posteriors.Posterior]:
    """The prior and posterior for a trained ``weight``, with standard deviations of a tenth of its root mean square."""
    made_prior, made_posterior = build_parts(weight, posterior, prior, initial_scale(weight))
    scale = 0.0 if weight.is_meta else INITIAL_RATIO * _root_mean_square(weight.detach())
    if scale > 0:
        made_posterior.set_scale_(scale)
    return made_prior, made_posterior


def _refuse_sizes(name: str, weight: Tensor) -> None:
    """Raise ValueError for a weight that no KL can be computed of."""
    if not weight.numel():
        raise ValueError(f"the weight of layer {name!r} has no entries, shape {tuple(weight.shape)}; name it in skip")
    size = 0.0 if weight.is_meta else _root_mean_square(weight)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if size * (2 * weight.numel()) ** 0.5 > torch.finfo(dtype).max ** 0.5:  # twice, for the variances
        raise ValueError(
            f"the weight of layer {name!r} has a root mean square of {size:.2g}, whose sum of squares overflows in "
            f"{dtype}; divide it, or name it in skip"
        )


def _root_mean_square(weight: Tensor) -> float:
    """Scaled by a power of two, which is exact, so that squares neither overflow nor underflow; 0 if not finite."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = weight.abs().max().item()
    if not math.isfinite(largest):
        return 0.0
    unit = 2.0 ** max(math.frexp(largest)[1], -126)
    return unit * (weight / unit).square().mean().sqrt().item()


def _warn_of_deterministic(
    model: nn.Module, chosen: Iterable[Any], skip: tuple[str, ...], only: tuple[str, ...] | None
) -> None:
    named = list(model.named_modules(remove_duplicate=False))
    done = {*chosen} | {module for name, module in named if any(below(name, root) for root in skip)}
    asked = {module for name, module in named if only is None or any(below(name, root) for root in only)}
    left = {name: module for name, module in deterministic_modules(model).items() if module in asked - done}
    if left:
        warnings.warn(
            f"no posterior for {', '.join(described(left))}: to_bayesian converts {kinds.names()} only; name what is "
            "meant to stay deterministic in skip",
            stacklevel=3,
        )


moved("mnvi.past_forward", check_first_pass=check_first_pass)  # a hook of converted models
