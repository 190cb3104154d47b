"""Constant units: what a module between two layers of weights makes of them, and how units are cut from it.

A unit (a feature or a channel) is *constant* if it has the same value for every input of the network and at every
location, and *varying* otherwise. Behind a layer in which all weights of a unit are zero it is constant, with the bias
as its value. An activation, say, turns this into another constant, so that the unit can be taken out and its value
added to the next layer's bias.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus),
    *(nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NORMS = {nn.BatchNorm1d: (0, 1), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (3,)}  # and the spatial dimensions they take
POOLS = {
    **{nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3},
    **{nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3},
    **{nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3},
    **{nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3},
}
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
SUPPORTED = (*ACTIVATIONS, *DROPOUTS, *NORMS, *POOLS, nn.Flatten)


class UnitValues(NamedTuple):
    """Which of C units vary, bool (C,), and the values of those that do not, (C,), 0 where they do."""

    varying: Tensor
    values: Tensor


def with_finite_constants(varying: Tensor, values: Tensor) -> UnitValues:
    """``UnitValues`` in which a constant that is not a finite number counts as varying."""
    varying = varying | ~torch.isfinite(values)
    return UnitValues(varying, values.masked_fill(varying, 0))


def pass_through(module: nn.Module, units: UnitValues, flat: int) -> UnitValues:
    """The units of ``module``'s eval-mode output, given those of its input; after a Flatten they are ``flat`` many."""
    varying, values = units
    if isinstance(module, nn.Flatten):
        run = flat // len(varying)
        return UnitValues(varying.repeat_interleave(run), values.repeat_interleave(run))
    if type(module) in NORMS:
        return with_finite_constants(varying, _normalized(module, values))
    if type(module) in POOLS:
        return with_finite_constants(varying | (values != 0), values) if _changes_constants(module) else units
    if isinstance(module, DROPOUTS):
        return units
    return with_finite_constants(varying, copy.deepcopy(module).eval()(values[None].clone())[0])


def cut_units(module: nn.Module, keep: Tensor) -> nn.Module:
    """A copy of ``module`` for the units ``keep``, bool (C,)."""
    new = copy.deepcopy(module)
    per_unit = type(module) in NORMS or (isinstance(module, nn.PReLU) and module.num_parameters > 1)
    if not per_unit:
        return new
    for name, parameter in new.named_parameters():
        setattr(new, name, nn.Parameter(parameter.detach()[keep], parameter.requires_grad))
    for name, buffer in new.named_buffers():
        if buffer.dim():  # num_batches_tracked has none
            setattr(new, name, buffer[keep])
    setattr(new, "num_parameters" if isinstance(new, nn.PReLU) else "num_features", int(keep.sum()))
    return new


def unit_count(module: nn.Module) -> int | None:
    """The number of units that ``module`` is made for, None if it takes any."""
    if type(module) in NORMS:
        return module.num_features  # type: ignore[return-value]
    return module.num_parameters if isinstance(module, nn.PReLU) and module.num_parameters > 1 else None


def _normalized(norm: nn.Module, values: Tensor) -> Tensor:
    if norm.running_mean is None:  # with the batch's own statistics a constant is its mean
        values = torch.zeros_like(values)
    else:
        values = (values - norm.running_mean) / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    if norm.weight is None:
        return values
    return values * norm.weight + norm.bias  # type: ignore[operator]


def _changes_constants(pool: nn.Module) -> bool:
    """Whether a window at the border, or every window, averages a constant to another number."""
    if not isinstance(pool, AVERAGES):
        return False
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,)
    return (any(padding) and pool.count_include_pad) or getattr(pool, "divisor_override", None) is not None
