"""The methods of a comparison, from the same trained network: their draws, and the processor's time they take."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import mnvi
from examples.baselines.draws import Draws, Training, outputs, single
from examples.baselines.ensemble import ensemble
from examples.baselines.ivon import ivon
from examples.baselines.laplace import last_layer
from examples.baselines.mc_dropout import mc_dropout
from mnvi.likelihoods import Categorical
from mnvi.posteriors import Diagonal, PosteriorSpec

INSTALL = "pip install --no-deps -r examples/baselines/requirements.txt"


@dataclass(frozen=True)
class Contest:
    """What all methods are given.

    Args:
        build: a network with new weights.
        training: of the trained network, and once more of every method.
        trained: the network after the first training; it took ``seconds[0]`` of the processor.
        plain: the same after the second one, which took ``seconds[1]``.
        draws: of a prediction.
        members: of the ensemble.
        dropout: probability of MC dropout.
        kl_weight: of the Bayesian networks; ``None``: that of :func:`mnvi.fit`.
    """

    build: Callable[[], nn.Module]
    training: Training
    trained: nn.Module
    plain: nn.Module
    seconds: tuple[float, float]
    draws: int = 64
    members: int = 5
    dropout: float = 0.25
    kl_weight: float | None = None

    @property
    def from_scratch(self) -> Training:
        """As long a training as both together."""
        return replace(self.training, epochs=2 * self.training.epochs)

    def temperature(self, draws: Draws) -> float:
        """That of the held-out labels, near 1 beforehand: of few, or of none that is wrong, T → 0 would be the best."""
        x, y = self.training.held_out
        return Categorical().calibrate_(outputs(draws, x, seed=self.training.seed), y)

    def held_out_nll(self, draws: Draws) -> float:
        """In nats a label."""
        x, y = self.training.held_out
        return -Categorical().prediction(outputs(draws, x, seed=self.training.seed)).log_prob(y).mean().item()


@dataclass(frozen=True)
class Entry:
    """A method's draws, the processor's seconds of its training, and its rows with the temperature of each."""

    draws: Draws
    seconds: float
    rows: dict[str, float]


def _plain(contest: Contest) -> Entry:
    draws = single(contest.plain)
    return Entry(draws, sum(contest.seconds), {"plain": 1.0, "plain + temperature": contest.temperature(draws)})


def _dropout(contest: Contest) -> Entry:
    options = {"p": contest.dropout, "samples": contest.draws}
    draws, seconds = timed(lambda: mc_dropout(contest.trained, contest.training, **options))
    return Entry(draws, contest.seconds[0] + seconds, {"MC dropout": 1.0})


def _ensemble(contest: Contest) -> Entry:
    draws, seconds = timed(lambda: ensemble(contest.build, contest.from_scratch, members=contest.members))
    return Entry(draws, seconds, {f"ensemble of {contest.members}": 1.0})


def _ivon(contest: Contest) -> Entry:
    """From the trained weights or from scratch, whichever has the lesser NLL of the held-out labels; its cost alone.

    Of the rates 0.1 and 0.2 and the first Hessians 0.1, 0.5 and 0.9, which the authors advise, each has those of the
    least NLL of held-out digits.
    """
    tuned, of_tuned = timed(lambda: ivon(contest.trained, contest.training, lr=0.1, samples=contest.draws))
    scratch, of_scratch = timed(lambda: ivon(contest.build(), contest.from_scratch, samples=contest.draws))
    tries = {"fine-tuned": (tuned, contest.seconds[0] + of_tuned), "from scratch": (scratch, of_scratch)}
    nll = {name: contest.held_out_nll(draws) for name, (draws, _) in tries.items()}
    print("held-out NLL: " + ", ".join(f"IVON {name} {value:.4f}" for name, value in nll.items()))
    return Entry(*tries[min(nll, key=nll.__getitem__)], {"IVON": 1.0})


def _laplace(contest: Contest) -> Entry:
    draws, seconds = timed(lambda: last_layer(contest.plain, contest.training, samples=contest.draws))
    return Entry(draws, sum(contest.seconds) + seconds, {"last-layer Laplace": 1.0})


def _diagonal(contest: Contest) -> Entry:
    (draws, temperature), seconds = timed(lambda: bayesian(contest, Diagonal()))
    return Entry(draws, contest.seconds[0] + seconds, {"diagonal": temperature})


def _matrix_normal(contest: Contest) -> Entry:
    (draws, temperature), seconds = timed(lambda: bayesian(contest, None))
    rows = {"matrix normal": temperature, "matrix normal, T = 1": 1.0}
    return Entry(draws, contest.seconds[0] + seconds, rows)


def bayesian(contest: Contest, posterior: PosteriorSpec | None) -> tuple[Draws, float]:
    """The trained network made Bayesian and trained on, and its temperature; ``None`` is the default posterior."""
    model = mnvi.to_bayesian(copy.deepcopy(contest.trained), posterior)
    history = contest.training.history(model, **({} if contest.kl_weight is None else {"kl_weight": contest.kl_weight}))

    def draws(x: Tensor) -> Tensor:  # one at a time: batched convolutions of different weights are slower on a CPU
        with mnvi.sampling(model):
            return torch.stack([model(x) for _ in range(contest.draws)])

    return draws, history.likelihood.temperature.item()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and the processor's seconds that it took, of all threads together."""
    start = time.process_time()
    return work(), time.process_time() - start


@dataclass(frozen=True)
class Method:
    """``run`` trains; ``package`` is what it imports that may not be installed."""

    run: Callable[[Contest], Entry]
    package: str | None = None

    @property
    def is_here(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


METHODS = {
    "plain": Method(_plain),
    "dropout": Method(_dropout),
    "ensemble": Method(_ensemble),
    "ivon": Method(_ivon, "ivon"),
    "laplace": Method(_laplace, "laplace"),
    "diagonal": Method(_diagonal),
    "matrix-normal": Method(_matrix_normal),
}
