"""Old public names that go on working for one version, with a warning."""

import functools
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")

REMOVED_IN = "0.3"


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn, in the line of the caller's caller, that ``old`` is now called ``new``; a compiled graph cannot warn."""
    if torch.compiler.is_compiling():
        return
    warnings.warn(f"{old} is now called {new}; the old name goes in mnvi {REMOVED_IN}", DeprecationWarning, stacklevel)


def renamed(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package in which ``names``, old to new, have changed.

    Example:
        >>> __getattr__ = renamed(__name__, {"Family": "PosteriorSpec"})
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return __getattr__


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """A decorator of functions whose keyword ``old`` is now called ``new``.

    Raises:
        TypeError: in the decorated function, both are given.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Result:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}() got {new}= and {old}=, which is its old name")
                warn_renamed(f"the argument {old}= of {function.__qualname__}()", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapped

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads and writes the attribute ``new`` under its ``old`` name."""

    def warn(owner: Any) -> None:
        warn_renamed(f"{type(owner).__name__}.{old}", f"{type(owner).__name__}.{new}", stacklevel=4)

    def read(owner: Any) -> Any:
        warn(owner)
        return getattr(owner, new)

    def write(owner: Any, value: Any) -> None:
        warn(owner)
        setattr(owner, new, value)

    return property(read, write)


def moved(module: str, **members: Any) -> None:
    """Let pickles of an earlier version find ``members`` in a ``module`` that is no more."""
    old = ModuleType(module, "Where an earlier version had what its pickles refer to.")
    vars(old).update(members)
    sys.modules[module] = old
