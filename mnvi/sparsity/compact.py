"""Cut what pruning left without effect out of a network."""

import torch
from torch import Tensor, nn

from .between import Units, cut, settled, through
from .chain import chain
from .sections import Section, plain_kind, sections
from .select import Select
from .units import all_units, mean_weight, units_in_use


@torch.no_grad()
def compact(model: nn.Module) -> nn.Sequential:
    """A plain, physically smaller copy of a pruned ``model`` whose eval-mode output is the same up to rounding.

    Removed are the units (features, channels) between two layers of weights that are

    - *constant*: all their incoming weights from varying units are zero. Their value, the bias pushed through activation,
      batch norm and pooling, is added to the next layer's bias, which is created if it has none;
    - *unused*: all their outgoing weights to units that stay are zero.

    The inputs of the first layer that no weight uses are removed by a :class:`Select` in front of it. Kept are the outputs of
    the last layer, at least one unit everywhere, all units around a grouped or transposed convolution, and a non-zero
    constant that zero padding (of a convolution or a counted average) makes different at the border.

    The model must be a chain: nested Sequentials, or a ``forward`` that :mod:`torch.fx` traces to one. Between layers of
    weights it may have BatchNorm1d/2d/3d, max, average and adaptive pooling, Flatten, Dropout and elementwise activations,
    the usual functions for these included; before the first and after the last, any torch module. BatchNorm1d after a linear
    layer is taken for one over its features, and ``x.view(-1, features)`` for a flatten.

    Args:
        model: Bayesian and plain layers, pruned by :func:`mnvi.sparsity.prune` or in any other way; left as it is.

    Returns: an ``nn.Sequential`` of torch layers (and perhaps a ``Select``) in eval mode, with the model's dtype and
        device and its own parameters.

    Raises:
        ValueError: the model is no such chain, or a layer occurs twice in it; the message names the layer.

    Example:
        >>> mnvi.sparsity.prune(model, fraction=0.5, groups="rows", skip=["classifier"])
        >>> small = mnvi.sparsity.compact(model)
        >>> torch.testing.assert_close(small(x), model.eval()(x))
    """
    head, chained = sections(chain(model))
    inputs = _inputs(chained)
    keeps = _keeps(chained, inputs)
    modules = [cut(module, all_units(0, inputs[0].values)) for module in head]
    return nn.Sequential(*modules, *_built(chained, inputs, keeps)).eval()
