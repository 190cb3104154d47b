"""Compaction: what pruning left without effect is cut out of a network."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._models.bypassed_layers import stop_checking
from ..layers import bayesian_layers
from ..layers.kinds import plain_kind
from ..layers.norms import bayesian_norms
from ._constant_units import UnitValues, cut_units, pass_through, with_finite_constants
from ._module_chain import module_chain
from ._stages import Stage, is_layer_of_weights, is_transposed, split_into_stages
from ._unit_axes import units_in_use
from .select import Select

_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding")


def compact(model: nn.Module) -> nn.Sequential:
    """A plain, physically smaller copy of a pruned ``model`` whose eval-mode output is the same up to rounding.

    Removed are the units (features, channels) between two layers of weights that are

    - *constant*: all their incoming weights from varying units are zero. Their value, the bias pushed through
      activation, batch norm and pooling, is added to the next layer's bias, which is created if it has none;
    - *unused*: all their outgoing weights to units that stay are zero.

    The inputs of the first layer that no weight uses are removed by a :class:`Select` in front of it. Kept are the
    outputs of the last layer, at least one unit everywhere, all units around a grouped or transposed convolution, and a
    non-zero constant that zero padding (of a convolution or a counted average) makes different at the border.

    The model must be a chain: nested Sequentials, or a ``forward`` that :mod:`torch.fx` traces to one. Between two
    layers of weights it may have BatchNorm1d/2d/3d, max, average and adaptive pooling, Flatten, Dropout and elementwise
    activations, or the usual functions for these; before the first and after the last, any torch module. BatchNorm1d
    after a linear layer is taken for one over its features, and ``x.view(-1, features)`` for a flatten.

    Args:
        model: Bayesian and plain layers, pruned by :func:`mnvi.sparsity.prune` or in any other way; left as it is.

    Returns: an ``nn.Sequential`` of torch layers (and perhaps a ``Select``) in eval mode, with the model's dtype and
        device and its own parameters.

    Raises:
        ValueError: the model is no such chain, or a layer occurs twice in it; the message names the layer.

    It is a network like any other, and worth a few more epochs of plain training, with weight decay 0 and a rate that
    falls to 0: they give back what pruning has cost.

    Example:
        >>> mnvi.sparsity.prune(model, data=(x_held_out, y_held_out), groups=("rows", "columns"))
        >>> small = mnvi.sparsity.compact(model)
        >>> torch.testing.assert_close(small(x), model.eval()(x))
        >>> small.train()  # then, for each batch of some epochs, F.cross_entropy(small(x), y).backward()
    """
    return compacted(model)[0]


@torch.no_grad()
def compacted(model: nn.Module) -> tuple[nn.Sequential, dict[str, nn.Module]]:
    """What :func:`compact` returns, and its layers of weights by their names in ``model``."""
    posteriors = {id(layer.posterior): layer.posterior for _, layer in bayesian_layers(model)}  # large, not needed
    working = copy.deepcopy(model, posteriors)  # a traced forward may leave its proxies on the model
    stop_checking(working)
    for norm in list(bayesian_norms(working)):
        norm.make_plain()
    head, stages = split_into_stages(module_chain(working))
    inputs = _inputs(stages)
    keeps = _keeps(stages, inputs)
    small = nn.Sequential(*map(copy.deepcopy, head), *_modules(stages, inputs, keeps)).eval()
    layers = [module for module in list(small.children())[len(head) :] if is_layer_of_weights(module)]
    return small, {stage.name: layer for stage, layer in zip(stages, layers, strict=True)}


def _inputs(stages: list[Stage]) -> list[UnitValues]:
    """The input units of every layer of weights; the model's own all vary."""
    found = [_varying(stages[0].inputs, stages[0].weight)]
    for stage, following in pairwise(stages):
        units = _outputs(stage, found[-1])
        for _, module in stage.between:
            units = pass_through(module, units, following.inputs)
        if following.pads_zeros():
            units = with_finite_constants(units.varying | (units.values != 0), units.values)
        found.append(units)
    return found


