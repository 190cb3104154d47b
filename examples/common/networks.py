"""The networks of the examples; one function builds the plain and the Bayesian one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mnvi
from mnvi.sparsity import Select

Make = Callable[..., nn.Module]
Shape = tuple[int, int, int]
VGG_WIDTHS = (10, 10, 10), (20, 20, 20), (40, 40, 40), (20, 20, 20)


@dataclass(frozen=True)
class Parts:
    """What a network is made of: its layers' constructors, its size, and whether batch norms follow them."""

    linear: Make = nn.Linear
    conv: Make = nn.Conv2d
    width: int = 1
    batch_norm: bool = False

    def dense(self, inputs: int, outputs: int) -> list[nn.Module]:
        """A hidden linear layer with what follows it."""
        norm = [nn.BatchNorm1d(outputs)] if self.batch_norm else []
        return [self.linear(inputs, outputs), *norm, nn.ReLU()]

    def filters(self, inputs: int, outputs: int, size: int, **options: Any) -> list[nn.Module]:
        """A convolution with what follows it."""
        norm = [nn.BatchNorm2d(outputs)] if self.batch_norm else []
        return [self.conv(inputs, outputs, size, **options), *norm, nn.ReLU()]


def build(
    name: str,
    shape: Shape,
    classes: int,
    make_linear: Make = nn.Linear,
    make_conv: Make = nn.Conv2d,
    *,
    width: int = 1,
    batch_norm: bool = False,
) -> mnvi.Sequential:
    """The network ``name`` for images of ``shape`` (channels, height, width).

    Args:
        name: a key of ``NETWORKS``.
        make_linear, make_conv: ``nn.Linear`` and ``nn.Conv2d``, or what takes their arguments.
        width: every hidden layer has so many times its units; 2 makes about 4 times the weights.
        batch_norm: one after every hidden layer.
    """
    parts = Parts(make_linear, make_conv, width, batch_norm)
    network = mnvi.Sequential(*NETWORKS[name](shape, classes, parts))
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            # torch's default shrinks a ReLU network's signal by √6 a layer: nothing is left after vgg's thirteen.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _mlp(shape: Shape, classes: int, parts: Parts) -> list[nn.Module]:
    """LeNet-300-100: two hidden layers."""
    sizes = math.prod(shape), 300 * parts.width, 100 * parts.width
    hidden = [module for n, p in pairwise(sizes) for module in parts.dense(n, p)]
    return [nn.Flatten(), *hidden, parts.linear(sizes[-1], classes)]


def _cnn(shape: Shape, classes: int, parts: Parts) -> list[nn.Module]:
    """Two convolutions 3×3, 16 and 32 channels, and 64 hidden units; odd sizes are rounded up."""
    channels, *sides = shape
    first, second, units = (count * parts.width for count in (16, 32, 64))
    layers = [*parts.filters(channels, first, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)]
    layers += [*parts.filters(first, second, 3, padding=1), nn.Flatten()]
    flat = second * math.prod(math.ceil(side / 2) for side in sides)
    return [*layers, *parts.dense(flat, units), parts.linear(units, classes)]


def _lenet5(shape: Shape, classes: int, parts: Parts) -> list[nn.Module]:
    """LeNet-5 in Caffe's version, 20-50-500 units; images below 20 pixels are padded."""
    channels, *sides = shape
    padding = 2 if min(sides) < 20 else 0
    layers: list[nn.Module] = []
    for width in (20 * parts.width, 50 * parts.width):
        layers += [*parts.filters(channels, width, 5, padding=padding), nn.MaxPool2d(2)]
        channels, sides = width, [(side + 2 * padding - 4) // 2 for side in sides]
    units = 500 * parts.width
    return [*layers, nn.Flatten(), *parts.dense(channels * math.prod(sides), units), parts.linear(units, classes)]


def _vgg(shape: Shape, classes: int, parts: Parts) -> list[nn.Module]:
    """The 'VGG-like' network of Rudnev & Kropotov (2019): 62,270 weights for 3×32×32 images and 10 classes.

    Theirs of 246,940 weights has ``width`` 2.
    """
    channels, *sides = shape
    layers: list[nn.Module] = []
    for widths in VGG_WIDTHS:
        for width in widths:
            layers += parts.filters(channels, width * parts.width, 3, padding=1, bias=False)
            channels = width * parts.width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil, so that small images do not vanish
        sides = [math.ceil(side / 2) for side in sides]
    return [*layers, nn.Flatten(), parts.linear(channels * math.prod(sides), classes)]


NETWORKS = {"mlp": _mlp, "cnn": _cnn, "lenet5": _lenet5, "vgg": _vgg}


# What rebuilds a layer of a compacted network.
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "ceil_mode"),
    nn.ReLU: (),
    nn.Flatten: (),
    Select: ("dim",),
}


def save_compact(network: nn.Module, path: Path) -> None:
    """Write a compacted network, architecture and weights; :func:`load_compact` reads it."""
    layers = []
    for module in network.children():
        arguments = {name: getattr(module, name) for name in _ARGUMENTS[type(module)]}
        if isinstance(module, Select):
            arguments["indices"] = module.indices
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            arguments["bias"] = module.bias is not None
        layers.append((type(module).__name__, arguments))
    torch.save({"layers": layers, "state_dict": network.state_dict()}, path)


def load_compact(path: str | Path) -> nn.Sequential:
    """The network in a file ``compact.pt``, in eval mode; it takes images normalised as ``data.load`` does."""
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    kinds = {kind.__name__: kind for kind in _ARGUMENTS}
    network = nn.Sequential(*(kinds[name](**arguments) for name, arguments in saved["layers"]))
    network.load_state_dict(saved["state_dict"])
    return network.eval()
