"""The whole of a fit: trials that choose on held-out data, then the training on all of them."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import fingerprint
from .attributes import held, set_since
from .checkpoint import Checkpoint, check_saved
from .checks import check, refusal
from .examples import Examples
from .history import History
from .judging import Judged, best, judge
from .members import members
from .models import Objective, check_attributes
from .run import Run
from .trial import NotFinite, Plan, Trial, pieces

SMALL = 50_000  # parameters of a model up to which its copies, one for each weight of the KL, train in one vmap


@dataclass
class Job:
    """One call of :func:`mnvi.fit`.

    Attributes:
        objectives: the models and their likelihoods, trained in place at the end.
        data: what to train on.
        held: data held out beside these, if there are any.
        share: what part of ``data`` is held out for choosing.
        plan: how each training goes.
        weights, lengths: the KL's weights and numbers of epochs to choose from.
        calibrate: whether held-out data widen the likelihoods.
        compile: whether to compile.
        path: of the checkpoint.
    """

    objectives: list[Objective]
    data: Examples
    held: Examples | None
    share: float
    plan: Plan
    weights: Sequence[float]
    lengths: Sequence[int]
    calibrate: bool
    compile: bool
    path: str | Path | None

    def __post_init__(self) -> None:
        self.failure: NotFinite | None = None  # of the last trial that diverged
        self.chooses = len(self.weights) * len(self.lengths) > 1
        self.all = torch.arange(self.data.size)
        order = torch.randperm(self.data.size, generator=torch.Generator().manual_seed(self.plan.seed))
        count = self._held_out()
        self.out, self.rest = order[:count], order[count:].sort().values

    def _held_out(self) -> int:
        """How many of the examples are held out."""
        if not self.chooses or self.held is not None:
            return 0
        count = round(self.share * self.data.size)
        if not 0 < count < self.data.size - 1:
            raise ValueError(
                f"validation={self.share:g} of {self.data.size} examples holds out {count}, which cannot choose among "
                f"kl_weight {_listed(self.weights)} and epochs {_listed(self.lengths)}: give another share, held-out "
                "data, or one kl_weight and one number of epochs"
            )
        return count

    def check(self) -> None:
        """Raise for what does not fit together, before anything is changed."""
        before = held(self.objectives[0])
        check(self.objectives, "data", self.data, self.rest, 2)
        if self.held is not None:
            check(self.objectives, "validation", self.held, torch.arange(self.held.size), 1)
        self.passing = set_since(before, self.objectives[0])
        check_attributes(self.objectives, self.passing)
        if self.plan.batch_size == 1 and (error := refusal(self.objectives[:1], self.data, self.rest[:1])) is not None:
            raise ValueError(f"the model does not train on batches of one example ({error}); give a larger batch_size")
        error = refusal(self.objectives, self.data, self.rest) if len(self.objectives) > 1 else None
        if error is not None:
            raise ValueError(f"these models cannot train in one vmap, fit them one by one ({error})") from error
        if self.path is not None:
            check_saved(self.objectives[0].state())
        self.checkpoint = Checkpoint(self.path, {} if self.path is None else self._settings())

    def _settings(self) -> dict:
        """What the result depends on."""
        return {
            **asdict(self.plan), "epochs": list(self.lengths), "kl_weight": list(self.weights),
            "validation": self.share if self.held is None else fingerprint.of_data(self.held),
            "calibrate": self.calibrate, "data": fingerprint.of_data(self.data),
            "models": fingerprint.of_models(self.objectives, self.passing),
            "likelihood": repr(self.objectives[0].likelihood),
        }  # fmt: skip

    def run(self) -> History:
        """Choose, train and calibrate; what :meth:`check` has passed."""
        run = Run(self.objectives, self.plan.seed, self.checkpoint)
        with run.progress:
            chosen = self._search(run) if self.chooses else []
            weights = [each.kl_weight for each in chosen] or [self.weights[0]] * len(self.objectives)
            trial = self._final(run, weights, chosen[0].epochs if chosen else self.lengths[0])
            widenings = self._calibrate(run, trial, chosen)
        return History.of(self.objectives, trial, weights, widenings, run.judged, run.seconds)

    def _search(self, run: Run) -> list[Judged]:
        """The best trial for each model, of copies with every number of epochs and weight of the KL."""
        tried = {(each.epochs, each.kl_weight) for each in run.judged}
        groups = self._groups()
        left = [(length, weights) for length in self.lengths for weights in groups if (length, weights[0]) not in tried]
        of_trials = sum(self._steps(self.rest, length) for length, _ in left)
        run.expect(of_trials + self._steps(self.all, max(self.lengths)))
        for length, weights in left:
            self._try(run, length, weights)
        if self.failure is not None and not any(math.isfinite(each.nll) for each in run.judged):
            raise self.failure
        return best(run.judged, len(self.objectives), self.data.own)

    def _groups(self) -> list[tuple[float, ...]]:
        """The KL's weights that train together: those of several models, or of a small one that vmap can follow."""
        copies = self.objectives * len(self.weights)
        small = sum(p.numel() for p in self.objectives[0].parameters()) <= SMALL
        if len(self.objectives) > 1 or (small and refusal(copies, self.data, self.rest) is None):
            return [tuple(self.weights)]
        return [(weight,) for weight in self.weights]

    def _try(self, run: Run, epochs: int, weights: Sequence[float]) -> None:
        """Train copies of every model with these weights, and judge them."""
        copies = [copy.deepcopy(each) for each in self.objectives for _ in weights]
        seeds = [self.plan.seed + k for k in range(len(self.objectives)) for _ in weights]
        of_copies = list(weights) * len(self.objectives)
        data = self.data.repeated(len(weights))
        plan = replace(self.plan, epochs=epochs)
        together = members(copies, compile=self.compile)
        trial = Trial(together, of_copies, seeds, data, self.rest, plan, tolerant=True)
        try:
            run.train(trial, "choosing")
            trial.members.write_back()
            data, numbers = (data, self.out) if self.held is None else (self.held.repeated(len(weights)), None)
            results = judge(together, data, numbers, self.calibrate, run.progress)
        except NotFinite as error:  # of all copies
            self.failure, results = error, [(1.0, math.inf)] * len(copies)
        for i, result in enumerate(results):
            run.judged.append(Judged(i // len(weights), epochs, of_copies[i], *result))
        run.save(None)

    def _final(self, run: Run, weights: list[float], epochs: int) -> Trial:
        """The training of the models themselves, on all data."""
        run.expect(self._steps(self.all, epochs))
        seeds = [self.plan.seed + k for k in range(len(self.objectives))]
        together = members(self.objectives, compile=self.compile)
        trial = Trial(together, weights, seeds, self.data, self.all, replace(self.plan, epochs=epochs))
        if run.train(trial, "training"):
            run.save(trial)
        trial.members.write_back()
        return trial

    def _calibrate(self, run: Run, trial: Trial, chosen: list[Judged]) -> list[float]:
        """Widen the likelihoods as held-out data say."""
        widenings = [1.0] * len(self.objectives)
        if self.calibrate and self.held is not None:  # which the training has not seen
            widenings = [widening for widening, _ in judge(trial.members, self.held, None, True, run.progress)]
        elif self.calibrate and chosen:
            widenings = [each.widening for each in chosen]
        for objective, widening in zip(self.objectives, widenings, strict=True):
            if widening != 1:
                objective.likelihood.widen_(widening)
        return widenings

    def _steps(self, numbers: Tensor, epochs: int) -> int:
        return epochs * len(pieces(numbers, self.plan.batch_size))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