def _varying(count: int, like: Tensor) -> UnitValues:
    return UnitValues(like.new_ones(count, dtype=torch.bool), like.new_zeros(count))


def _outputs(stage: Stage, units: UnitValues) -> UnitValues:
    """The output units of a layer, given its input units."""
    if stage.rigid:
        return _varying(stage.outputs, stage.weight)
    values = _summed(stage.weight) @ units.values
    if stage.bias is not None:
        values = values + stage.bias
    return with_finite_constants(units_in_use(stage.weight[:, units.varying], 0), values)


def _keeps(stages: list[Stage], inputs: list[UnitValues]) -> list[Tensor]:
    """What stays, bool: the inputs of the first layer, then the output units of every layer."""
    keeps = [_varying(stages[-1].outputs, stages[-1].weight).varying]
    for previous, stage, units in reversed(list(zip([None, *stages], stages, inputs, strict=False))):
        if stage.rigid or (previous and previous.rigid):
            needed = torch.ones_like(units.varying)
        else:
            needed = units.varying & units_in_use(stage.weight[keeps[0]], 1)
        keep = needed.view(-1, previous.run if previous else 1).any(1)
        keep[0] |= ~keep.any()
        keeps.insert(0, keep)
    return keeps


def _modules(stages: list[Stage], inputs: list[UnitValues], keeps: list[Tensor]) -> Iterator[nn.Module]:
    """The modules of the compact network from the first layer of weights on."""
    first, keep = stages[0], keeps[0]
    if not keep.all():
        # Counted from the end, so that it also takes inputs without a batch and linear layers with more dimensions.
        yield Select(keep.nonzero().flatten(), dim=-1 - first.dims)
    for stage, units, keep_outputs in zip(stages, inputs, keeps[1:], strict=True):
        yield _cut_layer(stage, units, keep, keep_outputs)
        keep = keep_outputs
        for _, module in stage.between:
            if stage is stages[-1]:
                yield copy.deepcopy(module)
                continue
            if isinstance(module, nn.Flatten):
                keep = keep.repeat_interleave(stage.outputs * stage.run // len(keep))
            yield cut_units(module, keep)


def _cut_layer(stage: Stage, units: UnitValues, keep_inputs: Tensor, keep_outputs: Tensor) -> nn.Module:
    """The plain layer with the kept inputs and outputs, and what its removed inputs contributed in its bias."""
    weight, bias = stage.weight, stage.bias
    if not stage.rigid:
        weight, bias = weight[keep_outputs], None if bias is None else bias[keep_outputs]
        constant = _summed(weight[:, ~keep_inputs]) @ units.values[~keep_inputs]
        weight = weight[:, keep_inputs]
        if constant.any():
            bias = constant if bias is None else bias + constant
    return _plain(stage.layer, int(keep_inputs.sum()), int(keep_outputs.sum()), weight, bias)


def _plain(layer: Any, inputs: int, outputs: int, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The torch layer of ``layer``'s kind and options with its own copies of this weight and bias."""
    kind: Any = plain_kind(layer)
    options = {name: getattr(layer, name) for name in _CONVOLUTION if hasattr(layer, name)}
    if not is_transposed(layer):
        options.pop("output_padding", None)
    # On the meta device nothing is allocated or drawn from the global generator.
    new = kind(inputs, outputs, bias=bias is not None, device="meta", **options)
    learnt = layer.weight.requires_grad
    new.weight = nn.Parameter(weight.clone(), learnt)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), learnt if layer.bias is None else layer.bias.requires_grad)
    return new


def _summed(weight: Tensor) -> Tensor:
    """A weight summed over its kernel positions, (out, in): what it does to units that are constant everywhere."""
    return weight.flatten(2).sum(2) if weight.dim() > 2 else weight
