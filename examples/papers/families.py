"""Which family of posteriors is best under which prior, where the bound can be had exactly and to its optimum.

    python -m examples.papers.families

Six linear regressions on the same 40 inputs: y = W x + noise of a known scale. Inputs are positive and correlated, as
those of a hidden layer are; of W all weights matter, or a few of each row. Both parts of the evidence lower bound are
exact for every family, the expected misfit and the KL, so that there is no noise of a gradient, and L-BFGS goes to the
optimum. `Rows` is the best that any family can do here: a dense covariance for each row, which are independent given
the data. What the others lack to it is what they cannot express.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from examples.common import checkpoints
from examples.common.command_line import as_program, check, option, parse
from examples.common.memory import keep_memory
from examples.papers.row_posterior import best_rows
from mnvi.covariance import Dense, Identity, LowRank
from mnvi.posteriors import (
    CorrectedMatrixNormal,
    Diagonal,
    MatrixNormal,
    MatrixNormalPlusDiagonal,
    Posterior,
    PosteriorSpec,
)
from mnvi.posteriors import ScaledMatrixNormal as Scaled
from mnvi.posteriors.corrected_matrix_normal import CorrectedMatrixNormalPosterior
from mnvi.posteriors.diagonal import DiagonalPosterior
from mnvi.posteriors.matrix_normal_plus_diagonal import MatrixNormalPlusDiagonalPosterior
from mnvi.posteriors.scaled_matrix_normal import ScaledMatrixNormalPosterior
from mnvi.priors import ARD, GroupARD, Normal, Prior, PriorSpec

FAMILIES: dict[str, PosteriorSpec] = {
    "Diagonal": Diagonal(),
    "MatrixNormal": MatrixNormal(),
    "MatrixNormalPlusDiagonal": MatrixNormalPlusDiagonal(),
    "ScaledMatrixNormal(Identity, LowRank(2))": Scaled(),
    "ScaledMatrixNormal(Identity, LowRank(8))": Scaled(Identity(), LowRank(8)),
    "ScaledMatrixNormal(Identity, Dense)": Scaled(Identity(), Dense()),
    "ScaledMatrixNormal(Dense, Dense)": Scaled(Dense(), Dense()),
    "CorrectedMatrixNormal(Identity, Dense)": CorrectedMatrixNormal(Identity(), Dense()),
    "CorrectedMatrixNormal": CorrectedMatrixNormal(),
}
PRIORS: dict[str, PriorSpec] = {"Normal(None)": Normal(None), "GroupARD": GroupARD(), "ARD": ARD()}
OUTPUTS, INPUTS = 6, 40


@dataclass(frozen=True)
class Settings:
    points: int = option(60, "examples", 50)
    relevant: int = option(4, "weights of each row that are not zero, where few matter", 1, INPUTS)
    noise: float = option(0.5, "standard deviation of the targets' noise", 1e-3, 1e3)
    iterations: int = option(1000, "of L-BFGS", 1)
    seed: int = option(0, "of the data", 0)
    out: str = option("runs/families", "folder for result.json")

    def __post_init__(self) -> None:
        check(self, {})


def main(argv: list[str] | None = None) -> dict:
    """Optimise every family under every prior; returns −ELBO of all points in nats."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    folder = checkpoints.prepare(settings.out)
    keep_memory()
    found: dict[str, dict[str, float]] = {}
    with tqdm(total=2 * len(PRIORS) * (1 + len(FAMILIES))) as bar:
        for relevant in (INPUTS, settings.relevant):
            x, y = problem(settings, relevant)
            for name, prior in PRIORS.items():
                column = found[f"{name}, {relevant} of {INPUTS}"] = {}
                optima, column["Rows"] = [], best_rows(x, y, settings.noise, prior)
                bar.update()
                for kind, family in FAMILIES.items():
                    optima.append(
                        _optimum(family, prior, x, y, settings, optima[:2])
                    )  # the first two are held by others
                    column[kind] = optima[-1].neg_elbo
                    bar.update()
    print(table(found))
    checkpoints.write_json(folder / "result.json", {"neg_elbo": found})
    return found


