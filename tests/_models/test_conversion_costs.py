"""What a conversion says of its costs."""

import warnings

import pytest
from torch import nn

import mnvi
from mnvi.covariance import Dense, Diagonal
from mnvi.posteriors import MatrixNormal


def wide():
    return nn.Sequential(nn.Linear(7000, 300, device="meta"))


def test_one_large_layer_with_the_arithmetic_of_its_step():
    """Two dense factors of an (n, p) weight take half of n² + p² multiplications beside n·p for each example."""
    said = "layer '0' take 96 MiB, 12.0 times its weight, and a step of 128 examples about 13.0 times the arithmetic of"
    with pytest.warns(UserWarning, match=said):
        mnvi.to_bayesian(wide(), posterior=MatrixNormal())


def test_a_draw_of_the_weight_is_shared_by_the_batch():
    """About 300·7,000²/2 multiplications beside 128·300·7,000: 27 times, and a little more for the blocks."""
    family = MatrixNormal(Diagonal(), Dense())
    with pytest.warns(UserWarning, match=r"of 128 examples about 29\.\d times the arithmetic"):
        mnvi.to_bayesian(wide(), posterior=family, estimator="weight")


def test_a_convolution_says_it_by_output_positions():
    """p = 4,608 columns: half of 512·4,608² and of 4,608·512² multiplications, 512·4,608 for a position."""
    with pytest.warns(UserWarning, match=r"layer '0' take 4\d MiB.*plain layer has for 2,[5-9]\d\d output positions"):
        mnvi.to_bayesian(nn.Sequential(nn.Conv2d(512, 512, 3, device="meta")), posterior=MatrixNormal())


def test_many_layers_that_are_each_small_enough():
    model = nn.Sequential(*[nn.Linear(768, 3072, device="meta") for _ in range(12)])
    said = r"12 layers take 247 MiB, 2\.3 times their weights; the largest.*'0', take 21 MiB"
    with pytest.warns(UserWarning, match=said):
        mnvi.to_bayesian(model, posterior=MatrixNormal())


@pytest.mark.parametrize("posterior", [None, mnvi.posteriors.Diagonal(), MatrixNormal(Diagonal(), Diagonal())])
def test_factors_no_larger_than_their_weights_pass(posterior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnvi.to_bayesian(nn.Sequential(nn.Linear(9000, 5000, device="meta")), posterior=posterior)
