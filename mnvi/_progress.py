"""The progress line: how far a long computation is, on stderr."""

import shutil
import sys
import time
from collections.abc import Callable

SILENCE = 2.0  # seconds before the line appears
EVERY = 0.5  # seconds between two updates


class Progress:
    """How much is done and how long the rest will take; nothing is shown of what takes less than two seconds.

    Args:
        title: first word of the line.
        total: how many units there are; ``None``: not known.
        at_most: whether there may be fewer.

    Example:
        >>> with Progress("predict", 100) as progress:
        ...     progress.advance(10)
    """

    def __init__(self, title: str, total: int | None, *, at_most: bool = False) -> None:
        self.title, self.total, self.done, self.at_most = title, total, 0, at_most
        self.start = time.monotonic()
        self.next = self.start + SILENCE
        self.shown, self.width = False, 0
        self.note: str | Callable[[], str] = ""  # what else the line tells

    def advance(self, count: int) -> None:
        """``count`` more units are done."""
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            self._show(now)

    def _show(self, now: float) -> None:
        spent = now - self.start
        of, left, most = f"{self.done}", "", "at most " if self.at_most else ""
        if self.total is not None:
            of += f"{' of ' if most else '/'}{most}{self.total}"
            left = f", {most}{spent * (self.total - self.done) / max(self.done, 1):.0f} s left"
        words = self.note() if callable(self.note) else self.note
        line = f"{self.title}: {of} in {spent:.0f} s{left}{f'; {words}' if words else ''}"
        if sys.stderr.isatty():  # a line that wraps cannot be written over
            line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(self.width)}")  # over all of the line before
        sys.stderr.flush()
        self.shown, self.width, self.next = True, len(line), now + EVERY

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.shown:
            self._show(time.monotonic())
            sys.stderr.write("\n")
