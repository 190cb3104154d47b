"""The table of the kinds of layers: each torch layer that has a weight matrix, and the Bayesian layer it becomes.

A new Bayesian layer is a file of this package and a row of :data:`KINDS`. Conversion, pruning and reports read it here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from .base import BayesianLayer
from .conv import MNConv1d, MNConv2d, MNConv3d, MNConvTranspose1d, MNConvTranspose2d, MNConvTranspose3d
from .linear import MNLinear
from .transposed_linear import MNTransposedLinear, is_transposed_linear


@dataclass(frozen=True)
class LayerKind:
    """A row of the table.

    Attributes:
        plain: the torch layer; None where it belongs to a library that need not be installed.
        bayesian: the layer with a posterior that it becomes.
        output_axis: which of the weight's axes 0 and 1 counts output units; the other one counts input units.
        told_by: tells the plain layer where ``plain`` is None.
        label: what messages call the plain layer where ``plain`` is None.
    """

    plain: type[nn.Module] | None
    bayesian: type[BayesianLayer]
    output_axis: int = 0
    told_by: Callable[[nn.Module], bool] | None = None
    label: str = ""

    @property
    def input_axis(self) -> int:
        """The weight's axis that counts input units."""
        return 1 - self.output_axis

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored with its inputs first: (in, out), or (in, out/groups, *kernel)."""
        return self.output_axis == 1

    @property
    def name(self) -> str:
        """What messages call the plain layer."""
        return self.plain.__name__ if self.plain else self.label


KINDS = (
    LayerKind(nn.Linear, MNLinear),
    LayerKind(nn.Conv1d, MNConv1d),
    LayerKind(nn.Conv2d, MNConv2d),
    LayerKind(nn.Conv3d, MNConv3d),
    LayerKind(nn.ConvTranspose1d, MNConvTranspose1d, output_axis=1),
    LayerKind(nn.ConvTranspose2d, MNConvTranspose2d, output_axis=1),
    LayerKind(nn.ConvTranspose3d, MNConvTranspose3d, output_axis=1),
    LayerKind(None, MNTransposedLinear, output_axis=1, told_by=is_transposed_linear, label="transformers' Conv1D"),
)


def kind_of(layer: nn.Module, *, subclasses: bool = False) -> LayerKind | None:
    """The row in which the class of ``layer``, plain or Bayesian, is; None where there is none.

    A subclass may do something else, so it has no row, unless ``subclasses`` are taken for what they derive from. What
    torch puts on top of a constrained layer's class (:func:`mnvi.constrain`) is no such subclass.
    """
    own = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    for kind in KINDS:
        classes = [each for each in (kind.plain, kind.bayesian) if each is not None]
        if issubclass(own, tuple(classes)) if subclasses else own in classes:
            return kind
        if kind.told_by is not None and kind.told_by(layer):
            return kind
    return None


def plain_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The torch layer that does what ``layer`` does in eval mode; None where there is none in the table."""
    kind = kind_of(layer)
    return None if kind is None else kind.plain


def names() -> str:
    """The plain layers of all kinds, for a message."""
    return ", ".join(kind.name for kind in KINDS)
