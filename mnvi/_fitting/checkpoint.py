"""The file of a fit: written in one step, so that a kill leaves the old or the new, and loaded only where it fits."""

import os
import time
from pathlib import Path
from typing import Any

import torch

EVERY = 30.0  # seconds between two writes


class Checkpoint:
    """What is done so far, on disk; without a path nothing is kept.

    Args:
        path: the file, or None.
        settings: what the result depends on; a file of others is refused.

    Raises:
        ValueError: the file is of other settings, or cannot be read.
        OSError: its folder cannot be written to.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = None if path is None else Path(path), settings
        self.written = time.monotonic()
        self.content: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self.content = self._read(self.path)
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary().touch()  # what cannot be written is said now
            self._temporary().unlink()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.monotonic() - self.written >= EVERY

    def save(self, **content: Any) -> None:
        """Write ``content``."""
        if self.path is None:
            return
        torch.save({**content, "settings": self.settings}, self._temporary())
        os.replace(self._temporary(), self.path)
        self.written = time.monotonic()

    def _temporary(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")

    def _read(self, path: Path) -> dict[str, Any]:
        advice = "give another path, or delete the file to begin anew"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            saved = dict(content["settings"])
        except Exception as error:  # torch.load raises whatever the bytes suggest
            raise ValueError(f"{path} is not the checkpoint of a fit ({error}); {advice}") from error
        names = sorted(name for name in {*saved, *self.settings} if saved.get(name) != self.settings.get(name))
        if names:
            differences = ", ".join(f"{name} {saved.get(name)} (now {self.settings.get(name)})" for name in names)
            raise ValueError(f"{path} is the checkpoint of another fit: {differences}; {advice}")
        return content
