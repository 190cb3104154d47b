"""Around `mnvi.sparsity`: thresholds by held-out images, a history of what is left."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnvi import bayesian_layers
from mnvi.sparsity import Thresholds, find_thresholds, prune, report, signal_to_noise

KINDS = "weights", "rows", "columns", "taps"
GROUPS = {**{kind: (kind,) for kind in KINDS}, "both": ("rows", "columns")}
THRESHOLDS = [0.002 * 1.2**k for k in range(50)]  # to 15; of the history


def search(model: nn.Module, groups: str, held: Sequence[Tensor], tolerance: float) -> Thresholds:
    """The thresholds that held-out images and labels allow at a cost of ``tolerance`` points of error."""
    return find_thresholds(model, held, loss=tolerance, groups=GROUPS[groups])


def pruned(model: nn.Module, groups: str, threshold: float | Thresholds) -> nn.Module:
    """A copy of ``model`` without what scores below ``threshold``.

    Below a number, ``"both"`` prunes rows, then columns. The rows of the last layer are the classes, and stay.
    """
    model = copy.deepcopy(model)
    if isinstance(threshold, Thresholds):
        return prune(model, threshold=threshold)
    for kind in GROUPS[groups]:
        prune(model, threshold=threshold, groups=kind, skip=[report(model).layers[-1].name] if kind == "rows" else [])
    return model


def unit_counts(text: str) -> list[int]:
    """``"5,10,16"`` as numbers, none of ``""``.

    Raises:
        ValueError: they are no whole numbers ≥ 1.
    """
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")] if text else []
    if not all(counts):
        raise ValueError(f"units must be whole numbers >= 1 with commas, such as 5,10,16, got {text!r}")
    return counts


@torch.no_grad()
def narrow_(model: nn.Module, counts: Sequence[int]) -> None:
    """Set the means of all but the ``counts`` highest-scoring rows of each hidden Bayesian layer to zero."""
    layers = [layer for _, layer in bayesian_layers(model)][:-1]
    for layer, count in zip(layers, counts, strict=True):
        lowest = signal_to_noise(layer, "rows").argsort(descending=True)[count:]
        layer.weight[lowest] = 0


def weights_left(model: nn.Module) -> dict[str, list[int]]:
    """For each kind of group, how many weights ``pruned`` would leave at each of ``THRESHOLDS``.

    Counted without pruning: for ``"both"``, columns are scored before the rows are gone.
    """
    layers = [layer for _, layer in bayesian_layers(model)]
    counts = {groups: torch.zeros(len(THRESHOLDS)) for groups in GROUPS}
    for layer in layers:
        share = {kind: _share_left(signal_to_noise(layer, kind)) for kind in KINDS}
        if layer is layers[-1]:
            share["rows"] = torch.ones(len(THRESHOLDS))
        for groups, kinds in GROUPS.items():
            counts[groups] += layer.weight.numel() * torch.stack([share[kind] for kind in kinds]).prod(0)
    return {groups: count.round().int().tolist() for groups, count in counts.items()}


def _share_left(scores: Tensor) -> Tensor:
    """The share of ``scores`` that is at least each of ``THRESHOLDS``."""
    below = torch.searchsorted(scores.flatten().sort().values, torch.tensor(THRESHOLDS, dtype=scores.dtype))
    return 1 - below / scores.numel()
