"""The least value of a function of one number, which may have several minima."""

import math
from collections.abc import Callable

GRID = 17  # points of the first look


def minimum(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-3) -> float:
    """Where ``function`` is least between ``low`` and ``high``, as far as an even grid shows which minimum that is.

    Golden sections go on between the neighbours of the best point of the grid. NaN counts as infinite.
    """
    values: dict[float, float] = {}

    def at(x: float) -> float:
        value = function(x)
        values[x] = math.inf if math.isnan(value) else value
        return values[x]

    step = (high - low) / (GRID - 1)
    grid = [low, *(low + k * step for k in range(1, GRID - 1)), high]
    best = min(grid, key=at)
    _golden_sections(at, max(low, best - step), min(high, best + step), tolerance)
    return min(values, key=values.__getitem__)


def _golden_sections(function: Callable[[float], float], low: float, high: float, tolerance: float) -> None:
    """Call ``function`` at points ever nearer to its one minimum between ``low`` and ``high``."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
