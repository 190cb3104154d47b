"""The kernel of a recurrent layer: a linear layer, with a constrained, an ordinary or a Bayesian weight."""

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers import BayesianLayer
from ..manifolds import SpecialOrthogonal
from ..parametrizations import Parametrization, Trivialization, constrain
from ..parametrizations.constrain import attached


def check_kernel(kernel, n: int) -> None:
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


def build_kernel(kernel: Parametrization | nn.Linear | None, n: int, **options) -> nn.Linear:
    """A linear layer of its own, from a checked ``kernel``; ``options`` are its device and dtype."""
    if isinstance(kernel, nn.Linear):
        return copy.deepcopy(kernel).to(**options)
    if kernel is None:
        kernel = Trivialization(SpecialOrthogonal(retraction="exp"), rebase_every=100, init="henaff")
    linear = nn.Linear(n, n, bias=False, **options)
    constrain(linear, "weight", copy.deepcopy(kernel))
    return linear


def factors(layer: nn.Module) -> tuple[Tensor, ...]:
    """What the states of one sequence are multiplied by: the layer's weight; or U and P, where Q = I − UᵀP."""
    if parametrize.is_parametrized(layer, "weight") and not parametrize._cache_enabled:
        chain = layer.parametrizations["weight"]  # type: ignore[index]
        if len(chain) == 1 and isinstance(chain[0], Parametrization):
            parametrization, originals = attached(layer, "weight")
            return parametrization.factors(*originals)
    return (sequence_weight(layer),)


def sequence_weight(layer: nn.Module) -> Tensor:
    """The weight for one sequence: drawn where the layer is Bayesian and draws."""
    if isinstance(layer, BayesianLayer):
        return layer.draw_weight() if layer.is_sampling else layer.mean_weight()
    return layer.weight  # type: ignore[return-value]
