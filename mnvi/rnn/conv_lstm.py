"""The convolutional LSTM."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .._torch.autocast import full_precision
from .._torch.tracing import refuse_nonfinite
from ._image_sequences import check_sizes, initial_state, time_first


class ConvLSTM(nn.Module):
    """An LSTM of images, without peepholes: ``output, (h_n, c_n) = layer(x, (h_0, c_0))``.

        i, f, o = sigmoid(W_k * X_t + U_k * H_{t−1} + b_k), k = i, f, o;   g = tanh(W_g * X_t + U_g * H_{t−1} + b_g);
        C_t = f∘C_{t−1} + i∘g,   H_t = o∘tanh(C_t).

    The input's convolution is one for all steps.

    Args:
        input_channels, hidden_channels: channels of the input and of the states.
        kernel_size: odd, of all convolutions, which keep height and width by zero padding.
        bias: whether there is b, one for each gate and channel.
        instance_norm: whether the sum in each gate is normalised, over the pixels of every image and channel, and
            then scaled and shifted by trained numbers, which replace b.
        batch_first: whether input and output are (batch, time, ...) instead of (time, batch, ...).
        device, dtype: as in nn.Conv2d.

    Input (time, batch, input_channels, height, width), and h_0 and c_0 (batch, hidden_channels, height, width), zeros
    where they are not given. Output all H_t, (time, batch, hidden_channels, height, width), and the last H and C.
    W and U start Glorot-uniform, b at zero but for 1 in the forget gate.

    Raises:
        TypeError, ValueError: an argument is none of these, the input does not fit, a sequence has no steps, or there
            is NaN or infinity in the last states.

    Source: Shi, Chen, Wang, Yeung, Wong & Woo, 'Convolutional LSTM network' (2015), arXiv:1506.04214, equation 3;
    instance normalisation as Likhosherstov et al. (2021), arXiv:2004.08675, appendix E, have it.

    Example:
        >>> layer = mnvi.rnn.ConvLSTM(4, 32)
        >>> output, (h_n, c_n) = layer(torch.randn(20, 3, 4, 64, 64))
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = True,
        instance_norm: bool = False,
        batch_first: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(input_channels, hidden_channels, kernel_size)
        super().__init__()
        self.input_channels, self.hidden_channels, self.kernel_size = input_channels, hidden_channels, kernel_size
        self.batch_first = batch_first
        options: dict[str, Any] = {"padding": kernel_size // 2, "device": device, "dtype": dtype}
        gates, plus = 4 * hidden_channels, bias and not instance_norm  # i, f, o, g
        self.input = nn.Conv2d(input_channels, gates, kernel_size, bias=plus, **options)
        self.kernel = nn.Conv2d(hidden_channels, gates, kernel_size, bias=False, **options)
        self.norm = nn.InstanceNorm2d(gates, affine=True, device=device, dtype=dtype) if instance_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial convolutions and biases."""
        for gate in (*self.input.weight.chunk(4), *self.kernel.weight.chunk(4)):
            nn.init.xavier_uniform_(gate)
        if self.norm is not None:
            nn.init.ones_(self.norm.weight)
        bias = self.input.bias if self.norm is None else self.norm.bias
        if bias is not None:
            with torch.no_grad():
                bias.zero_().chunk(4)[1].fill_(1)

    def forward(
        self, input: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """H of all steps, and the last H and C."""
        x = time_first(input, self.input_channels, self.batch_first)
        h_0, c_0 = (None, None) if states is None else states
        output = []
        with full_precision(x):
            z = self.input(x.flatten(0, 1).to(self.input.weight.dtype)).unflatten(0, x.shape[:2])
            like = z[0].chunk(4, 1)[0]
            h, c = initial_state("h_0", h_0, like), initial_state("c_0", c_0, like)
            for step in z:
                h, c = self._step(step, h, c)
                output.append(h)
        refuse_nonfinite("the states of a recurrent layer", torch.stack([h, c]))
        return torch.stack(output, 1 if self.batch_first else 0), (h, c)

    def _step(self, z: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = z + F.conv2d(h, self.kernel.weight, padding=self.kernel_size // 2)
        if self.norm is not None:
            z = self.norm(z)
        i, f, o, g = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def extra_repr(self) -> str:
        sizes = f"{self.input_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, instance_norm={self.norm is not None}, batch_first={self.batch_first}"
