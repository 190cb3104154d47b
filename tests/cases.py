"""The tables of cases that tests of several folders run on: a new factor, family or prior is one row here."""

import pytest
from torch.distributions import Normal

from mnvi import posteriors, priors
from mnvi.covariance import BlockDiagonal, Dense, Diagonal, Identity, Kronecker, LowRank

# A new factor is one row here; so is a new family. Every law of every file then runs on it.
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
# Families with a free scale for each weight draw outputs where their factors are these; others draw weights.
DRAWN = ("identity", "diagonal", "low-rank")
FAMILIES |= {
    f"ScaledMatrixNormal-{rows}-{columns}": posteriors.ScaledMatrixNormal(FACTORS[rows], FACTORS[columns])
    for rows in DRAWN
    for columns in DRAWN
}
WEIGHT_FAMILIES = {
    f"ScaledMatrixNormal-{rows}-{columns}": posteriors.ScaledMatrixNormal(FACTORS[rows], FACTORS[columns])
    for rows, columns in (("dense", "dense"), ("dense", "low-rank"), ("identity", "dense"), ("blocks", "kronecker"))
}
FAMILIES |= {
    f"CorrectedMatrixNormal-{rows}-{columns}": posteriors.CorrectedMatrixNormal(FACTORS[rows], FACTORS[columns])
    for rows, columns in (("dense", "dense"), ("blocks", "kronecker"), ("identity", "dense"), ("diagonal", "identity"))
}
# A few families that stand for all of them, where a test is about what is built on top.
SOME_FAMILIES = {
    "diagonal": posteriors.Diagonal(),
    "dense": posteriors.MatrixNormal(),
    "low-rank-kronecker": posteriors.MatrixNormal(LowRank(2), Kronecker()),
    "blocks-identity": posteriors.MatrixNormal(BlockDiagonal(3), Identity()),
    "dense-plus-diagonal": posteriors.MatrixNormalPlusDiagonal(ratio=1.0),
    "scaled": posteriors.ScaledMatrixNormal(),
    "corrected": posteriors.CorrectedMatrixNormal(BlockDiagonal(3), Dense()),
}
# A prior whose density is fixed, with the distribution of a weight under it: a new one is one row here.
DENSITIES = {
    "normal": (priors.Normal(0.7), Normal(0.0, 0.7)),
}
# Other priors, whose precisions are fitted or learnt, are one row here.
PRIORS = {name: prior for name, (prior, _) in DENSITIES.items()} | {
    "fitted": priors.Normal(None),
    "ard": priors.ARD(),
    "group-ard": priors.GroupARD(),
    "group-ard-rows": priors.GroupARD(columns=False),
    "group-ard-columns": priors.GroupARD(rows=False),
    "group-ard-learnt": priors.GroupARD(learn=True),
    "group-ard-student": priors.GroupARD(degrees=1.5),
    "group-ard-channels": priors.GroupARD(positions=False),
}


def cases(name, table):
    """Parametrise a test by the rows of a table."""
    return pytest.mark.parametrize(name, list(table.values()), ids=list(table))
