"""Deep ensembles: several networks from different first weights.

Source: Lakshminarayanan et al. (2017), arXiv:1612.01474.
"""

from collections.abc import Callable

import torch
from torch import nn

from examples.baselines.draws import Draws, Training


def ensemble(build: Callable[[], nn.Module], training: Training, *, members: int = 5) -> Draws:
    """Train what ``build()`` returns, ``members`` times, each in an order of the data of its own."""
    models = []
    for member in range(members):
        seed = 1000 * (training.seed + 1) + member
        torch.manual_seed(seed)
        models.append(training.fit(build(), seed=seed))
    return lambda x: torch.stack([model(x) for model in models])
