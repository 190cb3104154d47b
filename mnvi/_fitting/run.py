"""A fit under way: how far it is, on disk and on the terminal."""

import copy
import time
import warnings
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from .._progress import Progress
from . import random_state
from .checkpoint import Checkpoint
from .judging import Judged
from .models import Objective
from .trial import Trial


class Run:
    """What has been judged so far, and the trainings that follow; it begins where the checkpoint ends.

    Attributes:
        judged: the trials so far.
        progress: the line on the terminal.
    """

    def __init__(self, objectives: Sequence[Objective], seed: int, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.progress = checkpoint, Progress("fit", 0)
        self.start, content = time.monotonic(), checkpoint.content
        self.device = next(objectives[0].model.parameters()).device
        self.before: float = content.get("seconds", 0.0)
        self.judged = [Judged(*each) for each in content.get("judged", [])]
        self._unfinished = content.get("trial")
        if content:
            self._begun = content["start"]
            self._warn_of_other_weights(objectives)
            for objective, state in zip(objectives, self._begun, strict=True):
                objective.load(state)
            random_state.go_on(content["random_state"], self.device)
        else:
            self._begun = [copy.deepcopy(each.state()) for each in objectives] if checkpoint.path else []
            random_state.begin(seed, self.device)
            self.save(None)  # with the weights to begin with

    def _warn_of_other_weights(self, objectives: Sequence[Objective]) -> None:
        """Where the models come with weights that are neither those that the fit began with nor those it has left."""
        trained = [self._unfinished["members"]] * len(objectives) if self._unfinished else []
        if not any(states and all(map(_has, objectives, states, count())) for states in (self._begun, trained)):
            warnings.warn(
                f"{self.checkpoint.path} is of a fit that began with other weights; as settings and data are the same, "
                "the model goes on from there, or takes the result. Delete the file to begin with the weights given",
                stacklevel=5,
            )

    @property
    def seconds(self) -> float:
        """What all has taken, before a kill and after."""
        return self.before + time.monotonic() - self.start

    def expect(self, steps: int) -> None:
        """So many steps are left."""
        self.progress.total = self.progress.done + steps

    def train(self, trial: Trial, stage: str) -> bool:
        """Go through with a trial, from where the checkpoint left it; tells whether anything was left to do."""
        if self._unfinished is not None:
            trial.load(self._unfinished)
            self._unfinished = None
            self.progress.total = (self.progress.total or 0) - trial.step
        begun = trial.epoch
        while trial.epoch < trial.plan.epochs:
            for losses in trial.run_epoch():
                self.progress.note = lambda losses=losses: _note(stage, trial, *losses)
                self.progress.advance(1)
            if self.checkpoint.due:
                self.save(trial)
        return trial.epoch > begun

    def save(self, trial: Trial | None) -> None:
        """Write down how far it is: within a trial, or between two."""
        self.checkpoint.save(
            start=self._begun,
            judged=[tuple(each) for each in self.judged],
            trial=None if trial is None else trial.state(),
            seconds=self.seconds,
            random_state=random_state.random_state(self.device),
        )


def _has(objective: Objective, state: dict[str, Tensor], k: int) -> bool:
    """Whether the model's parameters are those of a state, of one objective or of several stacked ones."""
    for name, p in objective.named_parameters():
        saved = state[name] if state[name].shape == p.shape else state[name][k]
        if name.startswith("model.") and not p.detach().cpu().equal(saved.cpu()):
            return False
    return True


def _note(stage: str, trial: Trial, nll: Tensor, divergence: Tensor) -> str:
    """What the terminal is told beside steps and time; of several models the mean."""
    epoch = min(trial.epoch + 1, trial.plan.epochs)
    means = torch.stack([nll.mean(), divergence.mean()]).tolist()
    return f"{stage}, epoch {epoch}/{trial.plan.epochs}: NLL {means[0]:.3g}, KL {means[1]:.3g} nats/example"
