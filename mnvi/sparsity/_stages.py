"""The stages of a chain: each a layer of weights and what follows it, checked to be what :func:`compact` can cut."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..layers import BayesianLayer
from ..layers.kinds import kind_of, plain_kind
from ._constant_units import ACTIVATIONS, NORMS, POOLS, SUPPORTED, unit_count
from ._module_chain import Link
from ._unit_axes import mean_weight


@dataclass(frozen=True, eq=False)
class Stage:
    """A layer of weights and the modules between it and the next one.

    ``run`` is how many neighbouring inputs of the next layer each output unit becomes: more than 1 after a Flatten.
    """

    name: str
    layer: Any
    between: tuple[Link, ...] = ()
    run: int = 1

    def __str__(self) -> str:
        return str(Link(self.name, self.layer))

    @cached_property
    def weight(self) -> Tensor:
        """The weight in eval mode, masked, detached; (out, in, *kernel) unless ``rigid``."""
        return mean_weight(self.layer)

    @property
    def bias(self) -> Tensor | None:
        """The bias, detached."""
        return None if self.layer.bias is None else self.layer.bias.detach()

    @property
    def rigid(self) -> bool:
        """Whether the layer keeps all its inputs and outputs: grouped and transposed convolutions do."""
        return is_transposed(self.layer) or getattr(self.layer, "groups", 1) > 1

    @property
    def inputs(self) -> int:
        """Number of input units."""
        return self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels

    @property
    def outputs(self) -> int:
        """Number of output units."""
        return self.layer.out_features if isinstance(self.layer, nn.Linear) else self.layer.out_channels

    @property
    def dims(self) -> int:
        """Spatial dimensions of its input and output, 0 for a linear layer."""
        return self.layer.weight.dim() - 2

    def pads_zeros(self) -> bool:
        """Whether a location at the border sees zeros in place of inputs."""
        if not self.dims or self.layer.padding_mode != "zeros" or self.layer.padding == "valid":
            return False
        if self.layer.padding == "same":
            return any(size > 1 for size in self.layer.kernel_size)
        return any(self.layer.padding)


def is_transposed(layer: nn.Module) -> bool:
    """Whether ``layer`` is a transposed convolution, whose weight is stored with its inputs first."""
    kind = kind_of(layer)
    return kind is not None and kind.is_transposed


def is_layer_of_weights(module: nn.Module) -> bool:
    """Whether ``module`` is linear or a convolution, as every :class:`Stage` is, and not a subclass of these."""
    return issubclass(plain_kind(module) or nn.Module, (nn.Linear, _ConvNd))


def split_into_stages(links: list[Link]) -> tuple[list[nn.Module], list[Stage]]:
    """The modules before the first layer of weights, and the stages.

    Raises:
        ValueError: there is no layer of weights, a Bayesian layer is of an unknown kind, or what stands between two
            layers of weights is not supported.
    """
    places = [i for i, link in enumerate(links) if is_layer_of_weights(link.module)]
    if not places:
        raise ValueError("compact needs a model with a linear or convolutional layer, this one has none")
    for i, link in enumerate(links):
        if i not in places and any(isinstance(part, BayesianLayer) for part in link.module.modules()):
            raise ValueError(f"{link} is or holds a Bayesian layer of unknown kind")
    found = []
    for start, stop in zip(places, [*places[1:], len(links)], strict=True):
        following = Stage(*links[stop]) if stop < len(links) else None
        stage = Stage(*links[start], tuple(links[start + 1 : stop]))
        if not stage.dims and any(getattr(link.module, "may_change_batch", False) for link in stage.between):
            raise ValueError(f"a view after {stage} may change the batch; write flatten(1) to have it compacted")
        found.append(_checked(stage, following))
    return [link.module for link in links[: places[0]]], found


def _checked(stage: Stage, following: Stage | None) -> Stage:
    """``stage`` with its run; raises for anything between it and the layer ``following`` that cannot be cut."""
    if following is None:
        return stage
    dims, units, run = stage.dims, stage.outputs, 1
    for link in stage.between:
        _check_supported(link, dims)
        if isinstance(link.module, nn.Flatten):
            dims, run = 0, following.inputs // units if stage.dims else 1
        made_for = unit_count(link.module)
        if made_for not in (None, units * run):
            raise ValueError(f"{link} is for {made_for} units and gets {units * run}")
    if (dims, units * run) != (following.dims, following.inputs):
        hint = "; a Flatten belongs between a convolution and a linear layer" if dims and not following.dims else ""
        raise ValueError(
            f"{following} with {following.inputs} inputs cannot follow {stage} with {units * run} outputs "
            f"in a chain that is to be compacted{hint}"
        )
    return replace(stage, run=run)


def _check_supported(link: Link, dims: int) -> None:
    module, kind = link.module, type(link.module)
    if kind not in SUPPORTED:
        activations = ", ".join(kind.__name__ for kind in ACTIVATIONS)
        raise ValueError(
            f"{link} between two layers of weights is not supported; supported are Linear, Conv1d/2d/3d, ConvTranspose"
            "1d/2d/3d, BatchNorm1d/2d/3d, max, average and adaptive pooling, Flatten, Dropout and the activations "
            + activations
        )
    takes = NORMS.get(kind, (POOLS.get(kind, dims),))
    if dims not in takes:
        after = f"values with {dims} spatial dimensions" if dims else "a linear layer or Flatten"
        raise ValueError(f"{link} after {after} is not supported")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(f"{link} must flatten dimensions 1 to -1, got {module}")
