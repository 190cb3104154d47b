"""Trained torch networks to Bayesian ones and back."""

import copy
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from . import layers, posteriors
from .layers import BayesianLayer
from .layers.base import INITIAL_RATIO, check_layer_arguments
from .module import Module, kl

_KINDS: dict[type, type] = {
    nn.Linear: layers.MNLinear,
    nn.Conv1d: layers.MNConv1d,
    nn.Conv2d: layers.MNConv2d,
    nn.Conv3d: layers.MNConv3d,
    nn.ConvTranspose1d: layers.MNConvTranspose1d,
    nn.ConvTranspose2d: layers.MNConvTranspose2d,
    nn.ConvTranspose3d: layers.MNConvTranspose3d,
}
_TORCH_KINDS = {bayesian: plain for plain, bayesian in _KINDS.items()}
LARGE = 32 * 2**20  # bytes of covariance factors above which a conversion says how much memory they take


def to_bayesian(
    model: nn.Module,
    posterior: posteriors.Family | None = None,
    prior=None,
    skip: Iterable[str] = (),
    *,
    only: Iterable[str] | None = None,
    estimator: str | None = None,
) -> nn.Module:
    """Replace the linear and convolutional layers of ``model``, in place, by Bayesian ones; return the model.

    Each keeps its parameters, the weights as posterior means; the posterior's standard deviation starts at a tenth of
    the root mean square of the layer's weights. The model gets a ``kl()`` method. A layer used in several places stays
    one layer. Where ``model`` itself is such a layer, its replacement is returned. Layers of other kinds, subclasses
    of torch's included, stay as they are.

    Args:
        model: any module; nested modules are searched.
        posterior, prior: as for :class:`mnvi.MNLinear`, for every converted layer.
        skip: qualified names (``"classifier.2"``) left alone, with all that is below them.
        only: qualified names; convert only these and what is below them.
        estimator: ``"local"`` or ``"weight"``; ``None`` is each layer's default (linear local, convolution weight).

    Raises:
        ValueError: a name in ``skip`` or ``only`` does not exist, nothing at a name in ``only`` can be converted, or
            there is nothing to convert. The model is then unchanged.

    Warns:
        UserWarning: a layer's covariance factors will take more than 32 MiB, with the amount.
    """
    check_layer_arguments(posterior, prior, estimator or "local")
    posterior = posterior or posteriors.MatrixNormal()
    chosen = _choose(
        model, tuple([skip] if isinstance(skip, str) else skip), (only,) if isinstance(only, str) else only
    )
    replacements = {layer: _convert(name, layer, posterior, prior, estimator) for layer, name in chosen.items()}
    model = _replace(model, replacements)
    if not isinstance(model, (Module, BayesianLayer)):
        model.kl = partial(kl, model)  # type: ignore[assignment]  # unlike a bound method, copies and pickles with it
    return model


def to_deterministic(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with plain torch layers: each Bayesian layer's mean (masked where pruned) and bias.

    ``model`` itself keeps its posteriors. In eval mode both give the same outputs. Raises TypeError for a subclass of a
    layer of this library, for which no plain layer is known.
    """
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("kl", None)
    found = {name: module for name, module in plain.named_modules() if isinstance(module, BayesianLayer)}
    for name, module in found.items():
        if type(module) not in _TORCH_KINDS:
            raise TypeError(
                f"layer {name!r} is a {type(module).__name__}, which has no plain torch layer to go back to"
            )
    return _replace(plain, {module: _plain(module) for module in found.values()})


def _choose(model: nn.Module, skip: tuple[str, ...], only: Iterable[str] | None) -> dict[nn.Module, str]:
    """The layers to convert and their names; raises before anything is changed."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    wanted = ("",) if only is None else tuple(only)
    for name in (*skip, *wanted):
        if name not in names:
            raise ValueError(
                f"the model has no module named {name!r}; it has {', '.join(sorted(names - {''})) or 'none'}"
            )
    chosen, skipped = {}, set()
    for name, module in model.named_modules(remove_duplicate=False):
        if any(_below(name, root) for root in skip):
            skipped.add(module)
        elif type(module) in _KINDS and any(_below(name, root) for root in wanted):
            chosen.setdefault(module, name)
    for root in wanted:
        if not any(_below(name, root) for name in chosen.values()):
            kinds = ", ".join(kind.__name__ for kind in _KINDS)
            kind = type(model.get_submodule(root)).__name__
            raise ValueError(f"nothing to convert in {root or 'the model'!r} (a {kind}); what can be is {kinds}")
    return {module: name for module, name in chosen.items() if module not in skipped}


def _below(name: str, root: str) -> bool:
    return root == "" or name == root or name.startswith(root + ".")


def _convert(name: str, layer: nn.Module, posterior: posteriors.Family, prior, estimator: str | None) -> BayesianLayer:
    weight: Any = layer.weight
    _warn_if_large(name, weight, posterior)
    options = {} if estimator is None else {"estimator": estimator}
    new = _rebuild(_KINDS[type(layer)], layer, posterior=posterior, prior=prior, **options)
    scale = INITIAL_RATIO * weight.detach().square().mean().sqrt().item()
    new.posterior.reset_parameters(scale if scale > 0 else new.initial_scale())
    return new


def _plain(layer: BayesianLayer) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(layer.mean_weight())
    return _rebuild(_TORCH_KINDS[type(layer)], layer)


def _rebuild(kind: type, layer: nn.Module, **options):
    """A ``kind`` with ``layer``'s arguments, parameters and training mode."""
    if isinstance(layer, nn.Linear):
        names = ("in_features", "out_features")
    else:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            names += ("output_padding",)
    arguments = {name: getattr(layer, name) for name in names}
    weight, bias = layer.weight, layer.bias
    new = kind(**arguments, bias=bias is not None, device=weight.device, dtype=weight.dtype, **options)
    new.weight, new.bias = weight, bias  # the same parameters, so ties and optimisers that hold them go on
    return new.train(layer.training)


def _warn_if_large(name: str, weight: torch.Tensor, posterior: posteriors.Family) -> None:
    matrix = weight.flatten(1)
    split = (weight.shape[1], weight[0, 0].numel()) if weight.dim() > 2 else None
    count = posterior.num_parameters((matrix.shape[0], matrix.shape[1]), split)
    if count * weight.element_size() > LARGE:
        size = f"{count * weight.element_size() / 2**20:,.0f} MiB, {count / weight.numel():.1f} times its weight"
        advice = "Kronecker, BlockDiagonal or LowRank factors take less"
        warnings.warn(f"the covariance factors of layer {name!r} take {size}; {advice}", stacklevel=4)


def _replace(model: nn.Module, replacements: dict) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # else torch's fused path reads the weights, past the layers
    return replacements.get(model, model)
