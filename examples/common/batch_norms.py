"""Batch norms of a Bayesian network: running statistics are of noisy weights, neither of means nor of a draw."""

import math

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

import mnvi

BATCHES, SIZE = 16, 128  # of training images, for statistics


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is any batch norm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def use_mean_statistics_(model: nn.Module, images: Tensor) -> None:
    """Give the batch norms of ``model`` the statistics that ``images`` have under the mean weights."""
    if has_batch_norms(model):
        plain = mnvi.to_deterministic(model)
        _update(plain, images)
        found = {name: value for name, value in plain.named_buffers() if "running" in name or "num_batches" in name}
        model.load_state_dict(found, strict=False)


def draw(model: nn.Module, images: Tensor) -> nn.Module:
    """A plain network with drawn weights, in eval mode, whose batch norms have the statistics of ``images`` under it.

    Source: Maddox et al. (2019), arXiv:1902.02476, algorithm 1.
    """
    network = mnvi.to_deterministic(model, sample=True)
    if has_batch_norms(network):
        _update(network, images)
    return network.eval()


def _update(network: nn.Module, images: Tensor) -> None:
    images = images[: BATCHES * SIZE]
    update_bn(images.tensor_split(math.ceil(len(images) / SIZE)), network)  # none of a single image
