"""Thresholds that held-out data allow: what :func:`find_thresholds` returns."""

from dataclasses import dataclass, field

from ._cuts import Score
from .scores import signal_to_noise


@dataclass(frozen=True)
class LayerThreshold:
    """One layer's threshold for its weights, rows or columns (``groups``), and how many score at least that."""

    name: str
    groups: str
    threshold: float
    left: int
    count: int


@dataclass(frozen=True)
class Thresholds:
    """What :func:`find_thresholds` returns, and ``prune(model, threshold=…)`` takes; ``print`` shows a table.

    Attributes:
        layers: the thresholds, layer by layer.
        measure: ``"error"`` in percent or ``"nll"`` in nats per example.
        before, after: its mean over the held-out examples, of the model as it was and with what is dropped at 0.
        allowed: what ``after`` may be.
        examples: how many there were.
        evaluations: how often they were measured.
        outputs: name of the layer whose rows are the model's outputs and stay, if it was to be pruned.
    """

    layers: tuple[LayerThreshold, ...]
    measure: str
    before: float
    after: float
    allowed: float
    examples: int
    evaluations: int
    outputs: str | None = None
    score: Score = field(default=signal_to_noise, repr=False, compare=False)

    def __str__(self) -> str:
        unit = " %" if self.measure == "error" else " nats"
        kind = "error" if self.measure == "error" else "NLL"
        head = f"held-out {kind}: {self.before:.4g}{unit} -> {self.after:.4g}{unit} (allowed: {self.allowed:.4g}{unit})"
        rows = [f"layer {each.name!r}: {each.left:,} of {each.count:,} {each.groups}, those of a score of at least "
                f"{each.threshold:.3g}" for each in self.layers]  # fmt: skip
        kept = [f"the rows of layer {self.outputs!r} are the outputs and stay"] if self.outputs is not None else []
        return "\n".join([f"{head}, {self.examples:,} examples", *rows, *kept])
