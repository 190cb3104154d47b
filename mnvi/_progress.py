"""The progress line: how far a long computation is, on stderr."""

import sys
import time

SILENCE = 2.0  # seconds before the line appears
EVERY = 0.5  # seconds between two updates


class Progress:
    """How much is done and how long the rest will take; nothing is shown of what takes less than two seconds.

    Args:
        title: first word of the line.
        total: how many units there are; ``None``: not known.

    Example:
        >>> with Progress("predict", 100) as progress:
        ...     progress.advance(10)
    """

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start = time.monotonic()
        self.next = self.start + SILENCE
        self.shown = False
        self.note = ""  # what else the line tells

    def advance(self, count: int) -> None:
        """``count`` more units are done."""
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            self._show(now)

    def _show(self, now: float) -> None:
        spent = now - self.start
        of = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        left = "" if self.total is None else f", {spent * (self.total - self.done) / max(self.done, 1):.0f} s left"
        note = f"; {self.note}" if self.note else ""
        sys.stderr.write(f"\r{self.title}: {of} in {spent:.0f} s{left}{note}   ")
        sys.stderr.flush()
        self.shown, self.next = True, now + EVERY

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.shown:
            self._show(time.monotonic())
            sys.stderr.write("\n")
