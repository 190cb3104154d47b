"""IVON, an optimizer that has a diagonal normal posterior. Source: Shen et al. (2024), arXiv:2402.17641.

It is the authors' package, under the GNU General Public License, which ``requirements.txt`` beside this file brings.
"""

import copy
import math
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import mnvi
from examples.baselines.draws import Draws, Training
from mnvi.likelihoods import Likelihood


def ivon(
    model: nn.Module,
    training: Training,
    *,
    lr: float = 0.2,
    hess_init: float = 0.9,
    weight_decay: float = 1e-4,
    samples: int = 64,
) -> Draws:
    """Train a copy of ``model``, one draw of the weights a step; the effective sample size is the number of examples.

    Args:
        lr: falls to 0 by a cosine; the authors advise 0.1 to 0.2, instead of the rate of ``training``.
        hess_init: first Hessian of every weight; the authors advise 0.1 to 0.9.
        weight_decay: precision of the prior, for one example.
        samples: draws of the weights for predictions.

    Raises:
        ValueError: the training diverged.
    """
    model = copy.deepcopy(model).train()
    loss = training.likelihood if isinstance(training.likelihood, Likelihood) else mnvi.likelihoods.Categorical()
    x, y = training.data
    steps = training.epochs * math.ceil(len(y) / training.batch_size)
    settings = {"hess_init": hess_init, "weight_decay": weight_decay}
    optimizer = import_module("ivon").IVON(model.parameters(), lr=lr, ess=len(y), **settings)
    schedule = CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(training.seed)
    with tqdm(total=steps, desc="IVON", leave=False) as bar:
        for _ in range(training.epochs):
            for batch in torch.randperm(len(y)).split(training.batch_size):
                with optimizer.sampled_params(train=True):
                    optimizer.zero_grad()
                    loss(model(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
                bar.update()
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ValueError(f"IVON diverged with lr {lr:g} and hess_init {hess_init:g}; give a lower lr")
    model.eval()

    def draw(x: Tensor) -> Tensor:
        with optimizer.sampled_params():
            return model(x)

    return lambda x: torch.stack([draw(x) for _ in range(samples)])
