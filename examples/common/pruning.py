"""How much to prune: what each threshold leaves, and the largest one that held-out images allow."""

import copy

import torch
from torch import Tensor, nn

from examples.common.metrics import accuracy, probabilities
from mnvi import bayesian_layers
from mnvi.sparsity import prune, report, signal_to_noise

GROUPS = {"weights": ("weights",), "rows": ("rows",), "columns": ("columns",), "both": ("rows", "columns")}
THRESHOLDS = [0.002 * 1.2**k for k in range(50)]  # to 15
HOPELESS = 10.0  # percentage points of accuracy lost, beyond which no larger threshold is tried


def pruned(model: nn.Module, groups: str, threshold: float) -> nn.Module:
    """A copy of ``model`` without the weights, rows or columns whose signal-to-noise ratio is below ``threshold``.

    ``"both"`` prunes rows, then columns. The rows of the last layer are the classes, and stay.
    """
    model = copy.deepcopy(model)
    for kind in GROUPS[groups]:
        prune(model, threshold=threshold, groups=kind, skip=[report(model).layers[-1].name] if kind == "rows" else [])
    return model


@torch.no_grad()
def zero_(model: nn.Module, sparse: nn.Module) -> None:
    """Set the means of ``model`` to zero where those of ``sparse``, its pruned copy, are."""
    for (_, layer), (_, other) in zip(bayesian_layers(model), bayesian_layers(sparse), strict=True):
        layer.weight.mul_(other.weight.ne(0))


def kept_weights(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """For each layer with means held at zero, its weight and where it is not zero."""
    weights = [layer.weight for _, layer in bayesian_layers(model)]
    return {weight: weight.detach().ne(0) for weight in weights if weight.eq(0).any()}


def choose_threshold(model: nn.Module, groups: str, x: Tensor, y: Tensor, tolerance: float) -> float:
    """The largest of ``THRESHOLDS`` whose accuracy on ``x``, ``y`` is at most ``tolerance`` points below the unpruned.

    0, which prunes nothing, if there is none.
    """
    least = accuracy(probabilities(model, x), y) - tolerance - 1e-9
    best, left = 0.0, -1
    reached = least
    for threshold in THRESHOLDS:
        candidate = pruned(model, groups, threshold)
        if report(candidate).left != left:  # else it is the same network as before
            left, reached = report(candidate).left, accuracy(probabilities(candidate, x), y)
        if reached >= least:
            best = threshold
        elif reached < least - HOPELESS:
            break
    return best


def weights_left(model: nn.Module) -> dict[str, list[int]]:
    """For each kind of group, how many weights ``pruned`` would leave at each of ``THRESHOLDS``.

    Counted without pruning: for ``"both"``, columns are scored before the rows are gone.
    """
    layers = [layer for _, layer in bayesian_layers(model)]
    counts = {groups: torch.zeros(len(THRESHOLDS)) for groups in GROUPS}
    for layer in layers:
        share = {kind: _share_left(signal_to_noise(layer, kind)) for kind in ("weights", "rows", "columns")}
        if layer is layers[-1]:
            share["rows"] = torch.ones(len(THRESHOLDS))
        for groups, kinds in GROUPS.items():
            counts[groups] += layer.weight.numel() * torch.stack([share[kind] for kind in kinds]).prod(0)
    return {groups: count.round().int().tolist() for groups, count in counts.items()}


def _share_left(scores: Tensor) -> Tensor:
    """The share of ``scores`` that is at least each of ``THRESHOLDS``."""
    below = torch.searchsorted(scores.flatten().sort().values, torch.tensor(THRESHOLDS, dtype=scores.dtype))
    return 1 - below / scores.numel()
