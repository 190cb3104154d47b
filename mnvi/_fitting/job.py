"""The whole of a fit: trials that choose on held-out data, then the training on all of them."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .._progress import Progress
from .checkpoint import Checkpoint
from .examples import Examples
from .judging import Judged, best, judge
from .members import Members, Objective
from .trial import Plan, Trial

TRIAL = 0.5  # epochs of a trial beside those of the training that it stands for
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
        self.chooses = len(self.weights) * len(self.lengths) > 1
        order = torch.randperm(self.data.size, generator=torch.Generator().manual_seed(self.plan.seed))
        count = round(self.share * self.data.size) if self.chooses and self.held is None else 0
        if self.chooses and self.held is None and not 0 < count < self.data.size:
            raise ValueError(
                f"validation={self.share:g} of {self.data.size} examples holds out {count}, which cannot choose among "
                f"{len(self.weights)} kl_weight and {len(self.lengths)} epochs: give another share, or one number of each"
            )
        self.out, self.rest = order[:count], order[count:].sort().values
        settings = {**asdict(self.plan), "kl_weight": list(self.weights), "epochs": list(self.lengths)}
        settings |= {"validation": self.share, "models": len(self.objectives), "examples": self.data.size}
        self.checkpoint = Checkpoint(self.path, {**settings, "calibrate": self.calibrate})
        self.judged: list[Judged] = []
        self.widenings = [1.0] * len(self.objectives)

    def run(self) -> tuple[Trial, list[Judged], float]:
        """The finished training, what was chosen for each model (empty if nothing was), and the seconds."""
        start = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(self.plan.seed)
            self._begin()
            with Progress("fit", self._steps()) as self.progress:
                if self.chooses:
                    self._search()
                chosen = best(self.judged, len(self.objectives), self.data.own) if self.chooses else []
                self.chosen = [each.kl_weight for each in chosen] or [self.weights[0]] * len(self.objectives)
                plan = replace(self.plan, epochs=chosen[0].epochs if chosen else self.lengths[0])
                trial = self._train(self.objectives, self.chosen, self.data, torch.arange(self.data.size), plan, "")
            trial.members.write_back()
            self._calibrate(trial, chosen)
        return trial, chosen, time.monotonic() - start

    def _calibrate(self, trial: Trial, chosen: list[Judged]) -> None:
        """Widen the likelihoods as held-out data say."""
        if self.calibrate and chosen:
            self.widenings = [each.widening for each in chosen]
        elif self.calibrate and self.held is not None:
            self.widenings = [widening for widening, _ in judge(trial.members, self.held, None, True)]
        for objective, widening in zip(self.objectives, self.widenings, strict=True):
            if widening != 1:
                objective.likelihood.widen_(widening)

    def _begin(self) -> None:
        """Start, or go on, with what the checkpoint holds."""
        content = self.checkpoint.content
        self.started = content.get("start") or [copy.deepcopy(each.state_dict()) for each in self.objectives]
        for objective, state in zip(self.objectives, self.started, strict=True):
            objective.load_state_dict(state)
        self.judged = [Judged(*each) for each in content.get("judged", [])]
        self.unfinished = content.get("trial")

    def _steps(self) -> int:
        """How many steps are left, of all trials and the training; as if the longest were chosen."""
        size = min(self.plan.batch_size, len(self.rest))
        of_search = sum(map(_short, self.lengths)) * -(-len(self.rest) // size) * len(self._groups())
        return max(self.lengths) * -(-self.data.size // self.plan.batch_size) + self.chooses * of_search

    def _groups(self) -> list[tuple[float, ...]]:
        """The KL's weights that train together: those of small models."""
        size = sum(p.numel() for p in self.objectives[0].parameters())
        together = len(self.objectives) > 1 or size <= SMALL
        return [tuple(self.weights)] if together else [(weight,) for weight in self.weights]

    def _search(self) -> None:
        """Train copies of the models with every number of epochs and weight of the KL, and judge them."""
        tried = {(each.epochs, each.kl_weight) for each in self.judged}
        for epochs in self.lengths:
            for weights in self._groups():
                if (epochs, weights[0]) not in tried:
                    self._try(epochs, weights)

    def _try(self, epochs: int, weights: Sequence[float]) -> None:
        plan = replace(self.plan, epochs=_short(epochs))
        copies = [copy.deepcopy(each) for each in self.objectives for _ in weights]
        data = self.data.repeated(len(weights))
        title = f"choosing, KL × {', '.join(f'{weight:g}' for weight in weights)}: "
        trial = self._train(copies, list(weights) * len(self.objectives), data, self.rest, plan, title)
        trial.members.write_back()
        data, numbers = (self.data, self.out) if self.held is None else (self.held, None)
        for i, result in enumerate(judge(trial.members, data.repeated(len(weights)), numbers, self.calibrate)):
            model, which = divmod(i, len(weights))
            self.judged.append(Judged(model, epochs, weights[which], *result))
        self._save(None)

    def _train(
        self, objectives: list[Objective], weights: list[float], data: Examples, numbers: Tensor, plan: Plan, title: str
    ) -> Trial:
        """One trial, from where the checkpoint left it."""
        members = Members(objectives, compile=self.compile)
        trial = Trial(members, torch.tensor(weights), data, numbers, plan)
        if self.unfinished is not None:
            trial.load(self.unfinished)
            self.checkpoint.restore_random_state()
            self.unfinished = None
        while trial.epoch < plan.epochs:
            for nll, divergence in trial.run_epoch():
                self.progress.note = f"{title}epoch {trial.epoch + 1}/{plan.epochs}, "
                self.progress.note += f"NLL {nll.mean():.4g}, KL {divergence.mean():.4g} nats per example"
                self.progress.advance(1)
            self._save(trial)
        return trial

    def _save(self, trial: Trial | None) -> None:
        judged = [tuple(each) for each in self.judged]
        state = None if trial is None else trial.state()
        self.checkpoint.save(now=trial is None, start=self.started, judged=judged, trial=state)


def _short(epochs: int) -> int:
    """How long a trial is that stands for a training of ``epochs``."""
    return math.ceil(TRIAL * epochs)
