"""The networks of a comparison, which classify images of shape (channels, height, width), each without softmax."""

import itertools
import math

import torch
from torch import Tensor, nn

UNITS = 400  # of a hidden layer


class GaussianNoise(nn.Module):
    """x + scale·ε with ε standard normal, in train mode; x in eval mode.

    Raises:
        ValueError: the scale is negative, or not finite.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale must be finite and at least 0, got {scale}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two convolutions and two linear layers, for images of even height and width."""
    channels, height, width = shape
    first = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(8 * height * width, 64), nn.ReLU(), nn.Linear(64, classes))


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two hidden layers of 400 units."""
    hidden = [nn.Linear(math.prod(shape), UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(UNITS, classes))


def noisy_mlp(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The same with batch norms, and in training noise in the inputs, 1, and in the hidden units, 0.3.

    Source: the supervised network of Rasmus et al. (2015), arXiv:1507.02672, whose noise is 0.3 of pixels between 0
    and 1, a standard deviation of MNIST, and of normalised units.
    """
    sizes = [math.prod(shape), UNITS, UNITS]
    layers: list[nn.Module] = [nn.Flatten(), GaussianNoise(1.0)]
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), nn.BatchNorm1d(m), GaussianNoise(0.3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(UNITS, classes))


NETWORKS = {"cnn": cnn, "mlp": mlp, "noisy-mlp": noisy_mlp}
