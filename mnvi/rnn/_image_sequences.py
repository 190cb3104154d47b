"""Sequences of images: the checks that convolutional recurrent layers make of sizes, inputs and initial states."""

from torch import Tensor

from .._checks import positive_int
from .._torch.tracing import refuse_nonfinite


def check_sizes(input_channels: int, hidden_channels: int, kernel_size: int) -> None:
    """Raise TypeError or ValueError unless these are positive integers, the kernel's an odd one."""
    sizes = {"input_channels": input_channels, "hidden_channels": hidden_channels, "kernel_size": kernel_size}
    for name, value in sizes.items():
        positive_int(name, value)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that states keep their height and width, got {kernel_size}")


def time_first(x: Tensor, channels: int, batch_first: bool) -> Tensor:
    """The input as (time, batch, channels, height, width)."""
    if x.dim() != 5 or x.shape[2] != channels:
        form = "(batch, time, channels, height, width)" if batch_first else "(time, batch, channels, height, width)"
        raise ValueError(f"expected {form} with {channels} channels, got shape {tuple(x.shape)}")
    if x.is_complex():
        raise TypeError(f"this layer is real, got an input of {x.dtype}")
    if not x.numel():
        raise ValueError(f"a sequence needs at least one step, and none of its sizes 0, got shape {tuple(x.shape)}")
    return x.transpose(0, 1) if batch_first else x


def initial_state(name: str, state: Tensor | None, like: Tensor) -> Tensor:
    """The given state, or zeros, of the shape and dtype of ``like``, (batch, channels, height, width)."""
    if state is None:
        return like.new_zeros(like.shape)
    if state.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(state.shape)}")
    if state.is_complex():
        raise TypeError(f"this layer is real, got a {name} of {state.dtype}")
    refuse_nonfinite(name, state)
    return state.to(like.dtype)
