"""What a fit did: what it chose, its records, whether the KL has settled."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .judging import Judged
from .models import Objective
from .trial import Trial

SETTLED = 0.05  # a KL has settled that changed by less than this share over the last quarter of the epochs


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What :func:`mnvi.fit` returns. Of several models, what each has of its own is a list.

    Attributes:
        likelihood: what :func:`mnvi.predict` takes, a ``Likelihood`` with what was learnt.
        kl_weight, epochs: those that were chosen, or given.
        widening: the factor by which held-out data widened the likelihood's scale or temperature; 1 without.
        seconds: what the whole fit took, with what it took before a kill.
        search: the trials, dicts of ``model``, ``epochs``, ``kl_weight``, ``nll`` of the held-out data (nats per
            example) and ``widening``.
        records: a dict for each epoch of the training: ``epoch``, ``nll`` (mean over the steps) and ``kl``, whole and
            unweighted, both in nats per example.
    """

    likelihood: Any
    kl_weight: float | list[float]
    epochs: int
    widening: float | list[float]
    seconds: float
    search: list[dict[str, Any]]
    records: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        objectives: Sequence[Objective],
        trial: Trial,
        weights: list[float],
        widenings: list[float],
        judged: Sequence[Judged],
        seconds: float,
    ) -> "History":
        """The history of a finished training."""

        def one(values: list) -> Any:
            return values if len(objectives) > 1 else values[0]

        return cls(
            likelihood=one([each.likelihood for each in objectives]),
            kl_weight=one(weights),
            epochs=trial.plan.epochs,
            widening=one(widenings),
            seconds=seconds,
            search=[each.shown() for each in judged],
            records=[{**r, "nll": one(r["nll"]), "kl": one(r["kl"])} for r in trial.records],
        )

    @property
    def kl_change(self) -> float:
        """By what share of itself the KL changed over the last quarter of the epochs; of several models the largest.

        Infinite where there is one epoch only, so that nothing is known of it. A KL that is not in the loss, its weight
        being 0, does not count.
        """
        last, before = (_listed(self.records[-1 - back]["kl"]) for back in (0, self._quarter()))
        trained = [k for k, weight in enumerate(_listed(self.kl_weight)) if weight > 0 and last[k] > 0]
        if trained and len(self.records) == 1:
            return float("inf")
        return max((abs(before[k] - last[k]) / last[k] for k in trained), default=0.0)

    @property
    def settled(self) -> bool:
        """Whether the KL, which converges last, has: whether it changed by less than 5 % at the end."""
        return self.kl_change < SETTLED

    def __repr__(self) -> str:
        last = self.records[-1]
        shown = {"kl_weight": self.kl_weight, "epochs": self.epochs, "nll": last["nll"], "kl": last["kl"]}
        shown |= {"widening": self.widening, "settled": self.settled, "seconds": round(self.seconds, 1)}
        return f"History({', '.join(f'{name}={_rounded(value)}' for name, value in shown.items())})"

    def warn_unless_settled(self, stacklevel: int = 3) -> None:
        """Warn of a KL that is seen to change still; after a single epoch nothing is seen."""
        if self.settled or len(self.records) == 1:
            return
        warnings.warn(
            f"the KL still changed by {100 * self.kl_change:.0f} % over the last quarter of the epochs: the "
            "posterior may not have converged; more epochs help",
            stacklevel=stacklevel,
        )

    def _quarter(self) -> int:
        """How many epochs a quarter of them is, at least one where there are two."""
        return min(max(1, len(self.records) // 4), len(self.records) - 1)


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _rounded(value: Any) -> str:
    """Four digits of every number."""
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
