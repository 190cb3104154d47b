"""Which coordinates of so(d) a step takes: pairs (j, l), j < l, of columns, as index tensors of shape (2, k).

A matching is a set of pairs without a common column, so that the rotations of its pairs commute. The coordinates are
numbered row by row: (0, 1), (0, 2), ..., (0, d − 1), (1, 2), ...
"""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .._checks import positive_int
from ..linalg.givens import all_partial_derivatives, partial_derivatives


def check_block(block: Any) -> None:
    """Raise TypeError or ValueError unless ``block`` is an int ≥ 1 or a float in (0, 1]."""
    if isinstance(block, Integral) or not isinstance(block, Real):
        positive_int("block", block)
    elif not 0 < float(block) <= 1:
        raise ValueError(f"block must be a number of pairs or a fraction in (0, 1] of the coordinates, got {block}")


def block_size(block: Any, d: int, disjoint: bool) -> int:
    """The number of pairs that an int, or a fraction of the d(d − 1)/2 coordinates, stands for."""
    if d < 2:
        raise ValueError(f"coordinate descent needs at least 2 columns, got {d}")
    total = d * (d - 1) // 2
    most = d // 2 if disjoint else total
    if not isinstance(block, Integral):
        return min(most, max(1, round(block * total)))
    if int(block) > most:
        raise ValueError(f"block must be at most {most} {'disjoint ' * disjoint}pairs of {d} columns, got {block}")
    return int(block)


def select(
    x: Tensor, grad: Tensor, size: int, generator: torch.Generator, *, uniform: bool, disjoint: bool
) -> tuple[Tensor, Tensor]:
    """``size`` pairs, random or of the largest partial derivatives, shape (2, k), and those derivatives, shape (k,).

    Where a gradient that is not finite was read, so is one of the derivatives.
    """
    d = x.shape[-1]
    if uniform:
        pairs = (random_matching if disjoint else random_pairs)(d, size, generator).to(x.device)
        if disjoint:
            return pairs, partial_derivatives(x, grad, pairs)
    table = all_partial_derivatives(x, grad)
    if not uniform:
        pairs = (greedy_matching if disjoint and size > 1 else heaviest_pairs)(table.abs(), size)  # NaN is heaviest
    return pairs, table[pairs[0], pairs[1]]


def random_matching(d: int, size: int, generator: torch.Generator) -> Tensor:
    """``size`` ≤ d/2 disjoint pairs of d columns, every such set with the same probability; O(d)."""
    columns = torch.randperm(d, generator=generator, device=generator.device)[: 2 * size]
    return columns.view(2, size).sort(0).values


def greedy_matching(weights: Tensor, size: int) -> Tensor:
    """The first ``size`` pairs of the greedy matching: the heaviest pair, then the heaviest of the columns left, ...

    Pairs of weight 0 are left out; NaN is the heaviest. The host goes through the heaviest eighth of all pairs, then
    of those of the columns left, and so on. Each time every pair seen loses a column, so at least a sixteenth of the
    columns go, whatever the weights, and the work is O(d²) in all.

    Args:
        weights: ≥ 0, symmetric, shape (d, d).
        size: at least 1.

    Returns:
        Pairs of descending weights, shape (2, k), k ≤ size.
    """
    free, chosen = [True] * len(weights), []
    left = torch.arange(len(weights), device=weights.device)
    while len(chosen) < size and len(left) > 1:
        pairs = left[_all_pairs(len(left), weights)]
        values, order = weights[pairs[0], pairs[1]].topk(math.ceil(pairs.shape[1] / 8))
        heaviest = pairs[:, order[values != 0]]
        if not heaviest.numel():
            break
        for first, second in zip(*heaviest.tolist(), strict=True):
            if free[first] and free[second]:
                chosen.append((first, second))
                free[first] = free[second] = False
        left = torch.tensor(free, device=weights.device).nonzero().squeeze(1)
    return torch.tensor(chosen[:size], dtype=torch.long, device=weights.device).view(-1, 2).T


def random_pairs(d: int, size: int, generator: torch.Generator) -> Tensor:
    """``size`` different pairs, disjoint or not, every such set with the same probability; O(d²)."""
    numbers = torch.randperm(d * (d - 1) // 2, generator=generator, device=generator.device)[:size]
    return _all_pairs(d, numbers)[:, numbers]


def heaviest_pairs(weights: Tensor, size: int) -> Tensor:
    """The ``size`` heaviest pairs, disjoint or not, of symmetric ``weights``, shape (d, d)."""
    pairs = _all_pairs(len(weights), weights)
    return pairs[:, weights[pairs[0], pairs[1]].topk(size).indices]


def numbers(pairs: Tensor, d: int) -> Tensor:
    """The number of each pair among the d(d − 1)/2 coordinates."""
    first, second = pairs
    return first * (2 * d - first - 1) // 2 + second - first - 1


def _all_pairs(d: int, like: Tensor) -> Tensor:
    return torch.triu_indices(d, d, 1, device=like.device)
