"""Random numbers of a fit: from its seed, and torch's own state as it was afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, Tensor | None]


def checked_seed(seed: Any) -> int:
    """``seed``, if it is one.

    Raises:
        TypeError, ValueError: it is no whole number, or too large to be multiplied.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be an int, got {seed!r} of type {type(seed).__name__}")
    if not 0 <= int(seed) < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2**32, got {seed}")
    return int(seed)


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the random numbers follow from ``seed``; afterwards torch goes on as if none had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        begin(seed, device)
        yield


def begin(seed: int, device: torch.device) -> None:
    """Random numbers of ``seed`` from here on."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> State:
    """Where the random numbers are: what :func:`go_on` takes."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def go_on(state: State, device: torch.device) -> None:
    """Go on with the random numbers from where they were."""
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
