"""Calibration by held-out data: what was wrong with a scale or temperature is found, and few data change little."""

import copy
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from mnvi.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Poisson,
    Standardized,
    StudentT,
)
from mnvi.likelihoods.base import minimum
from tests.cases import cases

MANY = 20_000


def outputs(*shape):
    return 2 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))


LIKELIHOODS = {  # likelihood, outputs of N examples
    "categorical": (Categorical(), lambda n: outputs(n, 4)),
    "bernoulli": (Bernoulli(), lambda n: outputs(n)),
    "gaussian": (Gaussian(), lambda n: outputs(n, 1)),
    "student t": (StudentT(), lambda n: outputs(n, 1)),
    "heteroscedastic": (HeteroscedasticGaussian(), lambda n: 0.3 * outputs(n, 2)),
    "standardized": (Standardized(Gaussian(), 3.0, 5.0), lambda n: outputs(n, 1)),
}


@cases("row", LIKELIHOODS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_the_factor_under_which_data_were_drawn_is_found(row, factor):
    likelihood, made = copy.deepcopy(row[0]), row[1](MANY)
    truth = copy.deepcopy(likelihood)
    truth.widen_(factor)
    target = truth.sample(made, generator=torch.Generator().manual_seed(5))[0]
    found = likelihood.calibrate_(made, target)
    assert found == pytest.approx(factor, rel=0.05)
    torch.testing.assert_close(likelihood.state_dict(), dict(truth.state_dict()), rtol=0.06, atol=0.06)


@cases("row", LIKELIHOODS)
def test_the_least_loss_is_where_scipy_finds_it(row):
    likelihood, made = copy.deepcopy(row[0]), row[1](30)
    target = likelihood.sample(made, generator=torch.Generator().manual_seed(6))[0]

    def loss(log_factor):
        wider = copy.deepcopy(likelihood)
        wider.widen_(math.exp(log_factor))
        normal = torch.distributions.Normal(0.0, 0.4).log_prob(torch.tensor(log_factor)).item()
        return -normal - wider.log_prob(made, target).double().sum().item()

    expected = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded", options={"xatol": 1e-5}).x
    assert math.log(likelihood.calibrate_(made, target, spread=0.4)) == pytest.approx(expected, abs=5e-3)


def test_several_draws_are_one_mixture():
    draws = torch.tensor([[0.0], [3.0]]).expand(2, 400)[..., None]  # one of the draws is always right
    target = torch.tensor([0.0, 3.0]).repeat(200)[:, None]
    found = Gaussian().calibrate_(draws, target, spread=100.0)
    assert found < 0.3  # the mean of the draws' own log densities would have 2.1
    single = Gaussian().calibrate_(draws[:1], target, spread=100.0)
    assert single == pytest.approx((9 / 2) ** 0.5, rel=1e-2)


def test_few_examples_without_an_error_change_little():
    likelihood = Categorical()
    logits = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]])
    assert 0.75 < likelihood.calibrate_(logits, torch.tensor([0, 1, 0])) < 1
    many = Categorical().calibrate_(logits.repeat(1, 500, 1), torch.tensor([0, 1, 0]).repeat(500))
    assert many < 0.5


def test_what_is_known_or_has_no_width_is_left_as_it_is():
    for likelihood, made in [(Gaussian(2.0), outputs(9, 1)), (Poisson(), outputs(9))]:
        before = copy.deepcopy(likelihood.state_dict())
        target = torch.ones(made.shape[1:])
        with pytest.raises(TypeError, match=r"known|no scale or temperature"):
            likelihood.calibrate_(made, target)
        assert all(torch.equal(value, before[name]) for name, value in likelihood.state_dict().items())


FUNCTIONS = {
    "parabola": lambda x: (x - 0.3) ** 2,
    "kink": lambda x: abs(x + 1.2),
    "skewed": lambda x: math.exp(x) - 2 * x,
    "left end": lambda x: x,
    "right end": lambda x: -x,
}


@cases("function", FUNCTIONS)
def test_the_minimum_is_that_of_scipy(function):
    expected = minimize_scalar(function, bounds=(-2, 2), method="bounded", options={"xatol": 1e-6}).x
    calls = []
    found = minimum(lambda x: calls.append(x) or function(x), -2, 2, 1e-4)
    assert found == pytest.approx(expected, abs=1.1e-4)
    assert len(calls) < 30  # log(4/1e-4) / log(1.618), and two at the start
    assert all(-2 <= each <= 2 for each in calls)
