"""What is compared on tables: networks that ``mnvi.fit`` trains, those of all splits together, and what they predict.

All have the same layers, steps, batches and rates. What a method has to choose, it chooses on the same tenth of a
split's training rows, and these also set the scale of its noise: a Bayesian network chooses the weight of its KL, a
plain one how long it trains (it overfits), one with dropout that and the share that is dropped.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mnvi
from examples.papers.uci_data import Split
from mnvi.covariance import Diagonal
from mnvi.likelihoods import Likelihood, Prediction
from mnvi.posteriors import MatrixNormal, PosteriorSpec

LENGTHS = (1.0, 0.25, 0.06)  # of the steps: what networks without a posterior choose from
DROPPED = (0.01, 0.05, 0.1)  # shares of the hidden units


@dataclass(frozen=True)
class Recipe:
    """How every method trains; the defaults are those of the published table.

    Attributes:
        hidden: units of the hidden layers.
        steps: of the longest training.
        batch_size: rows a step, at most; the batches of an epoch have one size.
        lr: of Adam at the start; cosine-annealed.
        kl_weights: of a Bayesian network, to choose from.
        prior: deviation of a weight times the root of the number of its inputs.
        warmup: share of the steps in which the KL's weight rises.
        draws: for a prediction.
        seed: of initial weights, batches and what is held out.
    """

    hidden: tuple[int, ...] = (50,)
    steps: int = 15_000
    batch_size: int = 128
    lr: float = 1e-2
    kl_weights: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)
    prior: float = 2.0
    warmup: float = 0.8
    draws: int = 100
    seed: int = 0

    def epochs(self, size: int, share: float = 1.0) -> int:
        """How many make this share of the steps on so many rows."""
        return max(1, round(share * self.steps / math.ceil(size / self.batch_size)))


@dataclass(frozen=True)
class Outcome:
    """For every split the predictions of its test, one of each network of an ensemble; and what was chosen."""

    predictions: list[list[Prediction]]
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """Networks and likelihoods, as many of each split, one split after the other, and the history of their fit."""

    models: list[nn.Module]
    likelihoods: list[Likelihood]
    history: Any

    def chosen(self) -> dict[str, Any]:
        """What held-out rows chose."""
        history = self.history
        return {"kl_weight": history.kl_weight, "epochs": history.epochs, "widening": history.widening}


class Dropout(nn.Module):
    """Drops in eval mode, too (Gal & Ghahramani, 2016, arXiv:1506.02142); its share may differ in a vmap."""

    share: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.register_buffer("share", torch.tensor(share))

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.share) / (1 - self.share)


def network(
    inputs: int, recipe: Recipe, posterior: PosteriorSpec | None = None, dropped: float | None = None
) -> nn.Module:
    """ReLU layers: Bayesian ones where there is a ``posterior``, after dropout where a share is ``dropped``."""

    def linear(n: int, m: int) -> nn.Module:
        prior = mnvi.priors.Normal(recipe.prior / math.sqrt(n))
        return nn.Linear(n, m) if posterior is None else mnvi.MNLinear(n, m, posterior=posterior, prior=prior)

    sizes = [inputs, *recipe.hidden, 1]
    layers = [linear(sizes[0], sizes[1])]
    for n, m in itertools.pairwise(sizes[1:]):
        layers += [nn.ReLU(), *([] if dropped is None else [Dropout(dropped)]), linear(n, m)]
    return mnvi.Sequential(*layers)


def train(
    splits: Sequence[Split], recipe: Recipe, build: Callable[[int], nn.Module], each: int = 1, **options: Any
) -> Trained:
    """Train ``each`` networks of every split, ``build(number)``, all together, with options of ``mnvi.fit``."""
    size, models = len(splits[0].x), []
    for k in range(len(splits) * each):
        torch.manual_seed(10_000 * recipe.seed + k)
        models.append(build(k % each))
    pairs = [(split.x, split.y) for split in splits for _ in range(each)]
    plan: dict[str, Any] = {
        "epochs": recipe.epochs(size),
        "batch_size": math.ceil(size / math.ceil(size / recipe.batch_size)),
    }
    plan |= {"lr": recipe.lr, "warmup": recipe.warmup, "seed": recipe.seed, **options}
    if len(models) == 1:
        history = mnvi.fit(models[0], pairs[0], "gaussian", **plan)
        return Trained(models, [history.likelihood], history)  # type: ignore[list-item]
    history = mnvi.fit(models, pairs, "gaussian", **plan)
    return Trained(models, history.likelihood, history)  # type: ignore[arg-type]


def bayesian(splits: Sequence[Split], recipe: Recipe, checkpoint: Path, posterior: PosteriorSpec, each: int) -> Outcome:
    """Networks with this posterior, ``each`` of a split in an ensemble."""
    inputs = splits[0].x.shape[1]
    found = train(
        splits, recipe, lambda _: network(inputs, recipe, posterior), each,
        kl_weight=recipe.kl_weights, checkpoint=checkpoint,
    )  # fmt: skip
    predictions = [
        mnvi.predict(model, splits[k // each].test_x, recipe.draws, likelihood)
        for k, (model, likelihood) in enumerate(zip(found.models, found.likelihoods, strict=True))
    ]
    return Outcome(_grouped(predictions, each), found.chosen())


def plain(splits: Sequence[Split], recipe: Recipe, checkpoint: Path, each: int) -> Outcome:
    """Networks without a posterior, ``each`` of a split in an ensemble (Lakshminarayanan et al., arXiv:1612.01474)."""
    found = train_plain(splits, recipe, checkpoint, each)
    predictions = [
        sampled(model, splits[k // each].test_x, 1, likelihood)
        for k, (model, likelihood) in enumerate(zip(found.models, found.likelihoods, strict=True))
    ]
    return Outcome(_grouped(predictions, each), found.chosen())


def train_plain(splits: Sequence[Split], recipe: Recipe, checkpoint: Path, each: int = 1) -> Trained:
    """Networks without a posterior, stopped where held-out rows say."""
    size, inputs = len(splits[0].x), splits[0].x.shape[1]
    lengths = _lengths(recipe, size)
    return train(
        splits, recipe, lambda _: network(inputs, recipe), each, kl_weight=0.0, epochs=lengths, checkpoint=checkpoint
    )


def dropout(splits: Sequence[Split], recipe: Recipe, checkpoint: Path) -> Outcome:
    """MC dropout; of the networks of a split the one whose share was best on held-out rows."""
    size, inputs, each = len(splits[0].x), splits[0].x.shape[1], len(DROPPED)
    found = train(
        splits, recipe, lambda j: network(inputs, recipe, dropped=DROPPED[j]), each,
        kl_weight=0.0, epochs=_lengths(recipe, size), checkpoint=checkpoint,
    )  # fmt: skip
    losses = {row["model"]: row["nll"] for row in found.history.search if row["epochs"] == found.history.epochs}
    best = [min(range(each * k, each * (k + 1)), key=losses.__getitem__) for k in range(len(splits))]
    predictions = [
        [sampled(found.models[number], split.test_x, recipe.draws, found.likelihoods[number])]
        for split, number in zip(splits, best, strict=True)
    ]
    chosen = {"epochs": found.history.epochs, "dropped": [DROPPED[number % each] for number in best]}
    return Outcome(predictions, {**chosen, "widening": [found.history.widening[number] for number in best]})


@torch.no_grad()
def sampled(model: nn.Module, x: Tensor, draws: int, likelihood: Likelihood) -> Prediction:
    """The mixture of this many outputs of the model as it is."""
    return likelihood.prediction(torch.stack([model(x) for _ in range(draws)]))


def _lengths(recipe: Recipe, size: int) -> tuple[int, ...]:
    """Numbers of epochs to choose from; ValueError where there is no choice."""
    found = tuple(dict.fromkeys(recipe.epochs(size, share) for share in LENGTHS))
    if len(found) == 1:
        raise ValueError(f"{recipe.steps} steps are one epoch of {size} rows, too few to choose how long to train")
    return found


def _grouped(predictions: list[Prediction], each: int) -> list[list[Prediction]]:
    return [predictions[k : k + each] for k in range(0, len(predictions), each)]


POSTERIORS = {"mn": MatrixNormal(Diagonal(), Diagonal()), "diagonal": mnvi.posteriors.Diagonal()}
