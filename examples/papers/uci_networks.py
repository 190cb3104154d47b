"""The networks that are compared on tables, which ``mnvi.fit`` trains, all together."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import mnvi
from examples.papers.uci_choice import Pair, Recipe
from mnvi.covariance import Diagonal
from mnvi.likelihoods import Gaussian
from mnvi.posteriors import MatrixNormal, PosteriorSpec

KL_WEIGHTS = (1.0, 0.3, 0.1)  # what Bayesian networks choose from;
LENGTHS = (1.0, 0.25, 0.06)  # networks without a posterior, which overfit: shares of the steps,
DROPPED = (0.01, 0.05, 0.1)  # and of the hidden units, which dropout drops
ROWS = 1000  # at a time in predictions


@dataclass(frozen=True)
class Fitted:
    """A way to train by ``mnvi.fit``: ReLU layers with a posterior, or none, and dropout, or none.

    Attributes:
        kl_weight: 0 without a posterior.
        share: of the recipe's steps.
        dropped: share of the hidden units.
    """

    posterior: PosteriorSpec | None = None
    kl_weight: float = 0.0
    share: float = 1.0
    dropped: float | None = None

    def __call__(self, pairs: Sequence[Pair], recipe: Recipe, checkpoint: Path) -> "FittedNetworks":
        """Train a network on each pair (inputs, standardized targets)."""
        size, inputs = pairs[0][0].shape
        models = []
        for k in range(len(pairs)):
            torch.manual_seed(10_000 * recipe.seed + k)
            models.append(network(inputs, recipe, self.posterior, self.dropped))
        history = mnvi.fit(
            models,
            list(pairs),
            Gaussian(),
            epochs=recipe.epochs(size, self.share),
            batch_size=recipe.batch(size),
            lr=recipe.lr,
            kl_weight=self.kl_weight,
            seed=recipe.seed,
            checkpoint=checkpoint,
        )
        likelihoods = history.likelihood if isinstance(history.likelihood, list) else [history.likelihood]
        return FittedNetworks(models, [each.log_scale.item() for each in likelihoods])  # type: ignore[union-attr]


@dataclass(frozen=True)
class FittedNetworks:
    """Networks, and the logarithms of their learnt noise."""

    models: list[nn.Module]
    log_scales: list[float]

    @torch.no_grad()
    def drawn(self, inputs: Sequence[Tensor], count: int) -> list[Tensor]:
        """Of each network (count, n, 1). Every row has draws of its own, which makes no difference to its mixture."""
        found = []
        for model, x in tqdm(zip(self.models, inputs, strict=True), "draws", len(self.models), delay=2, leave=False):
            with mnvi.sampling(model):
                outputs = [model(rows.repeat(count, 1)).unflatten(0, (count, -1)) for rows in x.split(ROWS)]
            found.append(torch.cat(outputs, 1))
        return found


class Dropout(nn.Module):
    """Drops in eval mode, too (Gal & Ghahramani, 2016, arXiv:1506.02142)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.share, training=True)


def network(
    inputs: int, recipe: Recipe, posterior: PosteriorSpec | None = None, dropped: float | None = None
) -> nn.Module:
    """ReLU layers: Bayesian ones where there is a ``posterior``, after dropout where a share is ``dropped``."""

    def linear(n: int, m: int) -> nn.Module:
        return nn.Linear(n, m) if posterior is None else mnvi.MNLinear(n, m, posterior=posterior)

    sizes = [inputs, *recipe.hidden, 1]
    layers = [linear(sizes[0], sizes[1])]
    for n, m in itertools.pairwise(sizes[1:]):
        layers += [nn.ReLU(), *([] if dropped is None else [Dropout(dropped)]), linear(n, m)]
    return mnvi.Sequential(*layers)


def bayesian(posterior: PosteriorSpec) -> list[Fitted]:
    """Networks with this posterior, of every weight of the KL."""
    return [Fitted(posterior, weight) for weight in KL_WEIGHTS]


PLAIN = [Fitted(share=share) for share in LENGTHS]
DROPOUT = [Fitted(share=share, dropped=dropped) for dropped in DROPPED for share in LENGTHS]
MATRIX_NORMAL = bayesian(MatrixNormal(Diagonal(), Diagonal()))
DIAGONAL = bayesian(mnvi.posteriors.Diagonal())
