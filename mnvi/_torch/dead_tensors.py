"""Tensors that a call under vmap leaves behind: nothing can read or copy them."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

SEQUENCES = (list, deque)


@contextmanager
def keeping_tensors(model: nn.Module) -> Iterator[None]:
    """Give the modules back the tensors that they had in attributes, buffers, lists and dicts, these also nested.

    What a hook collects outside of the modules is out of reach.
    """
    before: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        _remember(vars(module), before)
    try:
        yield
    finally:
        for container, had in before.values():
            _restore(container, had)


def _remember(value: Any, before: dict[int, tuple[Any, Any]]) -> None:
    """Add all containers in ``value`` and what they hold."""
    if isinstance(value, tuple):
        content = value
    elif isinstance(value, (dict, *SEQUENCES)) and id(value) not in before:
        before[id(value)] = value, dict(value) if isinstance(value, dict) else list(value)
        content = list(value.values()) if isinstance(value, dict) else value
    else:
        return
    for each in content:
        _remember(each, before)


def _restore(container: Any, had: Any) -> None:
    """The entries of a dict, or all of a sequence, as they were, where there are other tensors now."""
    if isinstance(container, dict):
        for name in [name for name, value in container.items() if value is not had.get(name) and _has_tensor(value)]:
            if name in had:
                container[name] = had[name]
            else:
                del container[name]
        return
    known = set(map(id, had))
    if any(_has_tensor(value) for value in container if id(value) not in known):
        container.clear()
        container.extend(had)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_tensor, list(value.values())))
    if isinstance(value, (tuple, *SEQUENCES)):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)
