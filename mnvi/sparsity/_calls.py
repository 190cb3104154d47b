"""How a model is called to be measured: in eval mode, and which of its layers comes last."""

from contextlib import contextmanager

import torch
from torch import nn

from .._inputs import Inputs
from ..layers import BayesianLayer
from ..layers.kinds import kind_of


@contextmanager
def in_eval_mode(model: nn.Module):
    """Inside, the model is in eval mode; then every module is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


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
