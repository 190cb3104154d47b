"""The file of a fit: written in one step, so that a kill leaves the old or the new, and loaded only where it fits."""

import io
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
        """Write ``content``.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        try:
            torch.save({**content, "settings": self.settings}, self._temporary())
        except RuntimeError as error:  # torch's word for a file that cannot be opened, or a disk that is full
            self._temporary().unlink(missing_ok=True)
            raise OSError(f"the checkpoint {self.path} cannot be written ({error})") from error
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


def check_saved(state: dict[str, Any]) -> None:
    """Raise for an extra state (``get_extra_state``) that could be saved but not read back without running its code.

    Raises:
        ValueError: there is one.
    """
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # whatever its classes say to that
            raise ValueError(
                f"a checkpoint cannot hold {name.removeprefix('model.')}, a {type(value).__name__}: what "
                "get_extra_state() returns must be tensors, numbers, texts, lists and dicts; or fit without checkpoint"
            ) from error
