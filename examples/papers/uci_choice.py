"""How every method on tables is chosen and trained: by held-out training rows, then five networks on all of them.

Below 2,000 training rows five folds are held out in turn, so that all rows judge; above, a tenth does once. The
networks of all splits and folds train together, two of each where an ensemble is wanted. The candidate under whose
mixture of draws the held-out targets of a split are most probable wins; at the same time these rows widen the learnt
noise, for an ensemble beside the mixture of the two, for a single network beside the first. An ensemble is wrong by
less than its members, and noise that fits them would be too wide for it.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from examples.common import checkpoints
from examples.papers.uci_data import Split
from mnvi.likelihoods import Gaussian, Prediction

FOLDS, SMALL, SHARE = 5, 2000, 10  # folds below so many rows, else one part of so many


@dataclass(frozen=True)
class Recipe:
    """How every method trains; the defaults are those of the published table. Prior and warm-up are the library's.

    Attributes:
        hidden: units of the hidden layers.
        steps: of the longest training.
        batch_size: rows a step, at most; the batches of an epoch have one size.
        lr: of Adam at the start; cosine-annealed.
        draws: for a prediction.
        seed: of initial weights, batches and what is held out.
    """

    hidden: tuple[int, ...] = (50,)
    steps: int = 10_000
    batch_size: int = 128
    lr: float = 1e-2
    draws: int = 100
    seed: int = 0

    def batch(self, size: int) -> int:
        """Rows a step, of so many rows."""
        return math.ceil(size / math.ceil(size / self.batch_size))

    def epochs(self, size: int, share: float = 1.0) -> int:
        """How many make this share of the steps on so many rows."""
        return max(1, round(share * self.steps / math.ceil(size / self.batch_size)))


class Networks(Protocol):
    """Trained networks of standardized targets."""

    @property
    def log_scales(self) -> list[float]:
        """Of their learnt noise, in logarithms."""
        ...

    def drawn(self, inputs: Sequence[Tensor], count: int) -> list[Tensor]:
        """For each network its own inputs (n, d), and of so many draws the outputs (count, n, 1)."""
        ...


Pair = tuple[Tensor, Tensor]
Train = Callable[[Sequence[Pair], Recipe, Path], Networks]  # on a pair each; the path is of a checkpoint


@dataclass(frozen=True)
class Choice:
    """What held-out rows say of a split.

    Attributes:
        candidate: its number.
        loss: nats per row, of standardized targets, under the mixture of the networks.
        widening: factor of the noise beside this mixture.
        alone: and beside the first network.
    """

    candidate: int
    loss: float
    widening: float
    alone: float


@dataclass(frozen=True)
class Final:
    """The networks of all training rows, ``members`` of each split in turn, and what they predict of the tests."""

    networks: dict[int, tuple[Networks, int]]  # by split: the networks that trained with its candidate, where its are
    predictions: list[list[Prediction]]  # of each split's members, with the noise of their mixture
    alone: list[list[Prediction]]  # of the first, with its own


def parts(size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the rows that train, and of those that are held out, of every fold; folds have one size."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    folds, count = (FOLDS, size // FOLDS) if size < SMALL else (1, size // SHARE)
    held = [order[k * count : (k + 1) * count].sort().values for k in range(folds)]
    return [(_others(out, size), out) for out in held]


def choose(
    splits: Sequence[Split], recipe: Recipe, candidates: Sequence[Train], place: Path, judges: int = 1
) -> list[Choice]:
    """The best candidate of every split, by ``judges`` networks a fold; what they say is kept beside ``place``."""
    kept = place.with_name(place.name + ".choices.json")
    judged = _read(kept, len(splits)) if kept.exists() else []
    folds = parts(len(splits[0].x), recipe.seed)
    for number, train in enumerate(candidates[len(judged) :], len(judged)):
        print(f"  candidate {number + 1} of {len(candidates)}", flush=True)
        pairs = [(split.x[rest], split.y[rest]) for split in splits for rest, _ in folds for _ in range(judges)]
        path = place.with_name(place.name + f".{number}.pt")
        networks = train(pairs, recipe, path)
        judged.append([Choice(number, *each) for each in judge(splits, folds, networks, recipe, judges)])
        checkpoints.write_json(kept, [[astuple(choice) for choice in each] for each in judged])
        path.unlink(missing_ok=True)
    return [min(of_split, key=lambda each: each.loss) for of_split in zip(*judged, strict=True)]


def _read(path: Path, splits: int) -> list[list[Choice]]:
    """The choices of the candidates that were judged, of every split; ValueError where the file has others."""
    try:
        found = [
            [Choice(int(number), *map(float, (loss, *widenings))) for number, loss, *widenings in of_candidate]
            for of_candidate in json.loads(path.read_text())
        ]
        if any(len(each) != splits for each in found):
            raise ValueError(f"{splits} choices of every candidate are needed")
        return found
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it to judge the candidates anew") from error


def judge(
    splits: Sequence[Split], folds: Sequence[tuple[Tensor, Tensor]], networks: Networks, recipe: Recipe, judges: int
) -> list[tuple[float, float, float]]:
    """Of every split what :class:`Choice` has: the noise of its networks is one, widened on the rows of all folds."""
    drawn = networks.drawn([split.x[out] for split in splits for _, out in folds for _ in range(judges)], recipe.draws)
    found, count = [], len(folds) * judges
    for k, split in enumerate(tqdm(splits, "judging", delay=2, leave=False)):
        mine, target = slice(k * count, (k + 1) * count), torch.cat([split.y[out] for _, out in folds])
        outputs = [torch.cat(drawn[mine][which::judges], 1) for which in range(judges)]
        log_scale = sum(networks.log_scales[mine]) / count
        widening, loss = widened(log_scale, torch.cat(outputs), target)
        found.append((loss, widening, widened(log_scale, outputs[0], target)[0]))
    return found


def widened(log_scale: float, outputs: Tensor, target: Tensor) -> tuple[float, float]:
    """(factor of the noise, nats per row with it) for draws (S, n, 1) of standardized targets."""
    likelihood = Gaussian()
    torch.nn.init.constant_(likelihood.log_scale, log_scale)
    widening = likelihood.calibrate_(outputs, target)
    return widening, -likelihood.log_prob(outputs, target).double().mean().item()


def finish(
    splits: Sequence[Split], recipe: Recipe, candidates: Sequence[Train], chosen: Sequence[Choice], members: int,
    place: Path,
) -> Final:  # fmt: skip
    """Train ``members`` networks of each split with its candidate on all training rows, and predict the test."""
    networks: dict[int, tuple[Networks, int]] = {}
    predictions: dict[int, list[Prediction]] = {}
    alone: dict[int, list[Prediction]] = {}
    for number in sorted({choice.candidate for choice in chosen}):
        which = [k for k, choice in enumerate(chosen) if choice.candidate == number]
        print(f"  {len(which)} splits with candidate {number + 1}, {members} networks each", flush=True)
        pairs = [(splits[k].x, splits[k].y) for k in which for _ in range(members)]
        trained = candidates[number](pairs, recipe, place.with_name(place.name + f".final-{number}.pt"))
        drawn = trained.drawn([splits[k].test_x for k in which for _ in range(members)], recipe.draws)
        for at, k in enumerate(which):
            mine = slice(at * members, (at + 1) * members)
            of_split = list(zip(drawn[mine], trained.log_scales[mine], strict=True))
            predictions[k] = [predicted(splits[k], *each, chosen[k].widening) for each in of_split]
            alone[k] = [predicted(splits[k], *of_split[0], chosen[k].alone)]
            networks[k] = trained, at * members
    every = range(len(splits))
    return Final(networks, [predictions[k] for k in every], [alone[k] for k in every])


def predicted(split: Split, drawn: Tensor, log_scale: float, widening: float) -> Prediction:
    """The mixture of standardized outputs (S, n, 1) with this noise, widened, in units."""
    likelihood = Gaussian()
    torch.nn.init.constant_(likelihood.log_scale, log_scale + math.log(widening))
    with torch.no_grad():
        return split.in_units(likelihood).prediction(drawn)


def _others(rows: Tensor, size: int) -> Tensor:
    chosen = torch.ones(size, dtype=torch.bool)
    chosen[rows] = False
    return chosen.nonzero()[:, 0]
