"""The folder of a run: files that are whole or not there, and checkpoints that continue only what they began."""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import mnvi


def prepare(folder: str | Path) -> Path:
    """Create ``folder`` and make sure that files can be written to it.

    Raises:
        OSError: they cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error}") from error
    return folder


@contextmanager
def alone(folder: str | Path, *, wait: bool = False) -> Iterator[Path]:
    """The folder, prepared; no other process has it until the end of the block. ``wait`` for one that has it now.

    Raises:
        OSError: it cannot be written to, or, without ``wait``, another process has it.
    """
    folder = prepare(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise OSError(f"another process works in the folder {folder}; give another --out") from None
        print(f"waiting for another process that works in {folder}", flush=True)
        lock.acquire()
    for file in folder.glob("*.tmp.*"):  # of a process that was killed while it wrote
        file.unlink(missing_ok=True)
    try:
        yield folder
    finally:
        lock.release()


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let ``writer`` write a file and put it at ``path`` in one step, so that a kill leaves the old file or the new.

    Raises:
        OSError: it cannot be written, for example on a full disk; what was at ``path`` is still there.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        writer(temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}; nothing was changed there") from error
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    text = json.dumps(content, indent=1)
    write(path, lambda temporary: temporary.write_text(text + "\n"))


def save(path: Path, parts: Mapping[str, Any], settings: dict, progress: dict) -> None:
    """Write a checkpoint: the state of every part, torch's random state, the settings and how far the run is."""
    states = {name: part.state_dict() for name, part in parts.items()}
    content = {"states": states, "rng": torch.get_rng_state(), "settings": settings, "progress": progress}
    if torch.cuda.is_initialized():
        content["cuda_rng"] = torch.cuda.get_rng_state_all()
    write(path, lambda temporary: torch.save(content, temporary))


RESTART = "give another --out, or --restart to begin anew"


def resume(path: Path, parts: Mapping[str, Any], settings: dict, advice: str = RESTART) -> dict | None:
    """Put every part and torch's random state back to a checkpoint; its ``progress``, or ``None`` if there is none.

    ``advice`` ends every error: what the program offers to do about it.

    Raises:
        ValueError: the checkpoint is of other settings or another architecture, or cannot be read.
    """
    content = read(path, settings, advice)
    if content is None:
        return None
    try:
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        torch.set_rng_state(content["rng"])
        if "cuda_rng" in content and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        return dict(content["progress"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a checkpoint of another architecture: {error}; {advice}") from error


def read(path: Path, settings: dict, advice: str = RESTART) -> dict | None:
    """What a checkpoint holds, if there is one; raises as :func:`resume` where it is none or has other settings."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, _ = dict(content["settings"]), dict(content["progress"])
    except Exception as error:  # torch.load raises whatever the bytes suggest
        raise ValueError(f"{path} is not a checkpoint of this program ({error}); {advice}") from error
    names = sorted(name for name in {*saved, *settings} if saved.get(name) != settings.get(name))
    if names:
        differences = ", ".join(f"{name} {saved.get(name)} (now {settings.get(name)})" for name in names)
        raise ValueError(f"{path} is a checkpoint of other settings: {differences}; {advice}")
    return content


def versions() -> dict[str, str]:
    """What a result depends on besides its settings."""
    return {"mnvi": mnvi.__version__, "torch": torch.__version__, "python": platform.python_version()}
