"""The kernel of a recurrent layer: a linear layer, with a constrained, an ordinary or a Bayesian weight."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from ..layers import BayesianLayer
from ..manifolds import SpecialOrthogonal
from ..parametrizations import Parametrization, Trivialization, constrain, factors


def check_kernel(kernel: Any, n: int) -> None:
    """Raise TypeError or ValueError unless ``kernel`` can be that of a recurrent layer of n states."""
    if kernel is None or isinstance(kernel, Parametrization):
        return
    if not isinstance(kernel, nn.Linear):
        raise TypeError(
            f"kernel must be a parametrization such as mnvi.parametrizations.CWY(64), or a layer, "
            f"nn.Linear({n}, {n}, bias=False) or mnvi.MNLinear({n}, {n}, bias=False), got {kernel!r}"
        )
    if kernel.weight.shape != (n, n) or kernel.bias is not None:
        raise ValueError(f"a kernel that is a layer must be Linear({n}, {n}, bias=False), got {kernel}")


def build_kernel(
    kernel: Parametrization | nn.Linear | None, n: int, *, device: Device, dtype: torch.dtype
) -> nn.Linear:
    """A linear layer of its own, from a checked ``kernel``, on this device and of this type."""
    if isinstance(kernel, nn.Linear):
        return copy.deepcopy(kernel).to(device=device, dtype=dtype)
    if kernel is None:
        kernel = Trivialization(SpecialOrthogonal(retraction="exp"), rebase_every=100, init="henaff")
    linear = nn.Linear(n, n, bias=False, device=device, dtype=dtype)
    constrain(linear, "weight", copy.deepcopy(kernel))
    return linear


def kernel_factors(layer: nn.Module) -> tuple[Tensor, ...]:
    """What the states of one sequence are multiplied by: (Q,), drawn where a layer is Bayesian; or thin (U, P)."""
    return (layer.current_weight(),) if isinstance(layer, BayesianLayer) else factors(layer, "weight")


def sequence_weight(layer: nn.Module) -> Tensor:
    """The weight for one sequence: drawn where the layer is Bayesian and samples."""
    return layer.current_weight() if isinstance(layer, BayesianLayer) else layer.weight  # type: ignore[return-value]
