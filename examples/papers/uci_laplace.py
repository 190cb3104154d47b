"""The linearized Laplace approximation of a regression network, with the whole Gauss-Newton matrix, in closed form.

With Jacobian J (n, P) of the outputs at the trained weights, noise σ² and a prior N(0, 1/α), the posterior is normal
with precision JᵀJ/σ² + αI, and an output has the variance j (JᵀJ/σ² + αI)⁻¹ jᵀ (Immer, Korzepa & Bauer, 2021,
arXiv:2008.08400). α and σ² are where the marginal likelihood is greatest (MacKay, 1992, doi:10.1162/neco.1992.4.3.448).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from examples.papers.uci_choice import Final
from examples.papers.uci_data import Split
from examples.papers.uci_networks import FittedNetworks
from mnvi.likelihoods import HeteroscedasticGaussian, Prediction

ROUNDS = 100  # of the fixed-point iteration


def laplace(splits: Sequence[Split], final: Final) -> list[list[Prediction]]:
    """Of every split's test, around the first of its plain networks: one normal distribution for each row."""
    found = []
    for k, split in enumerate(splits):
        networks, first = final.networks[k]
        assert isinstance(networks, FittedNetworks)
        found.append([approximated(networks.models[first], split)])
        print(f"\r  laplace, split {k + 1} of {len(splits)}", end="", flush=True)
    print()
    return found


def approximated(model: nn.Module, split: Split) -> Prediction:
    """The prediction of a split's test."""
    residuals = (split.y - model(split.x)).detach().double()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    values, vectors = torch.linalg.eigh(gram(model, split.x))
    values = values.clamp_min(0)
    alpha, noise = evidence(values, residuals.square().sum(), weights.square().sum(), len(split.x))
    rotated = jacobian(model, split.test_x).double() @ vectors
    variance = (rotated.square() / (values / noise + alpha)).sum(1, keepdim=True) + noise
    output = model(split.test_x).detach(), (0.5 * variance.log()).float()
    return split.in_units(HeteroscedasticGaussian()).prediction(tuple(each[None] for each in output))


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Derivatives of the outputs of (n, d) inputs by all parameters, (n, P)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def output(parameters: dict, row: Tensor) -> Tensor:
        return functional_call(model, parameters, (row[None],))[0, 0]

    parts = vmap(jacrev(output), in_dims=(None, 0))(parameters, x)
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def gram(model: nn.Module, x: Tensor, rows: int = 2000) -> Tensor:
    """JᵀJ, (P, P), in double precision, so many rows at a time."""
    parts = (jacobian(model, each).double() for each in x.split(rows))
    return sum((part.mT @ part for part in parts), torch.zeros(()))


def evidence(values: Tensor, error: Tensor, norm: Tensor, count: int) -> tuple[float, float]:
    """(α, σ²) by MacKay's iteration, from the eigenvalues of JᵀJ, ‖y − f‖², ‖w‖² and n.

    γ = Σ λ/(λ + ασ²) is the number of parameters that the data determine; α = γ/‖w‖², σ² = ‖y − f‖²/(n − γ).
    """
    alpha, noise = 1.0, float(error) / count
    for _ in range(ROUNDS):
        gamma = float((values / (values + alpha * noise)).sum())
        new = gamma / float(norm), float(error) / max(count - gamma, 0.05 * count)
        settled = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(new, (alpha, noise), strict=True))
        alpha, noise = new
        if settled:
            break
    return alpha, noise
