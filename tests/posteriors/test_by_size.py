"""The default family: which factors it chooses, and that its cost keeps to what it promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mnvi
from mnvi import posteriors
from mnvi.covariance import Dense, Diagonal, Kronecker
from mnvi.posteriors import BySize, MatrixNormal
from tests.cases import cases
from tests.laws import assert_close, randomise

CHOICES = {
    "hidden": ((400, 784), "MatrixNormal(Diagonal(), Diagonal())"),
    "few units of many inputs": ((64, 6272), "MatrixNormal(Dense(), Diagonal())"),
    "one unit too many": ((65, 6272), "MatrixNormal(Diagonal(), Diagonal())"),
    "classes": ((10, 400), "MatrixNormal(Dense(), Diagonal())"),
    "just small enough": ((10, 80), "MatrixNormal(Dense(), Diagonal())"),
    "just too large": ((10, 79), "MatrixNormal(Diagonal(), Diagonal())"),
    "columns of a table": ((200, 13), "MatrixNormal(Diagonal(), Dense())"),
    "first convolution": ((64, 147), "MatrixNormal(Diagonal(), Diagonal())"),
    "one weight": ((1, 1), "MatrixNormal(Diagonal(), Diagonal())"),
}


@cases("row", CHOICES)
def test_factors_are_dense_where_they_are_small_beside_the_weight(row):
    shape, family = row
    assert BySize().build(shape).described() == family


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_it_holds_little_beside_the_weight(n, p):
    number = BySize().num_parameters((n, p))
    assert number <= n * p / 4 + 2 * (n + p)
    assert number == sum(each.numel() for each in BySize().build((n, p), device="meta").parameters())


def test_it_is_what_layers_and_conversions_take_if_nothing_is_said():
    layers = mnvi.MNLinear(400, 10), mnvi.to_bayesian(nn.Linear(400, 10)), mnvi.MNConv2d(20, 5, 3)
    for layer in layers:
        assert layer.posterior.described() == "MatrixNormal(Dense(), Diagonal())"
        assert "posterior=MatrixNormal(Dense(), Diagonal())" in repr(layer)
    assert MatrixNormal() == MatrixNormal(Dense(), Dense())  # which has defaults of its own
    assert BySize().family((400, 784)) == MatrixNormal(Diagonal(), Diagonal())


@pytest.mark.usefixtures("float64")
def test_its_posterior_is_the_chosen_familys():
    chosen, family = (randomise(each.build((3, 40))) for each in (BySize(), MatrixNormal(Dense(), Diagonal())))
    family.load_state_dict(chosen.state_dict())
    assert_close(chosen.variance(), family.variance())
    assert_close(chosen.log_volume(), family.log_volume())


# Of a draw of an (8, 12) weight, and of 7 outputs; a dense factor of length k has k² + k multiplications.
ARITHMETIC = {
    "dense": (MatrixNormal(), 8 * 156 + 12 * 72, 7 * (72 + 156)),
    "diagonal": (MatrixNormal(Diagonal(), Diagonal()), 2 * 8 * 12, 7 * (8 + 12)),
    "kronecker": (MatrixNormal(Diagonal(), Kronecker()), 8 * (4 * 12 + 3 * 20) + 12 * 8, 7 * (8 + 4 * 12 + 3 * 20)),
    "independent": (posteriors.Diagonal(), 8 * 12, 7 * 8 * 12),
    "sum": (posteriors.MatrixNormalPlusDiagonal(), 8 * 156 + 12 * 72 + 8 * 12, 7 * (72 + 156) + 7 * 8 * 12),
    "by size": (BySize(), 2 * 8 * 12, 7 * (8 + 12)),
}


@cases("row", ARITHMETIC)
def test_the_arithmetic_of_a_draw(row):
    family, weight, outputs = row
    assert family.multiply_adds((8, 12)) == weight
    assert family.multiply_adds((8, 12), outputs=7) == outputs
