"""Monte Carlo dropout: units are dropped at random when predicting, too.

Source: Gal, Ghahramani (2016), arXiv:1506.02142.
"""

import copy

import torch
from torch import Tensor, nn

from examples.baselines.draws import Draws, Training


def before_linear_layers(model: nn.Module, p: float) -> nn.Module:
    """A copy of ``model`` with ``nn.Dropout(p)`` in front of every linear layer, and the same weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, nn.Sequential(nn.Dropout(p), child))
    return model


def mc_dropout(model: nn.Module, training: Training, *, p: float = 0.25, samples: int = 64) -> Draws:
    """Train a copy of ``model`` with dropout before its linear layers; its ``samples`` draws drop as in training.

    Raises:
        ValueError: the model has no linear layer inside another module.
    """
    dropping = before_linear_layers(model, p)
    layers = [module for module in dropping.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ValueError(f"there is no nn.Linear inside the {type(model).__name__} for a dropout to go before")
    training.fit(dropping)

    def draws(x: Tensor) -> Tensor:
        for layer in layers:
            layer.train()
        try:  # what comes before the first dropout is computed once for each chunk
            call = torch.func.vmap(lambda _: dropping(x), randomness="different", chunk_size=16)
            return call(torch.empty(samples))
        finally:
            dropping.eval()

    return draws
