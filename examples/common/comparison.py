"""The results of several methods in one folder: read, checked to belong together, written with their figure."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.common import checkpoints


def finished(
    folder: Path, methods: Sequence[str], settings: dict | None = None, *, needs: Sequence[str] = ()
) -> dict[str, dict]:
    """What ``method.json`` holds for each of the methods that there is one of.

    Raises:
        ValueError: they are of different settings, or of others than ``settings``, or one cannot be read or lacks a
            key of ``needs``.
    """
    runs: dict[str, dict] = {}
    for name in methods:
        path = folder / f"{name.replace(':', '-')}.json"
        if not path.exists():
            continue
        try:
            runs[name] = json.loads(path.read_text())
            if missing := [key for key in ("method", "settings", *needs) if key not in runs[name]]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            saved = {key: value for key, value in runs[name]["settings"].items() if key not in ("threads", "minutes")}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not a result of this program ({error}); delete it") from error
        settings = saved if settings is None else settings
        if different := [key for key in saved if saved[key] != settings.get(key)]:
            raise ValueError(f"{path} is of other settings ({', '.join(different)}); give another --out, or delete it")
    return runs


def arrays(path: Path) -> Any:
    """What ``path``, .npy or .npz, holds; ValueError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            found = np.load(stream)
            return found if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:  # numpy and zipfile raise whatever the bytes suggest
        raise ValueError(f"{path} cannot be read ({error}); delete the results of its method") from error


def report(folder: Path, name: str, result: dict, draw: Callable[[Path], None]) -> dict:
    """Write ``result`` as ``result.json``, with ``name.png`` beside it, if it has ``"runs"``; returns it."""
    if result["runs"]:
        checkpoints.write(folder / f"{name}.png", draw)
        checkpoints.write_json(folder / "result.json", result)
        print(f"in {folder}: result.json, {name}.png")
    return result
