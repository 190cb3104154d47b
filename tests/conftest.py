"""What the test files share: the tables of cases, the dense oracle, tolerances and z-scores."""

import os
import re

import pytest
import torch
from hypothesis import settings

from mnvi import posteriors, priors
from mnvi.covariance import BlockDiagonal, Dense, Diagonal, Identity, Kronecker, LowRank

if "OMP_NUM_THREADS" not in os.environ:  # the matrices here are small, and the processes of xdist share the cores
    torch.set_num_threads(1)
settings.register_profile("mnvi", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("mnvi")

# A new factor is one row here; so is a new family, and a new prior. Every law of every file then runs on it.
FACTORS = {
    "dense": Dense(),
    "diagonal": Diagonal(),
    "blocks": BlockDiagonal(2),
    "blocks-with-remainder": BlockDiagonal(5),
    "low-rank": LowRank(2),
    "kronecker": Kronecker(),
    "kronecker-low-rank": Kronecker(LowRank(1), Diagonal()),
    "kronecker-identity": Kronecker(Identity(), BlockDiagonal(2)),
    "kronecker-nested": Kronecker(Kronecker(Dense(), LowRank(1)), Dense()),
    "identity": Identity(),
}
PARTNERS = {f"{name}-rows": (factor, Dense()) for name, factor in FACTORS.items()}
PARTNERS |= {f"{name}-columns": (LowRank(1), factor) for name, factor in FACTORS.items()}
PARTNERS |= {f"{name}-both": (factor, factor) for name, factor in FACTORS.items()}
FAMILIES = {
    f"{family.__name__}-{name}": family(row, column)
    for family in (posteriors.MatrixNormal, posteriors.MatrixNormalPlusDiagonal)
    for name, (row, column) in PARTNERS.items()
} | {"Diagonal": posteriors.Diagonal()}
# A few families that stand for all of them, where a test is about what is built on top.
SOME_FAMILIES = {
    "diagonal": posteriors.Diagonal(),
    "dense": posteriors.MatrixNormal(),
    "low-rank-kronecker": posteriors.MatrixNormal(LowRank(2), Kronecker()),
    "blocks-identity": posteriors.MatrixNormal(BlockDiagonal(3), Identity()),
    "dense-plus-diagonal": posteriors.MatrixNormalPlusDiagonal(ratio=1.0),
}
PRIORS = {
    "normal": priors.Normal(0.7),
    "fitted": priors.Normal(None),
    "ard": priors.ARD(),
    "group-ard": priors.GroupARD(),
    "group-ard-rows": priors.GroupARD(columns=False),
    "group-ard-columns": priors.GroupARD(rows=False),
    "group-ard-learnt": priors.GroupARD(learn=True),
}


def cases(name, table):
    """Parametrise a test by the rows of a table."""
    return pytest.mark.parametrize(name, list(table.values()), ids=list(table))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def assert_close(actual, expected, c=100.0):
    """Equal up to c·n·eps of the largest number, n the count of numbers; the only tolerance of exact tests."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    bound = c * max(expected.numel(), 10) * torch.finfo(actual.dtype).eps
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound * scale)


def assert_refused(program, options, message, folder, capsys):
    """The command line ``program(folder, *options)`` stops with a usage error like ``message`` and makes no folder."""
    with pytest.raises(SystemExit) as stopped:
        program(folder, *options)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not folder.exists()


def randomise(module, std=0.5):
    """The module with every parameter drawn anew: any real values are valid, also those that are stored for nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn_like(parameter))
    return module


def build(family, shape=(4, 6), std=0.5):
    return randomise(family.build(shape), std)


def dense_covariance(posterior):
    """Cov of the row-major flattened deviation, from the dense factors of its parts."""
    if hasattr(posterior, "matrix_normal"):
        return dense_covariance(posterior.matrix_normal) + dense_covariance(posterior.diagonal)
    if hasattr(posterior, "log_scale"):
        return (2 * posterior.log_scale).exp().flatten().diag_embed()
    row, column = posterior.row.matrix(), posterior.column.matrix()
    return torch.kron(row @ row.mT, column @ column.mT)


def assert_moments(draws, mean, covariance, limit=5.0):
    """|z| < limit for every mean and covariance of draws (D, k), by the standard errors of a normal sample.

    Where a draw is only conditionally normal or a covariance is None, that entry is left out (NaN in ``covariance``).
    """
    count = draws.shape[0]
    known = covariance.diagonal()
    error = draws - mean
    floor = 1e-12 * known.max()
    z_mean = error.mean(0) / (known / count + floor).sqrt()
    spread = (torch.outer(known, known) + covariance.square()) / count
    z_covariance = (error.mT @ error / count - covariance) / (spread + floor**2).sqrt()
    assert z_mean.abs().max() < limit
    assert z_covariance[~covariance.isnan()].abs().max() < limit
