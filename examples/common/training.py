"""A training loop that may be killed at any moment and goes on where it was, to the same result."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from examples.common import checkpoints

SAVE_SECONDS = 60.0  # between two checkpoints
SECONDS = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of the processor{postfix}"  # a bar that shows these, not steps


def train(
    checkpoint: Path,
    parts: Mapping[str, Any],
    settings: dict,
    total: int,
    step: Callable[[int], dict[str, float]],
    *,
    title: str,
    minutes: float = math.inf,
    restart: bool = False,
) -> dict:
    """Call ``step(i)`` for every i below ``total`` that no earlier run has done.

    The state is saved every minute, and after the step that is being taken when Ctrl-C or SIGTERM comes.

    Args:
        checkpoint: file for the state of the ``parts`` and of torch's random numbers.
        parts: whatever has a ``state_dict``: model, optimisers.
        settings: what a result depends on; a checkpoint of others is refused.
        step: takes one training step, whose data must follow from i alone; returns what is to be remembered of it.
        title: of the progress bar.
        minutes: stop after so much time of :func:`clock`, that of earlier runs included, at least one step later.
        restart: begin anew where there is a checkpoint.

    Returns:
        ``"history"``, what the steps returned, in order, and ``"seconds"``, the time they took by :func:`clock`.

    Raises:
        ValueError: something that a step returned is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    if restart:
        checkpoint.unlink(missing_ok=True)
    progress = checkpoints.resume(checkpoint, parts, settings) or {"history": [], "seconds": 0.0}
    history, saved = progress["history"], time.perf_counter()
    timed = minutes < math.inf
    spent = min(progress["seconds"], 60 * minutes)
    scale: dict = {"total": 60 * minutes, "initial": spent, "bar_format": SECONDS} if timed else {}
    with (
        _ending() as signals,
        tqdm(**{"total": total, "initial": len(history), **scale}, desc=title, mininterval=0.5) as bar,
    ):
        while len(history) < total and progress["seconds"] < 60 * minutes and not signals:
            start = clock()
            history.append(finite(step(len(history)), title, len(history) + 1))
            taken = clock() - start
            progress["seconds"] += taken
            now = time.perf_counter()
            bar.update(min(taken, bar.total - bar.n) if timed else 1)
            shown = {"step": len(history)} if timed else {}
            bar.set_postfix({**shown, **{k: f"{v:.4g}" for k, v in history[-1].items()}}, refresh=False)
            if now - saved > SAVE_SECONDS:
                checkpoints.save(checkpoint, parts, settings, progress)
                saved = now
    checkpoints.save(checkpoint, parts, settings, progress)
    if signals:
        raise KeyboardInterrupt
    return progress


def clock() -> float:
    """Seconds of the main thread on a processor, which others on the machine hardly change; with a GPU a clock's."""
    return time.perf_counter() if torch.cuda.is_initialized() else time.thread_time()


def finite(record: dict[str, float], title: str, step: int) -> dict[str, float]:
    """``record`` itself; ValueError where there is NaN or infinity in it."""
    for name, value in record.items():
        if not math.isfinite(value):
            raise ValueError(f"the {name} of {title} is {value} at step {step}; give a lower rate")
    return record


@contextmanager
def _ending() -> Iterator[list[int]]:
    """The signals to end that have come: the first SIGINT or SIGTERM is only noted, so that a step can be finished."""
    came: list[int] = []

    def note(number: int, _) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    heard = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)} if heard else {}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Best:
    """The weights of a model with the least validation error so far; a part of a checkpoint, as the model is."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.error, self.weights = model, math.inf, copy.deepcopy(model.state_dict())

    def compare(self, error: float) -> float:
        """Keep the present weights if ``error`` is less than all before; returns it."""
        if error < self.error:
            self.error, self.weights = error, copy.deepcopy(self.model.state_dict())
        return error

    def state_dict(self) -> dict:
        return {"error": self.error, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.error, self.weights = state["error"], state["weights"]
