"""Old public names that go on working for one version, with a warning."""

import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

REMOVED_IN = "0.3"


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn, in the line of the caller's caller, that ``old`` is now called ``new``."""
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


def moved(module: str, **members: Any) -> None:
    """Let pickles of an earlier version find ``members`` in a ``module`` that is no more."""
    old = ModuleType(module, "Where an earlier version had what its pickles refer to.")
    vars(old).update(members)
    sys.modules[module] = old
