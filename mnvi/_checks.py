"""Checks of arguments, shared by all public constructors; each raises before anything is allocated or changed."""

import inspect
import math
from numbers import Integral, Real
from typing import Any


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` if it is an integer >= 1, else raise TypeError or ValueError naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def positive_float(name: str, value: Any) -> float:
    """Return ``float(value)`` if it is finite and > 0, else raise TypeError or ValueError naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    given = _as_float(value)
    if not math.isfinite(given) or given <= 0:
        raise ValueError(f"{name} must be finite and positive, got {value}")
    return given


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, below: bool = False) -> float:
    """Return ``float(value)`` if it is a finite number from ``low`` to ``high``, else raise.

    Args:
        name: what the message calls the number.
        value: what came.
        low, high: the range; both belong to it.
        below: whether ``high`` does not belong to it.

    Raises:
        TypeError, ValueError: naming ``name``, what came and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    given = _as_float(value)
    inside = low <= given < high if below else low <= given <= high
    if not (math.isfinite(given) and inside):
        bounds = [f"at least {low:g}"] if low > -math.inf else []
        bounds += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []
        raise ValueError(f"{name} must be {', '.join(['finite', *bounds])}, got {value}")
    return given


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``, else raise ValueError listing them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def instance(name: str, value: Any, kind: type) -> Any:
    """Return ``value`` if it is an instance of ``kind``, else raise TypeError naming both."""
    if not isinstance(value, kind):
        if kind.__module__.startswith("torch."):
            raise TypeError(f"{name} must be a torch.{kind.__module__.split('.')[1]}.{kind.__name__}, got {value!r}")
        hint = f"; did you mean {value.__name__}()?" if isinstance(value, type) and issubclass(value, kind) else ""
        module = kind.__module__.removesuffix(".base")
        examples = ", ".join(f"{module}.{each.__name__}()" for each in _concrete(kind)[:2])
        raise TypeError(f"{name} must be an object such as {examples}, got {value!r}{hint}")
    return value


def _concrete(kind: type) -> list[type]:
    """The subclasses that are not abstract, in the order of their definition."""
    found = [each for below in kind.__subclasses__() for each in (below, *_concrete(below))]
    return [each for each in found if not inspect.isabstract(each)]


def _as_float(value: Real) -> float:
    """The number as a float, infinite where an int is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
