"""A recurrent layer of images whose transition is a convolution that cannot make states grow."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.types import Device

from .._checks import one_of
from .._torch.autocast import full_precision
from .._torch.tracing import refuse_nonfinite
from ..parametrizations import TCWY, Parametrization, constrain
from ._image_sequences import check_sizes, initial_state, time_first
from ._kernels import sequence_weight

SIGMAS = {"relu": torch.relu, "tanh": torch.tanh, "abs": torch.abs}
NONLINEARITIES = (*SIGMAS, "modrelu")


class ConvNERU(nn.Module):
    """The convolutional non-exploding recurrent unit: ``output, g_n = unit(x, g_0)``.

        G_t = σ(K * G_{t−1} + b + K_in * X_t).

    With kernel size q and f channels, q·K as a matrix of shape (q²·f, f) has orthonormal columns, so that
    ‖K * G‖ ≤ ‖G‖ for every state. Where |σ(z)| ≤ |z| it follows that ‖G_t‖ ≤ ‖G_{t−1}‖ + ‖b + K_in * X_t‖: neither
    states nor gradients can explode. K is mapped once a call, and the input's convolution is one for all steps.

    Args:
        input_channels, hidden_channels: channels of the input and of the state, f.
        kernel_size: q, odd; of both convolutions, which keep height and width by zero padding.
        kernel: a parametrization of the tall matrix (q²·f, f), of which the layer takes a copy; K is its weight divided
            by q. Or ``nn.Conv2d(f, f, q, padding=q // 2, bias=False)``, copied too, whose weight is K as it is
            (divided by q where it is constrained): unconstrained, frozen at zero for no memory at all, or
            ``mnvi.MNConv2d`` with these arguments (Bayesian: one draw a sequence). Default: ``TCWY()``.
        nonlinearity: ``"relu"``, ``"tanh"``, ``"abs"``, or ``"modrelu"``, with a trained bias of its own, which may not
            keep |σ(z)| ≤ |z|.
        bias: whether the others than modReLU add a trained b, one for each channel.
        batch_first: whether input and output are (batch, time, ...) instead of (time, batch, ...).
        device, dtype: as in nn.Conv2d.

    Input (time, batch, input_channels, height, width), and g_0 (batch, f, height, width), zeros where it is not
    given. Output the states of all steps, (time, batch, f, height, width), and the last, g_n, as g_0. K_in starts
    Glorot-uniform, b at zero, the bias of modReLU uniform on (−0.01, 0.01).

    Raises:
        TypeError, ValueError: an argument is none of these, the input does not fit, a sequence has no steps, or there
            is NaN or infinity in the last states.

    Source: Likhosherstov et al., 'CWY parametrization: a solution for parallelized optimization of orthogonal and
    Stiefel matrices' (2021), arXiv:2004.08675, section 3.4 and appendix C.

    Example:
        >>> unit = mnvi.rnn.ConvNERU(4, 32, kernel=mnvi.parametrizations.TCWY())
        >>> output, g_n = unit(torch.randn(20, 3, 4, 64, 64))
    """

    threshold: nn.Parameter | None

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        *,
        kernel: Parametrization | nn.Conv2d | None = None,
        nonlinearity: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(input_channels, hidden_channels, kernel_size)
        one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        check_kernel(kernel, hidden_channels, kernel_size)
        super().__init__()
        self.input_channels, self.hidden_channels, self.kernel_size = input_channels, hidden_channels, kernel_size
        self.nonlinearity, self.batch_first = nonlinearity, batch_first
        options: dict[str, Any] = {"padding": kernel_size // 2, "device": device, "dtype": dtype}
        plus = bias and nonlinearity != "modrelu"
        self.input = nn.Conv2d(input_channels, hidden_channels, kernel_size, bias=plus, **options)
        if isinstance(kernel, nn.Conv2d):
            self.kernel = copy.deepcopy(kernel).to(device=device, dtype=dtype)
        else:
            layer = nn.Conv2d(hidden_channels, hidden_channels, kernel_size, bias=False, **options)
            self.kernel = constrain(layer, "weight", TCWY() if kernel is None else copy.deepcopy(kernel))
        self._divisor = kernel_size if parametrize.is_parametrized(self.kernel, "weight") else 1
        threshold = nn.Parameter(self.input.weight.new_empty(hidden_channels)) if nonlinearity == "modrelu" else None
        self.register_parameter("threshold", threshold)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial input convolution and biases; the kernel stays as it is."""
        nn.init.xavier_uniform_(self.input.weight)
        if self.input.bias is not None:
            nn.init.zeros_(self.input.bias)
        if self.threshold is not None:
            nn.init.uniform_(self.threshold, -0.01, 0.01)

    def transition(self) -> Tensor:
        """K, of shape (f, f, q, q); of a Bayesian kernel a draw, or its mean in ``eval()`` mode."""
        weight = sequence_weight(self.kernel)
        return weight / self._divisor if self._divisor > 1 else weight

    def forward(self, input: Tensor, g_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states of all steps, and the last."""
        x = time_first(input, self.input_channels, self.batch_first)
        with full_precision(x):
            z = self.input(x.flatten(0, 1).to(self.input.weight.dtype)).unflatten(0, x.shape[:2])
            g, kernel, states = initial_state("g_0", g_0, z[0]), self.transition(), []
            for step in z:
                g = self._sigma(step + F.conv2d(g, kernel, padding=self.kernel_size // 2))
                states.append(g)
        refuse_nonfinite("the states of a recurrent layer", g)
        return torch.stack(states, 1 if self.batch_first else 0), g

    def _sigma(self, z: Tensor) -> Tensor:
        if self.threshold is None:
            return SIGMAS[self.nonlinearity](z)
        return z.sgn() * torch.relu(z.abs() + self.threshold[:, None, None])

    def extra_repr(self) -> str:
        sizes = f"{self.input_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}, batch_first={self.batch_first}"


def check_kernel(kernel: Any, f: int, q: int) -> None:
    """Raise TypeError or ValueError unless ``kernel`` can be the transition of f channels by q × q pixels."""
    if kernel is None or isinstance(kernel, Parametrization):
        return
    layer = f"Conv2d({f}, {f}, {q}, padding={q // 2}, bias=False)"
    if not isinstance(kernel, nn.Conv2d):
        raise TypeError(
            f"kernel must be a parametrization such as mnvi.parametrizations.TCWY(), nn.{layer} or mnvi.MN{layer}, "
            f"got {kernel!r}"
        )
    plain = (kernel.stride, kernel.dilation, kernel.groups, kernel.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    fits = kernel.weight.shape == (f, f, q, q) and kernel.padding in ("same", (q // 2, q // 2))
    if not (plain and fits) or kernel.bias is not None:
        raise ValueError(f"a kernel that is a layer must be {layer}, got {kernel}")
