"""The search for thresholds: first one for everything together, then one for each layer and kind of group."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._cuts import Cut

COMMON, SINGLE = 255, 31  # candidates of a bisection, at most
EVALUATIONS = COMMON.bit_length(), SINGLE.bit_length()  # that it then takes, at most


def search(cuts: Sequence[Cut], fits: Callable[[list[float]], bool]) -> list[float]:
    """The threshold of every cut: the last list of them for which ``fits`` was true; zeros where it never was.

    Scores do not change, so only they are candidates. One threshold for all cuts is found by bisection, among
    candidates that leave less and less by equal factors. Then that of every cut alone goes up as far as the others
    leave room, in the layers with most weights first, by equal shares of what was left.
    """
    found = [0.0] * len(cuts)
    together = _ordered(cuts, found)
    n = len(together)
    found = _raised(found, range(len(cuts)), together, n - n ** (1 - _shares(COMMON)), fits)
    for i in sorted(range(len(cuts)), key=lambda i: -cuts[i].layer.weight.numel()):
        left = _ordered([cuts[i]], [found[i]])
        found = _raised(found, [i], left, len(left) * _shares(SINGLE), fits)
    return found


def _ordered(cuts: Sequence[Cut], thresholds: Sequence[float]) -> Tensor:
    """The different scores that are left, from the lowest, float64."""
    left = [cut.scores[cut.scores >= value].cpu().double() for cut, value in zip(cuts, thresholds, strict=True)]
    return torch.cat(left).unique()


def _shares(count: int) -> Tensor:
    """``count`` numbers from 0 to below 1, at equal distances; 0 stands for the least that can be dropped."""
    return torch.arange(count, dtype=torch.float64) / count


def _raised(
    start: list[float], which: Sequence[int], scores: Tensor, ranks: Tensor, fits: Callable[[list[float]], bool]
) -> list[float]:
    """``start`` with the thresholds ``which`` at the score up to which a bisection over ``ranks`` finds that they fit.

    The lowest score of all is no candidate: nothing is below it.
    """
    values = scores[ranks.round().long().clamp(1, len(scores) - 1).unique()].tolist() if len(scores) > 1 else []
    best, low, high = start, 0, len(values)  # values[:low] fit
    while low < high:
        middle = (low + high) // 2
        trial = [values[middle] if i in which else old for i, old in enumerate(start)]
        if fits(trial):
            best, low = trial, middle + 1
        else:
            high = middle
    return best
