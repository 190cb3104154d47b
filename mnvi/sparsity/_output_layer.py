"""Which layer of a model comes last when it is called."""

import torch
from torch import nn

from .._inputs import Inputs
from ..layers import BayesianLayer
from ..layers.kinds import kind_of


def output_layer(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """The linear or convolutional layer, Bayesian or plain, that is called last for these inputs."""
    called: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, BayesianLayer) or kind_of(m, subclasses=True)]
    handles = [layer.register_forward_pre_hook(lambda module, _: called.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return called[-1] if called else None
