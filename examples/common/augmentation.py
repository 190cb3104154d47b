"""Training images moved, mirrored and with noise at random, a new one of each at every step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Of each data set, by how many pixels its images may move without another meaning, and whether they may be mirrored.
SAFE = {"digits": (1, False), "mnist": (2, False), "fashion_mnist": (2, True), "cifar10": (4, True)}


def transform(data: str, augment: bool, noise: float) -> Callable[[Tensor], Tensor]:
    """What happens to a batch of training images: :func:`flipped_and_shifted` or not, and Gaussian noise added.

    ``noise`` is a ratio to the images' standard deviation. Convolutions on CPUs are faster for the layout it returns.
    """
    shift, flip = SAFE[data]

    def images(x: Tensor) -> Tensor:
        if augment:
            x = flipped_and_shifted(x, shift, flip=flip)
        if noise:
            x = x + noise * torch.randn_like(x)
        return x.contiguous(memory_format=torch.channels_last)

    return images


def flipped_and_shifted(x: Tensor, shift: int = 4, *, flip: bool = True) -> Tensor:
    """Every image of ``x`` (N, C, H, W) moved by up to ``shift`` pixels each way, and mirrored left to right or not.

    What comes in from outside is 0, the mean of normalised images. Source: Krizhevsky et al. (2012), as it is usual
    for CIFAR-10 since He et al. (2015), arXiv:1512.03385, section 4.2. The random numbers are torch's own.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, [shift] * 4)
    rows, columns = torch.randint(2 * shift + 1, (2, len(x), 1), device=x.device)
    rows, columns = rows + torch.arange(height, device=x.device), columns + torch.arange(width, device=x.device)
    if flip:
        columns = torch.where(torch.rand(len(x), 1, device=x.device) < 0.5, columns, columns.flip(1))
    images = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    return padded[images, :, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)
