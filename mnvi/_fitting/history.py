"""What a fit did: what it chose, its records, whether the KL has settled."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from ..likelihoods import Likelihood
from .job import Job
from .judging import Judged
from .trial import Trial

SETTLED = 0.05  # a KL has settled that changed by less than this share over the last quarter of the epochs


@dataclass(frozen=True, eq=False)
class History:
    """What :func:`mnvi.fit` returns. Of several models, what each has of its own is a list.

    Attributes:
        likelihood: what :func:`mnvi.predict` takes, with what was learnt.
        kl_weight, epochs: those that were chosen, or given.
        widening: the factor by which held-out data widened the likelihood's scale or temperature; 1 without.
        search: the trials, dicts of ``model``, ``epochs``, ``kl_weight``, ``nll`` of the held-out data (nats per
            example) and ``widening``.
        records: a dict for each epoch of the training: ``epoch``, ``nll`` (mean over the steps) and ``kl``, whole and
            unweighted, both in nats per example.
        seconds: what the whole fit took.
    """

    likelihood: Likelihood | list[Likelihood]
    kl_weight: float | list[float]
    epochs: int
    widening: float | list[float]
    seconds: float
    search: list[dict[str, Any]] = field(repr=False)
    records: list[dict[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, trial: Trial, chosen: list[Judged], seconds: float, job: Job) -> "History":
        """The history of a finished job."""

        def one(values: list) -> Any:
            return values if len(job.objectives) > 1 else values[0]

        records = [{**r, "nll": one(r["nll"]), "kl": one(r["kl"])} for r in trial.records]
        return cls(
            likelihood=one([each.likelihood for each in job.objectives]),
            kl_weight=one(job.chosen),
            epochs=trial.plan.epochs,
            widening=one(job.widenings),
            seconds=seconds,
            search=[_shown(each) for each in job.judged],
            records=records,
        )

    @property
    def kl_change(self) -> float:
        """By what share of itself the KL changed over the last quarter of the epochs; of several models the largest."""
        before, last = self.records[-1 - len(self.records) // 4]["kl"], self.records[-1]["kl"]
        pairs = zip(before, last, strict=True) if isinstance(last, list) else [(before, last)]
        return max((abs(b - a) / max(abs(b), 1e-12) for a, b in pairs), default=0.0)

    @property
    def settled(self) -> bool:
        """Whether the KL, which converges last, has: whether it changed by less than 5 % at the end."""
        return self.kl_change < SETTLED

    def warn_unless_settled(self) -> None:
        """Warn of a KL that has not settled."""
        if not self.settled:
            warnings.warn(
                f"the KL still changed by {100 * self.kl_change:.0f} % over the last quarter of the epochs: "
                "the posterior has not converged; more epochs help",
                stacklevel=3,
            )


def _shown(judged: Judged) -> dict[str, Any]:
    found = judged._asdict()
    del found["losses"]
    return {**found, "nll": judged.nll}
