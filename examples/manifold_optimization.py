"""Optimisation on manifolds beside exact answers: an eigenspace on Grassmann, a covariance matrix on SPD.

    python examples/manifold_optimization.py  # some seconds, no data

The optimiser is told the manifold that a parameter lies on; everything else is torch's: loss, backward, step. Beside it
is the same loss of a free matrix that is made orthonormal by a QR decomposition, or positive definite as L Lᵀ.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from mnvi.manifolds import SPD, Grassmann, Stiefel
from mnvi.optim import RiemannianAdam, RiemannianSGD


@dataclass(frozen=True)
class Settings:
    size: int = 200  # n of the n×n matrix whose eigenvectors are sought
    vectors: int = 5  # k, how many
    covariance_size: int = 20
    condition: float = 1e4  # of the covariance matrix
    steps: int = 300
    seed: int = 0


def main(settings: Settings) -> dict[str, float]:
    """Run both problems; returns the last error of every descent."""
    torch.set_num_threads(1)  # the matrices are small
    torch.manual_seed(settings.seed)
    return eigenspace(settings) | covariance(settings)


def eigenspace(settings: Settings) -> dict[str, float]:
    """The Q with QᵀQ = I and the largest tr(QᵀAQ) spans the k leading eigenvectors of A."""
    n, k = settings.size, settings.vectors
    rotation = Stiefel().random(n, n, dtype=torch.float64)
    matrix = rotation * (10 * 0.9 ** torch.arange(n)) @ rotation.mT
    exact, start = torch.linalg.eigh(matrix).eigenvectors[:, -k:], Stiefel().random(n, k, dtype=torch.float64)

    def loss(q: Tensor) -> Tensor:
        return -(q * (matrix @ q)).sum()

    def angle(q: Tensor) -> float:
        return torch.linalg.matrix_norm(q - exact @ (exact.mT @ q), 2).clamp(max=1).asin().item()

    print(f"{k} leading eigenvectors of {n}×{n}: largest angle to those of torch.linalg.eigh, in radians")
    run = partial(descend, start=start, loss=loss, error=angle, steps=settings.steps)
    return {
        "Grassmann, SGD": run("Grassmann, SGD", partial(RiemannianSGD, lr=0.05), Grassmann()),
        "Stiefel, Adam": run("Stiefel, Adam", partial(RiemannianAdam, lr=0.1), Stiefel()),
        "free, QR, SGD": run("free, QR, SGD", partial(SGD, lr=0.05), to_point=lambda x: torch.linalg.qr(x).Q),
        "free, QR, Adam": run("free, QR, Adam", partial(Adam, lr=0.01), to_point=lambda x: torch.linalg.qr(x).Q),
    }


def covariance(settings: Settings) -> dict[str, float]:
    """The Σ with the least ½(log det Σ + tr Σ⁻¹S), the negative log-likelihood a data point, is S itself."""
    p = settings.covariance_size
    scales = torch.logspace(0, -0.5 * torch.tensor(settings.condition).log10().item(), p, dtype=torch.float64)
    x = torch.randn(50 * p, p, dtype=torch.float64) * scales @ Stiefel().random(p, p, dtype=torch.float64)
    sample = x.mT @ x / len(x)

    def loss(sigma: Tensor) -> Tensor:
        return 0.5 * (torch.logdet(sigma) + torch.linalg.solve(sigma, sample).trace())

    def excess(sigma: Tensor) -> float:
        return (loss(sigma) - loss(sample)).item()

    print(f"covariance matrix of {p}×{p}, condition {settings.condition:g}: nats a point above the exact optimum")
    run = partial(descend, start=torch.eye(p, dtype=torch.float64), loss=loss, error=excess, steps=settings.steps)
    return {
        "SPD, SGD": run("SPD, SGD", partial(RiemannianSGD, lr=2.0), SPD()),
        "free, L Lᵀ, SGD": run("free, L Lᵀ, SGD", partial(SGD, lr=1e-3), to_point=lambda x: x.tril() @ x.tril().mT),
        "free, L Lᵀ, Adam": run("free, L Lᵀ, Adam", partial(Adam, lr=1e-2), to_point=lambda x: x.tril() @ x.tril().mT),
    }


def descend(name: str, make, manifold=None, *, start: Tensor, loss, error, steps: int, to_point=lambda x: x) -> float:
    """The last error, after ``steps`` from ``start``; those after fewer are printed beside it."""
    parameter = nn.Parameter(start.clone())
    optimizer = make([{"params": [parameter], **({"manifold": manifold} if manifold else {})}])
    errors = [error(to_point(start))]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(to_point(parameter)).backward()
        optimizer.step()
        errors.append(error(to_point(parameter.detach())))
    shown = ", ".join(f"{errors[i]:8.1e} after {i}" for i in (0, steps // 30, steps // 3, steps))
    print(f"  {name:18} {shown} steps", flush=True)
    return errors[-1]


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main(Settings())
