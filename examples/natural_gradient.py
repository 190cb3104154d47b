"""Natural gradient beside Adam where the answer is known: steps to the exact log evidence of a linear regression.

    python examples/natural_gradient.py  # a few seconds, no data

For Y = X Wᵀ + noise of a known scale and W ~ N(0, 1), the exact posterior is a matrix normal. So −ELBO can come down to
−log p(Y | X), which has a closed form. The gap between the two is KL(q ‖ posterior), and here it has no noise.
"""

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

import mnvi
from mnvi.optim import NaturalGradient


@dataclass(frozen=True)
class Settings:
    inputs: int = 8  # of standard deviations from 1 to 0.03 along rotated axes, which makes plain steps slow
    outputs: int = 3
    points: int = 200
    noise: float = 0.3  # standard deviation, known
    target: float = 0.01  # nats between −ELBO and −log evidence
    steps: int = 500  # of each method, at most
    adam_rates: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)
    seed: int = 0


def main(settings: Settings) -> dict[str, int | None]:
    """Train with natural gradient and with Adam at every rate; returns how many steps each took."""
    torch.set_num_threads(1)  # the matrices are small
    torch.manual_seed(settings.seed)
    x, y = problem(settings)
    evidence = log_evidence(x, y, settings.noise)
    print(f"log evidence {evidence:.2f} nats; steps until −ELBO is within {settings.target} nat of it")
    family, sizes = mnvi.posteriors.MatrixNormal(), (settings.inputs, settings.outputs)
    layer = mnvi.MNLinear(*sizes, bias=False, posterior=family, dtype=torch.float64)  # prior: Normal(1.0)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizers: dict[str, Optimizer] = {"natural gradient, lr 1": NaturalGradient(layer, lr=1.0)}
    for lr in settings.adam_rates:
        optimizers[f"Adam, lr {lr:g}"] = Adam(mnvi.parameter_groups(layer, lr, off_diagonals=0.1))
    found = {}
    for name, optimizer in optimizers.items():
        layer.load_state_dict(start)
        began = time.perf_counter()
        found[name], gap = descend(layer, optimizer, x, y, evidence, settings)
        steps = f"not in {settings.steps}" if found[name] is None else f"{found[name]} steps"
        print(f"{name:24} {steps:>12}  gap {gap:9.3g} nats  {time.perf_counter() - began:5.2f} s", flush=True)
    return found


def problem(settings: Settings) -> tuple[Tensor, Tensor]:
    """Inputs (N, p) and outputs (N, n) in float64."""
    p = settings.inputs
    rotation = mnvi.manifolds.SpecialOrthogonal().random(p, p, dtype=torch.float64)
    scales = torch.logspace(0, -1.5, p, dtype=torch.float64)
    x = torch.randn(settings.points, p, dtype=torch.float64) * scales @ rotation
    weight = torch.randn(settings.outputs, p, dtype=torch.float64)  # a draw of the prior
    y = x @ weight.mT
    return x, y + settings.noise * torch.randn_like(y)


def log_evidence(x: Tensor, y: Tensor, noise: float) -> float:
    """log p(Y | X) in nats: every output is N(0, X Xᵀ + noise² I)."""
    covariance = x @ x.mT + noise**2 * torch.eye(len(x), dtype=x.dtype)
    return torch.distributions.MultivariateNormal(y.new_zeros(len(x)), covariance).log_prob(y.mT).sum().item()


def neg_elbo(layer: mnvi.MNLinear, x: Tensor, y: Tensor, noise: float) -> Tensor:
    """−ELBO in nats for all data, exactly: E‖Y − X Wᵀ‖² = ‖Y − X Mᵀ‖² + tr U · tr(X V Xᵀ)."""
    q: Any = layer.distribution()  # a mnvi.distributions.MatrixNormal
    spread = q.row_covariance.trace() * (x @ q.column_covariance * x).sum()
    squares = (y - x @ q.mean.mT).square().sum() + spread
    nll = 0.5 * squares / noise**2 + 0.5 * y.numel() * math.log(2 * math.pi * noise**2)
    return nll + layer.kl()


def descend(layer: mnvi.MNLinear, optimizer: Optimizer, x: Tensor, y: Tensor, evidence: float, settings: Settings):
    """Step until the target is reached: how many steps that took (None: it was not), and the last gap."""
    for step in range(settings.steps + 1):
        loss = neg_elbo(layer, x, y, settings.noise)
        gap = loss.item() + evidence
        if gap <= settings.target:
            return step, gap
        if step < settings.steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return None, gap


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main(Settings())
