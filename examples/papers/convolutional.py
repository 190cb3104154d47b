"""The convolutional recurrent network that predicts films, with every kind of unit that video.py compares."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from mnvi.manifolds import Manifold, Stiefel
from mnvi.optim import RiemannianAdam, RiemannianSGD
from mnvi.parametrizations import OWN, TCWY, Parametrization
from mnvi.rnn import ConvLSTM, ConvNERU

MANIFOLDS: dict[str, Manifold] = {  # of kernels that are points for an optimiser
    "rgd-c-c": Stiefel(metric="canonical", retraction="cayley"),
    "rgd-e-c": Stiefel(metric="euclidean", retraction="cayley"),
    "rgd-c-qr": Stiefel(metric="canonical", retraction="qr"),
    "rgd-e-qr": Stiefel(metric="euclidean", retraction="qr"),
    "cayley-adam": Stiefel(retraction="cayley"),
}
METHODS = ("tcwy", "own", "glorot", "orth", "zeros", *MANIFOLDS, "convlstm")


class Point(Parametrization):
    """The matrix itself, which starts on the Stiefel manifold; an optimiser keeps it there, or does not."""

    def __init__(self) -> None:
        super().__init__(init="haar")

    def check_shape(self, size) -> None:
        Stiefel().check_shape(size)

    def manifold(self, dtype: torch.dtype) -> Manifold:
        return Stiefel()

    def matrix(self, *originals: Tensor) -> Tensor:
        return originals[0]

    def coordinates(self, matrix: Tensor) -> Tensor:
        return matrix.clone()

    def draw(self, size, *, generator: torch.Generator | None = None, dtype=None, device=None) -> Tensor:
        return Stiefel().random(*size, generator=generator, dtype=dtype, device=device)


class Network(nn.Module):
    """Predicts each next frame from those before: recurrent units in a bottleneck with skip connections.

    Frames (time, batch, 1, height, width), height and width multiples of 16, are seen with their 2 × 2 pixels as
    channels. On the way up a layer sees what has its size on the way down beside its own input: the units those of the
    way down, the last convolution the frame itself. Convolutions start Glorot-uniform, the last at zero.

    Args:
        method: one of ``METHODS``, the kind of unit.
        width: channels of the first and last unit; those between have 2, 4 and 2 times as many.
        kernel_size: of the units.

    Source: Likhosherstov et al., 'CWY parametrization: a solution for parallelized optimization of orthogonal and
    Stiefel matrices' (2021), appendix E; here no ReLU follows the last convolution.
    """

    def __init__(self, method: str, width: int, kernel_size: int = 3) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 2 * width, width]
        norm = method == "convlstm"
        down = [_resize(nn.Conv2d(a, b, 3, 2, 1), norm) for a, b in zip([4, *sizes[:2]], sizes[:3], strict=True)]
        up = [_resize(_enlarge(a, b), norm) for a, b in zip(sizes[2:], [*sizes[3:], width], strict=True)]
        self.resizes = nn.ModuleList([*down, *up])
        inputs = [*sizes[:3], 2 * sizes[3], 2 * sizes[4]]
        self.units = nn.ModuleList(unit(method, a, b, kernel_size) for a, b in zip(inputs, sizes, strict=True))
        self.last = nn.Conv2d(width + 4, 4, 3, padding=1)
        for resize in self.resizes:
            nn.init.xavier_uniform_(resize[0].weight)  # type: ignore[index]
            nn.init.zeros_(resize[0].bias)  # type: ignore[index]
        # From a random start the last layer's noise is a large error, and getting rid of it kills the ReLUs before it.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, frames: Tensor) -> Tensor:
        """The prediction of the frame after each, in the shape of ``frames``."""
        height, width = frames.shape[-2:]
        if height % 16 or width % 16:
            raise ValueError(f"height and width must be multiples of 16, got {height} and {width}")
        x = F.pixel_unshuffle(frames, 2)
        skips = [x]
        for i, (resize, recurrent) in enumerate(zip(self.resizes[:5], self.units, strict=True)):
            x = _each(resize, x)
            x = recurrent(torch.cat([x, skips.pop()], 2) if i > 2 else x)[0]
            if i < 2:
                skips.append(x)
        x = torch.cat([_each(self.resizes[5], x), skips.pop()], 2)
        return F.pixel_shuffle(_each(self.last, x), 2)


def unit(method: str, inputs: int, channels: int, q: int) -> nn.Module:
    """One recurrent unit."""
    if method == "convlstm":
        return ConvLSTM(inputs, channels, q, instance_norm=True)
    if method in ("tcwy", "own"):
        return ConvNERU(inputs, channels, q, kernel=TCWY() if method == "tcwy" else OWN())
    if method in ("orth", *MANIFOLDS):
        return ConvNERU(inputs, channels, q, kernel=Point())
    kernel = nn.Conv2d(channels, channels, q, padding=q // 2, bias=False)
    if method == "zeros":
        nn.init.zeros_(kernel.weight).requires_grad_(False)
    else:
        nn.init.xavier_uniform_(kernel.weight)
    return ConvNERU(inputs, channels, q, kernel=kernel)


def optimisers(model: Network, method: str, lr: float, rgd_lr: float) -> dict[str, Optimizer]:
    """Adam, and where kernels are points of a manifold, what steps those."""
    kernels = [p for unit in model.units for p in unit.kernel.parameters()] if method in MANIFOLDS else []  # type: ignore[union-attr]
    points = {id(kernel) for kernel in kernels}
    adam = Adam((p for p in model.parameters() if p.requires_grad and id(p) not in points), lr=lr)
    if not kernels:
        return {"optimiser": adam}
    group = [{"params": kernels, "manifold": MANIFOLDS[method]}]
    if method == "cayley-adam":
        return {"optimiser": adam, "kernel optimiser": RiemannianAdam(group, lr=lr)}
    return {"optimiser": adam, "kernel optimiser": RiemannianSGD(group, lr=rgd_lr)}


def _resize(convolution: nn.Module, norm: bool) -> nn.Sequential:
    channels: int = convolution.out_channels  # type: ignore[assignment]
    return nn.Sequential(convolution, *([nn.InstanceNorm2d(channels, affine=True)] if norm else []), nn.ReLU())


def _enlarge(inputs: int, channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, channels, 3, stride=2, padding=1, output_padding=1)


def _each(module: nn.Module, x: Tensor) -> Tensor:
    """The module on every frame of (time, batch, ...)."""
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
