"""Images that a network was not trained for: corrupted ones in five strengths, and ones of no class that it knows.

Corruptions take and return pixels from 0 to 1, (N, C, H, W). They are of the kinds of Hendrycks, Dietterich (2019),
arXiv:1903.12261, written anew and with strengths of their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.data import Data, load

STRENGTHS = (1, 2, 3, 4, 5)
# The data set whose test images are of no class of another.
OTHER = {"mnist": "fashion_mnist", "fashion_mnist": "mnist", "cifar10": "fashion_mnist"}


@dataclass(frozen=True)
class Pixels:
    """The way between the normalised images of a data set and pixels from 0 to 1."""

    low: Tensor  # (C, 1, 1), what black is after normalisation
    high: Tensor  # (C, 1, 1), and white

    @classmethod
    def of(cls, data: Data) -> "Pixels":
        """By the training images, of which some have black and some white pixels in every channel."""
        low, high = data.train_x.amin((0, 2, 3)), data.train_x.amax((0, 2, 3))
        return cls(low[:, None, None], high[:, None, None])

    def of_images(self, x: Tensor) -> Tensor:
        return (x - self.low) / (self.high - self.low)

    def images(self, pixels: Tensor) -> Tensor:
        return self.low + pixels * (self.high - self.low)


def noise(pixels: Tensor, strength: int) -> Tensor:
    """Gaussian noise with a standard deviation of 0.08 times the strength, cut to [0, 1]; the same in every call."""
    generator = torch.Generator().manual_seed(strength)
    return (pixels + 0.08 * strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def blur(pixels: Tensor, strength: int) -> Tensor:
    """A Gaussian filter with a standard deviation of 0.25 + 0.25·strength pixels, cut at three of them."""
    scale = 0.25 + 0.25 * strength
    radius = math.ceil(3 * scale)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=pixels.dtype) / scale).square())
    kernel = torch.outer(line, line) / line.sum().square()
    channels = pixels.shape[1]
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def contrast(pixels: Tensor, strength: int) -> Tensor:
    """The differences from the image's mean times 0.85 − 0.15·strength."""
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean + (0.85 - 0.15 * strength) * (pixels - mean)


def rotation(pixels: Tensor, strength: int) -> Tensor:
    """Turned by 10 degrees times the strength, every second image the other way; outside is as at the border."""
    angle = math.radians(10 * strength) * (1 - 2 * (torch.arange(len(pixels)) % 2))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(pixels))
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1).to(pixels)
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "rotation": rotation,
}


def outside(name: str, data: Data, count: int) -> tuple[Tensor, str]:
    """``count`` images of no class of the data set ``name``, normalised as its own are, and what they are.

    Of digits, for which there is no other data set, they are its test images with their sixteen patches in a random
    order: the same strokes, and no digit. Smaller images of another set get black borders, and as many channels.
    """
    pixels = Pixels.of(data)
    if name == "digits":
        return shuffled_patches(data.test_x[:count], 4), "digits with shuffled patches"
    other = load(OTHER[name])
    found = Pixels.of(other).of_images(other.test_x[:count])
    channels, height, width = data.shape
    left, top = (width - found.shape[3]) // 2, (height - found.shape[2]) // 2
    found = F.pad(found, (left, width - found.shape[3] - left, top, height - found.shape[2] - top))
    return pixels.images(found.expand(-1, channels, -1, -1)), f"{other.title}, test images"


def shuffled_patches(x: Tensor, rows: int) -> Tensor:
    """Images whose ``rows``² patches are in a random order, each in one of its own; the same in every call."""
    size = x.shape[-1] // rows
    patches = F.unfold(x, size, stride=size)  # (N, C·size², rows²)
    order = torch.rand(len(x), rows**2, generator=torch.Generator().manual_seed(0)).argsort(1)
    shuffled = patches.gather(2, order[:, None].expand_as(patches))
    return F.fold(shuffled, (x.shape[-2], x.shape[-1]), size, stride=size)
