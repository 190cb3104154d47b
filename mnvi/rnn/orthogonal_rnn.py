"""A recurrent layer whose kernel is orthogonal, unitary, or whatever its parametrization makes it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from .._checks import number, one_of, positive_int
from .._torch.autocast import full_precision
from .._torch.dtypes import same_kind
from .._torch.tracing import refuse_nonfinite
from ..parametrizations import Parametrization
from ._kernels import build_kernel, check_kernel, kernel_factors
from ._rollout import rollout
from .nonlinearities import NONLINEARITIES


class OrthogonalRNN(nn.Module):
    """h_t = σ(V x_t + Q h_{t−1} [+ b]), with nn.RNN's call: ``output, h_n = rnn(x, hx)``.

    Q is mapped once a call, not once a step. With L < n reflections it is never formed. Where the dtype is complex, so
    are input map, states and outputs, and Q is unitary; ``torch.view_as_real(output).flatten(-2)`` suits a real layer.

    Args:
        input_size: m, features of the input.
        hidden_size: n, features of the state.
        num_layers: how many are stacked, each with a kernel of its own.
        kernel: a parametrization, of which each layer gets a copy; or a layer that maps n to n features without a bias,
            copied too. ``nn.Linear(n, n, bias=False)`` is unconstrained, or a point for a Riemannian optimiser;
            ``mnvi.MNLinear(n, n, bias=False)`` is Bayesian, with one draw a sequence. Default: ``Trivialization`` on
            SpecialOrthogonal by the exponential, rebased every 100 steps, from Henaff's blocks.
        nonlinearity: ``"modrelu"``, with a trained bias of its own, ``"tanh"``, ``"relu"`` or ``"abs"``.
        bias: whether the others than modReLU add a trained b.
        batch_first: whether batches are (batch, time, features) instead of (time, batch, features).
        dropout: probability, from 0 to 1, with which training zeroes an element of the output of each layer but the
            last.
        device: as in nn.RNN.
        dtype: as in nn.RNN, or complex. Then ``float()``, ``double()`` and ``to`` a dtype change the precision of all
            its numbers and nothing else.

    **Input.** ``x`` of shape (time, batch, m) or (time, m), or a PackedSequence of m features. ``hx``, the states
    before the first step, of shape (num_layers, batch, n), zeros where they are not given. Numbers of another dtype are
    converted.

    **Output.** The states of the last layer at every step, in the form of the input, and the last states of all layers,
    h_n, in the form of hx. The output must not be edited in place before the backward pass.

    **Derivatives.** The backward pass is differentiable once. In ``torch.func`` transforms, ``torch.export`` and
    ``torch.jit.trace`` (for sequences of one length) the steps are plain operations, differentiable to any order.

    **Start.** The input map is Kaiming-normal and the bias of modReLU uniform on (−0.01, 0.01), as in the reference
    experiments. Where the nonlinearity is tanh, the map is normal with nn.RNN's variance, 1/(3n), so that tanh is not
    saturated.

    Raises:
        TypeError, ValueError: an argument is none of these, the input does not fit, a sequence has no steps, or there
            is NaN or infinity among the states.

    Sources: Arjovsky, Shah & Bengio (2016), arXiv:1511.06464; Helfrich, Willmott & Ye (2018), arXiv:1707.09520;
    Lezcano-Casado (2019), arXiv:1909.09501.

    Example:
        >>> rnn = mnvi.rnn.OrthogonalRNN(10, 190, kernel=mnvi.parametrizations.CWY(reflections=190))
        >>> output, h_n = rnn(torch.randn(1000, 128, 10))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        kernel: Parametrization | nn.Linear | None = None,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            positive_int(name, value)
        one_of("nonlinearity", nonlinearity, tuple(NONLINEARITIES))
        number("dropout", dropout, 0, 1)
        check_kernel(kernel, hidden_size)
        if NONLINEARITIES[nonlinearity].real and dtype is not None and dtype.is_complex:
            raise ValueError(f"nonlinearity {nonlinearity!r} is for real states, got dtype {dtype}")
        if 0 < dropout < 1 and dtype is not None and dtype.is_complex:
            raise ValueError(f"dropout is for real states, got dtype {dtype}")
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.nonlinearity, self.batch_first, self.dropout = nonlinearity, batch_first, float(dropout)
        self._sigma = NONLINEARITIES[nonlinearity]()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        plus = bias and not self._sigma.has_bias
        self.inputs = nn.ModuleList(nn.Linear(size, hidden_size, bias=plus, **options) for size in sizes)
        like = self.inputs[0].weight.detach()  # type: ignore[operator]
        options = {"device": like.device, "dtype": like.dtype}
        self.kernels = nn.ModuleList(build_kernel(kernel, hidden_size, **options) for _ in sizes)
        self.thresholds = nn.ParameterList(like.real.new_empty(hidden_size) for _ in sizes if self._sigma.has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial input maps and biases; kernels stay as they are."""
        for linear in self.inputs:
            if self.nonlinearity == "tanh":
                nn.init.normal_(linear.weight, std=(3 * self.hidden_size) ** -0.5)  # type: ignore[arg-type]
            else:
                nn.init.kaiming_normal_(linear.weight)  # type: ignore[arg-type]
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        for threshold in self.thresholds:
            nn.init.uniform_(threshold, -0.01, 0.01)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """The states of the last layer at every step and those of every layer after the last."""
        if isinstance(input, PackedSequence):
            self._check(input.data, 2)
            return self._packed(input, hx)
        if not isinstance(input, Tensor):
            raise TypeError(f"expected a tensor or a PackedSequence, got {type(input).__name__}")
        if input.dim() == 2:
            batch = 0 if self.batch_first else 1
            if isinstance(hx, Tensor) and hx.dim() != 2:
                raise ValueError(f"hx must have shape {(self.num_layers, self.hidden_size)}, got {tuple(hx.shape)}")
            output, h_n = self(input.unsqueeze(batch), hx.unsqueeze(1) if isinstance(hx, Tensor) else hx)
            return output.squeeze(batch), h_n.squeeze(1)
        self._check(input, 3)
        x = input.transpose(0, 1) if self.batch_first else input
        time, batch = x.shape[:2]
        if not time:
            raise ValueError(f"a sequence needs at least one step, got an input of shape {tuple(input.shape)}")
        flat = x.reshape(time * batch, self.input_size)
        states, h_n = self._layers(flat, [batch] * time, self._initial(hx, batch, x))
        output = states.view(time, batch, self.hidden_size)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def kernel_factors(self, layer: int = 0) -> tuple[Tensor, ...]:
        """What the states of one sequence are multiplied by in a layer, mapped (of a Bayesian kernel drawn) here.

        Args:
            layer: which, from 0.

        Returns:
            (Q,), of shape (n, n); or thin (U, P), each (L, n), where Q = I − UᵀP is a product of L < n reflections.
        """
        return kernel_factors(self.kernels[layer])

    def _packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, batch_sizes, order, back = packed
        sizes = batch_sizes.tolist()
        initial = self._initial(hx, sizes[0], data)
        states, h_n = self._layers(data, sizes, initial if order is None else initial[:, order])
        return PackedSequence(states, batch_sizes, order, back), (h_n if back is None else h_n[:, back])

    def _layers(self, x: Tensor, sizes: list[int], initial: Tensor) -> tuple[Tensor, Tensor]:
        last = []
        with full_precision(x):
            for layer, linear in enumerate(self.inputs):
                if layer and self.dropout:
                    x = F.dropout(x, self.dropout, self.training)
                bias = self.thresholds[layer] if self.thresholds else None
                z = linear(x.to(initial.dtype))
                z = z.clone() if linear._forward_hooks or _global_forward_hooks else z  # its memory is used again
                x, h = rollout(z, initial[layer], bias, sizes, self._sigma, *self.kernel_factors(layer))
                last.append(h)
        h_n = torch.stack(last)
        refuse_nonfinite("the states of a recurrent layer", torch.view_as_real(h_n) if h_n.is_complex() else h_n)
        return x, h_n

    def _initial(self, hx: Tensor | None, batch: int, x: Tensor) -> Tensor:
        shape, dtype = (self.num_layers, batch, self.hidden_size), self._dtype
        if hx is None:
            return x.new_zeros(shape, dtype=dtype)
        if not isinstance(hx, Tensor):
            raise TypeError(f"hx must be a tensor of shape {shape}, got {type(hx).__name__}")
        if hx.shape != shape:
            raise ValueError(f"hx must have shape {shape}, got {tuple(hx.shape)}")
        if hx.is_complex() and not dtype.is_complex:
            raise TypeError(f"this layer is real, got an hx of {hx.dtype}")
        refuse_nonfinite("hx", hx)
        return hx.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OrthogonalRNN":
        super()._apply(same_kind(fn) if self._dtype.is_complex else fn, recurse)
        return self

    @property
    def _dtype(self) -> torch.dtype:
        return self.inputs[0].weight.dtype  # type: ignore[return-value]

    def _check(self, x: Tensor, dim: int) -> None:
        if x.dim() != dim or x.shape[-1] != self.input_size:
            form = "(batch, time, features)" if self.batch_first else "(time, batch, features)"
            raise ValueError(f"expected {form} with {self.input_size} features, got shape {tuple(x.shape)}")
        if x.is_complex() and not self._dtype.is_complex:
            raise TypeError(f"this layer is real, got an input of {x.dtype}; build it with a complex dtype")

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}, batch_first={self.batch_first}"
        )
