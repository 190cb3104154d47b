"""A chain as sections, each a layer of weights and what follows it, checked to be what :func:`compact` can cut."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import layers
from ..layers import BayesianLayer
from .between import ELEMENTWISE, NORMS, POOLS, SUPPORTED, width
from .chain import Link
from .units import LAYERS, TRANSPOSED

_PLAIN: dict[type, type] = {
    **{kind: kind for kind in LAYERS},
    **{getattr(layers, f"MN{kind.__name__}"): kind for kind in LAYERS},
}


@dataclass(frozen=True)
class Section:
    """A layer of weights and the modules between it and the next one.

    ``run`` is how many neighbouring inputs of the next layer each output unit becomes: more than 1 after a Flatten.
    """

    name: str
    layer: nn.Module
    between: tuple[Link, ...]
    run: int = 1

    @property
    def rigid(self) -> bool:
        """Whether the layer keeps all its inputs and outputs: grouped and transposed convolutions do."""
        return isinstance(self.layer, TRANSPOSED) or getattr(self.layer, "groups", 1) > 1

    @property
    def inputs(self) -> int:
        """Number of input units."""
        return self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels  # type: ignore

    @property
    def outputs(self) -> int:
        """Number of output units."""
        return self.layer.out_features if isinstance(self.layer, nn.Linear) else self.layer.out_channels  # type: ignore

    @property
    def dims(self) -> int:
        """Spatial dimensions of its input and output, 0 for a linear layer."""
        return self.layer.weight.dim() - 2  # type: ignore[operator]

    def pads_zeros(self) -> bool:
        """Whether a location at the border sees zeros in place of inputs."""
        if not self.dims or self.layer.padding_mode != "zeros" or self.layer.padding == "valid":
            return False
        if self.layer.padding == "same":
            return any(size > 1 for size in self.layer.kernel_size)  # type: ignore[operator, union-attr]
        return any(self.layer.padding)  # type: ignore[arg-type]


def plain_kind(layer: nn.Module) -> type | None:
    """The torch layer that does what ``layer`` does in eval mode, None if it is no (known) layer of weights."""
    kind = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    return _PLAIN.get(kind)


def sections(links: list[Link]) -> tuple[list[nn.Module], list[Section]]:
    """The modules before the first layer of weights, and the sections.

    Raises:
        ValueError: there is no layer of weights, a Bayesian layer is of an unknown kind, or something between two layers of
            weights is not supported.
    """
    places = [i for i, link in enumerate(links) if plain_kind(link.module)]
    if not places:
        raise ValueError("compact needs a model with a linear or convolutional layer, this one has none")
    for i, (name, module) in enumerate(links):
        if i not in places and any(isinstance(part, BayesianLayer) for part in module.modules()):
            raise ValueError(f"layer {name!r} ({type(module).__name__}) is or holds a Bayesian layer of unknown kind")
    found = []
    for start, stop in zip(places, [*places[1:], len(links)], strict=True):
        following = Section(*links[stop], ()) if stop < len(links) else None
        found.append(_section(Section(*links[start], tuple(links[start + 1 : stop])), following))
    return [link.module for link in links[: places[0]]], found


def expand(units: Tensor, run: int) -> Tensor:
    """Each output unit's value for the ``run`` inputs of the next layer that it owns."""
    return units.repeat_interleave(run)


def _section(section: Section, following: Section | None) -> Section:
    """``section`` with its run; raises for anything between it and the layer ``following`` that cannot be cut."""
    if following is None:
        return section
    dims, units, run = section.dims, section.outputs, 1
    for name, module in section.between:
        _check_supported(name, module, dims)
        if isinstance(module, nn.Flatten):
            dims, run = 0, following.inputs // units if section.dims else 1
        if width(module) not in (None, units * run):
            raise ValueError(f"{_said(name, module)} is for {width(module)} units and gets {units * run}")
    if (dims, units * run) != (following.dims, following.inputs):
        hint = "; a Flatten belongs between a convolution and a linear layer" if dims and not following.dims else ""
        raise ValueError(
            f"{_said(following.name, following.layer)} with {following.inputs} inputs cannot follow "
            f"{_said(section.name, section.layer)} with {units * run} outputs in a chain that is to be compacted{hint}"
        )
    return Section(section.name, section.layer, section.between, run)


def _check_supported(name: str, module: nn.Module, dims: int) -> None:
    if type(module) not in SUPPORTED:
        raise ValueError(
            f"{_said(name, module)} between two layers of weights is not supported; supported are Linear, Conv1d/2d/3d, "
            "ConvTranspose1d/2d/3d, BatchNorm, max, average and adaptive pooling, Flatten, Dropout and the activations "
            + ", ".join(kind.__name__ for kind in ELEMENTWISE if "Dropout" not in kind.__name__)
        )
    takes = NORMS.get(type(module), (POOLS.get(type(module), dims),))
    if dims not in takes:
        after = f"values with {dims} spatial dimensions" if dims else "a linear layer or Flatten"
        raise ValueError(f"{_said(name, module)} after {after} is not supported")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(f"{_said(name, module)} must flatten dimensions 1 to -1, got {module}")


def _said(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})"
