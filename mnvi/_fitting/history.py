"""What a fit did: what it chose, its records, whether the KL has settled."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .judging import Judged
from .models import Objective
from .trial import Trial

WIDEST = 7.9  # of a widening, which is from 1/8 to 8
SETTLED = 0.25  # a posterior has settled where the data meet all but this share of the KL's pull on its scales


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What :func:`mnvi.fit` returns. Of several models, what each has of its own is a list.

    Attributes:
        likelihood: what :func:`mnvi.predict` takes, a ``Likelihood`` with what was learnt.
        kl_weight, epochs: those that were chosen, or given.
        widening: the factor by which held-out data widened the likelihood's scale or temperature, below 1 where they
            narrowed it; 1 without.
        unmet: the share of the KL's pull on the posterior's scales that the data do not meet at the end: with ρ the
            logarithm of a common factor of all scales, |∂(NLL + w·KL/N)/∂ρ| / |∂(w·KL/N)/∂ρ|. The gradients are the
            mean of the last quarter of the steps, and two standard errors are added: it is at most this. 0 without a
            KL in the loss.
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
    unmet: float | list[float]
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
            unmet=one(trial.unmet()),
            seconds=seconds,
            search=[each.shown() for each in judged],
            records=[{**r, "nll": one(r["nll"]), "kl": one(r["kl"])} for r in trial.records],
        )

    @property
    def settled(self) -> bool:
        """Whether the posterior's scales are where they belong: whether three quarters of the KL's pull are met.

        It is one number for all layers of a model. It says that the scales suit the means and the noise as these are,
        not whether means and noise have come to rest.
        """
        return max(_listed(self.unmet)) < SETTLED

    def __repr__(self) -> str:
        last = self.records[-1]
        shown = {"kl_weight": self.kl_weight, "epochs": self.epochs, "nll": last["nll"], "kl": last["kl"]}
        shown |= {"widening": self.widening, "settled": self.settled, "seconds": round(self.seconds, 1)}
        return f"History({', '.join(f'{name}={_rounded(value)}' for name, value in shown.items())})"

    def warn(self, stacklevel: int = 3) -> None:
        """Warn of a posterior that is too narrow, or too wide, still, and of noise that is."""
        if any(not 1 / WIDEST < each < WIDEST for each in _listed(self.widening)):
            warnings.warn(
                f"held-out data widened the likelihood by {_rounded(self.widening)}, the most or least it can be: the "
                "model predicts them badly, or its output is not what the likelihood takes",
                stacklevel=stacklevel,
            )
        if not self.settled:
            warnings.warn(
                f"the posterior has not settled: at the end of the training the data met at least {self._met():.0f} % "
                "of the pull of the KL on its scales; more epochs help, and so do smaller batches, for more steps",
                stacklevel=stacklevel,
            )

    def _met(self) -> float:
        """How many per cent, at least 0."""
        return 100 * max(0.0, 1 - max(_listed(self.unmet)))


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _rounded(value: Any) -> str:
    """Four digits of every number."""
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
