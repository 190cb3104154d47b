"""A command line made from a frozen dataclass of settings: one option for each field."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch

Settings = TypeVar("Settings")


def option(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A dataclass field with its line of ``--help``, and the limits of its value for :func:`check`."""
    return field(default=default, metadata={"help": help, "limits": (low, high)})


def parse(settings: type[Settings], argv: list[str] | None, description: str) -> Settings:
    """``settings`` from the command line (``None``: the process's own).

    A bad option, or a ValueError of the settings themselves, prints the usage and the reason and exits with status 2.
    """
    parser = argparse.ArgumentParser(program(), description=description, allow_abbrev=False)
    for each in fields(settings):  # type: ignore[arg-type]
        parser.add_argument("--" + each.name.replace("_", "-"), default=each.default, **_argument(each))
    try:
        return settings(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))


def _argument(each: Field) -> dict[str, Any]:
    text = each.metadata["help"]
    if each.type is bool:
        return {"action": "store_true", "help": text}
    if each.default is not None:
        text += " (default: %(default)s)"
    if get_origin(each.type) is Literal:
        return {"choices": get_args(each.type), "help": text}
    kinds: list[Any] = [kind for kind in get_args(each.type) or (each.type,) if kind is not NoneType]
    return {"type": kinds[0], "metavar": kinds[0].__name__.upper(), "help": text}


def names(text: str, choices: Sequence[str]) -> list[str]:
    """The names in a comma-separated option, none of an empty one.

    Raises:
        ValueError: one is not among ``choices``.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(found) - set(choices)):
        raise ValueError(f"methods must be of {', '.join(choices)}, got {', '.join(unknown)}")
    return found


def check(settings: Any, defaults: Mapping[str, Any]) -> None:
    """Give fields that are None their value of ``defaults``; ValueError where a number is not within its limits."""
    for each in fields(settings):
        if getattr(settings, each.name) is None:
            object.__setattr__(settings, each.name, defaults.get(each.name))
        value, (low, high) = getattr(settings, each.name), each.metadata["limits"]
        if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
            limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{each.name} must be a finite number {limits}, got {value}")


def at_least(settings: Any, limits: Mapping[str, float]) -> None:
    """Raise ValueError if a field of ``settings`` that is not None is below its limit, or NaN; or a bad ``seed``."""
    for name, least in limits.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, got {value}")
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {settings.seed}")


def device(name: str) -> torch.device:
    """The device of this name; ValueError where torch has none that can be used."""
    try:
        zero = torch.zeros(1, device=name)
        zero.item()  # what the device meta cannot say
        return zero.device
    except Exception as error:  # torch raises whatever the backend does
        raise ValueError(f"device {name!r} cannot be used: {error}") from None


def program() -> str:
    """How the program that runs was called: ``python -m examples.papers.copying``, or ``sparsify.py``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def as_program(main: Callable[[], object]) -> None:
    """Call ``main`` as a program: errors that a user can mend are one line, and Ctrl-C says how to go on."""
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"{program()}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; give the same command again to go on") from None
