"""Temperature scaling: one number, chosen on held-out data, that divides the logits.

Source: Guo et al. (2017), arXiv:1706.04599. Of several draws the mixture Σ_s softmax(z_s/T)/S is calibrated.
"""

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from examples.baselines.draws import Draws
from mnvi.likelihoods import Categorical

SPAN = math.log(0.05), math.log(20.0)  # of log T


def scaled(draws: Draws, temperature: float) -> Draws:
    """The draws with their logits divided by ``temperature``."""
    return lambda x: draws(x) / temperature


@torch.no_grad()
def best(logits: Tensor, y: Tensor, tolerance: float = 1e-4) -> float:
    """The temperature of least NLL of the labels ``y`` (N,) under the mixture of the draws ``logits`` (S, N, C).

    Searched in log T, to ``tolerance`` of it. For one draw the NLL has one minimum.

    Raises:
        ValueError: the search ends at one of its ends, temperatures of 0.05 and 20.
    """

    def nll(t: float) -> float:
        return -Categorical().prediction(logits.double() / math.exp(t)).log_prob(y).mean().item()

    found: Any = minimize_scalar(nll, bounds=SPAN, method="bounded", options={"xatol": tolerance})
    t = float(found.x)
    if min(t - SPAN[0], SPAN[1] - t) < 2 * tolerance:
        raise ValueError(f"the best temperature is not between 0.05 and 20 for {len(y)} held-out labels; hold out more")
    return math.exp(t)