def problem(settings: Settings, relevant: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, p) and targets (N, n), in float64."""
    generator = torch.Generator().manual_seed(settings.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = (normal(settings.points, 10) @ normal(10, INPUTS) / 10**0.5 + 0.5 * normal(settings.points, INPUTS)).relu()
    matters = torch.rand(OUTPUTS, INPUTS, generator=generator).argsort(1).argsort(1) < relevant
    weight = normal(OUTPUTS, INPUTS) * matters / relevant**0.5
    return x, x @ weight.T + settings.noise * normal(settings.points, OUTPUTS)


def _optimum(
    family: PosteriorSpec, spec: PriorSpec, x: Tensor, y: Tensor, settings: Settings, starts: list["Optimum"]
) -> "Optimum":
    """The least −ELBO from the family's own start and from the ``starts`` that it holds."""
    shape = y.shape[1], x.shape[1]
    ridge = torch.linalg.solve(x.T @ x + torch.eye(shape[1]).double(), x.T @ y).T
    found = []
    for start in (None, *starts):
        posterior = family.build(shape, dtype=x.dtype)
        posterior.set_scale_(0.1)
        if start is None or _begin_(posterior, start.posterior):
            mean = (ridge if start is None else start.mean).clone()
            found.append(_minimum(mean, posterior, spec.build(shape, dtype=x.dtype), x, y, settings))
    return min(found, key=lambda each: each.neg_elbo)


@torch.no_grad()
def _begin_(posterior: Posterior, start: Posterior) -> bool:
    """Make ``posterior`` the distribution ``start``, or nearly; whether its family holds it."""
    if isinstance(start, DiagonalPosterior):
        if isinstance(posterior, MatrixNormalPlusDiagonalPosterior):
            posterior.matrix_normal.set_scale_(0.1 * start.log_scale.mean().exp().item())
        own = [each for name, each in posterior.named_parameters() if name.removeprefix("diagonal.") == "log_scale"]
        for parameter in own:
            parameter.copy_(start.log_scale)
        return bool(own)
    holds = isinstance(posterior, (ScaledMatrixNormalPosterior, CorrectedMatrixNormalPosterior))
    if not holds or posterior.matrix_normal.state_dict().keys() != start.state_dict().keys():
        return False
    posterior.matrix_normal.load_state_dict(start.state_dict())
    posterior.log_scale.zero_()
    return True


def _minimum(mean: Tensor, posterior: Posterior, prior: Prior, x: Tensor, y: Tensor, settings: Settings) -> "Optimum":
    misfit = expected_misfit(posterior, x, y)
    parameters = [mean.requires_grad_(), *posterior.parameters()]
    options = {"max_iter": settings.iterations, "history_size": 50, "tolerance_change": 1e-10}
    optimizer = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **options)

    def bound() -> Tensor:
        constant = 0.5 * y.numel() * math.log(2 * math.pi * settings.noise**2)
        return constant + misfit(mean) / (2 * settings.noise**2) + prior.kl(mean, posterior)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bound()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return Optimum(bound().item(), mean.detach(), posterior)


class Optimum(NamedTuple):
    """Where L-BFGS arrived."""

    neg_elbo: float
    mean: Tensor
    posterior: Posterior


def expected_misfit(posterior: Posterior, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """E ‖Y − X Wᵀ‖² = ‖Y − X Mᵀ‖² + Σ_k tr(D_k XᵀX D_kᵀ), D_k being what the k-th number of the noise moves."""
    shapes = [each.shape for each in posterior.draw_noise()]
    units = torch.eye(sum(shape.numel() for shape in shapes), dtype=x.dtype)
    parts = units.split([shape.numel() for shape in shapes], 1)
    basis = tuple(part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
    moments = x.T @ x

    def misfit(mean: Tensor) -> Tensor:
        moved = torch.func.vmap(lambda *noise: posterior.deviation(noise))(*basis)  # type: ignore[arg-type]
        return (y - x @ mean.T).square().sum() + ((moved @ moments) * moved).sum()

    return misfit


def table(found: dict[str, dict[str, float]]) -> str:
    """Nats above the widest family, in Markdown."""
    rows = [f"| family | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for name in FAMILIES:
        rows.append(f"| {name} | " + " | ".join(f"{each[name] - each['Rows']:.1f}" for each in found.values()) + " |")
    rows.append("| −ELBO of `Rows` | " + " | ".join(f"{each['Rows']:.1f}" for each in found.values()) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    as_program(main)
