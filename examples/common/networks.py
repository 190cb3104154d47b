"""The networks of the examples; one function builds the plain and the Bayesian one."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mnvi
from mnvi.sparsity import Select

VGG_WIDTHS = (10, 10, 10), (20, 20, 20), (40, 40, 40), (20, 20, 20)
Make = Callable[..., nn.Module]


def build(
    name: str, shape: tuple[int, int, int], classes: int, make_linear: Make = nn.Linear, make_conv: Make = nn.Conv2d
) -> mnvi.Sequential:
    """The network ``name`` for images of ``shape`` (channels, height, width).

    Args:
        name: ``"mlp"``, ``"lenet5"`` or ``"vgg"``.
        make_linear, make_conv: ``nn.Linear`` and ``nn.Conv2d``, or what takes their arguments.
    """
    layers = {"mlp": _mlp, "lenet5": _lenet5, "vgg": _vgg}[name](shape, classes, make_linear, make_conv)
    network = mnvi.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            # torch's default shrinks a ReLU network's signal by √6 a layer: nothing is left after vgg's thirteen.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _mlp(shape, classes: int, linear: Make, conv: Make) -> list[nn.Module]:
    sizes = math.prod(shape), 300, 100
    hidden = [(linear(n, p), nn.ReLU()) for n, p in pairwise(sizes)]
    return [nn.Flatten(), *(layer for pair in hidden for layer in pair), linear(sizes[-1], classes)]


def _lenet5(shape, classes: int, linear: Make, conv: Make) -> list[nn.Module]:
    """LeNet-5 in Caffe's version, 20-50-500 units; images below 20 pixels are padded."""
    channels, *sides = shape
    padding = 2 if min(sides) < 20 else 0
    layers: list[nn.Module] = []
    for width in (20, 50):
        layers += [conv(channels, width, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
        channels, sides = width, [(side + 2 * padding - 4) // 2 for side in sides]
    return [*layers, nn.Flatten(), linear(channels * math.prod(sides), 500), nn.ReLU(), linear(500, classes)]


def _vgg(shape, classes: int, linear: Make, conv: Make) -> list[nn.Module]:
    """The 'VGG-like' network of Rudnev & Kropotov (2019): 62,270 weights for 3×32×32 images and 10 classes."""
    channels, *sides = shape
    layers: list[nn.Module] = []
    for widths in VGG_WIDTHS:
        for width in widths:
            layers += [conv(channels, width, 3, padding=1, bias=False), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil, so that small images do not vanish
        sides = [math.ceil(side / 2) for side in sides]
    return [*layers, nn.Flatten(), linear(channels * math.prod(sides), classes)]


# What rebuilds a layer of a compacted network.
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
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
