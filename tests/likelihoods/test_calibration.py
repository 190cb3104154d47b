"""Calibration by held-out data: what was wrong with a scale or temperature is found, and few data change little."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from mnvi.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Poisson,
    Standardized,
    StudentT,
)
from mnvi.likelihoods._minimum import minimum
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


DRAWS, EXAMPLES = 5, 40
RNG = np.random.default_rng(8)
LOCATIONS = 2 * RNG.standard_normal((DRAWS, EXAMPLES, 3))
REALS = LOCATIONS[RNG.integers(DRAWS, size=EXAMPLES), np.arange(EXAMPLES)] + 0.5 * RNG.standard_normal((EXAMPLES, 3))
LABELS = RNG.integers(3, size=EXAMPLES)
MIXTURES = {  # likelihood, targets, log p(target | draw) by scipy for a factor, (draws, examples)
    "gaussian": (Gaussian(), REALS, lambda c: stats.norm.logpdf(REALS, LOCATIONS, c).sum(-1)),
    "student t": (StudentT(3.0), REALS, lambda c: stats.t.logpdf(REALS, 3, LOCATIONS, c).sum(-1)),
    "categorical": (Categorical(), LABELS, lambda c: log_softmax(LOCATIONS / c, -1)[:, np.arange(EXAMPLES), LABELS]),
}


@cases("row", MIXTURES)
def test_the_mixture_of_several_draws_is_that_of_scipy(row):
    likelihood, target, densities = row

    def least(log_density):
        def loss(u):
            return 0.5 * (u / 0.7) ** 2 - log_density(densities(math.exp(u))).sum()

        return minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded", options={"xatol": 1e-6}).x

    expected, wrong = least(lambda each: logsumexp(each, 0)), least(lambda each: each.mean(0))
    assert abs(expected - wrong) > 0.1  # the mean of the draws' own log densities has another minimum
    found = copy.deepcopy(likelihood).calibrate_(torch.tensor(LOCATIONS), torch.tensor(target), spread=0.7)
    assert math.log(found) == pytest.approx(expected, abs=2e-3)


def test_of_two_minima_the_lower_one_is_found():
    """One draw of ten is 0.15 off and the others 3: narrow noise is most probable, and wide noise nearly."""
    draws = torch.full((10, 1, 1), 3.0, dtype=torch.float64)
    draws[0] = 0.15
    found = Gaussian().calibrate_(draws, torch.zeros(1, 1), spread=100.0)
    assert found == pytest.approx(0.15, rel=2e-3)  # where one normal density at 0.15 is largest


def with_nan(tensor, *where):
    spoiled = tensor.clone()
    spoiled[where] = torch.nan
    return spoiled


CERTAIN = torch.tensor([[[0.0, 1.0], [0.0, -torch.inf], [1.0, 0.0]]])  # class 1 is impossible in row 1
WRONG = {  # likelihood, outputs, targets, spread, error, message
    "impossible label": (Categorical(), CERTAIN, torch.tensor([0, 1, 0]), 0.3, ValueError, "no finite density.* row 1"),
    "infinite output": (Gaussian(), torch.full((2, 3), torch.inf), torch.ones(3), 0.3, ValueError, "rows 0, 1, 2"),
    "NaN output": (Gaussian(), with_nan(outputs(5), 0, 3), torch.ones(5), 0.3, ValueError, "got NaN at row 3"),
    "NaN logit": (Categorical(), with_nan(CERTAIN, 0, 2, 1), torch.tensor([0, 0, 1]), 0.3, ValueError, "NaN at row 2"),
    "NaN log-scale": (
        HeteroscedasticGaussian(),
        with_nan(outputs(5, 2), 0, 4, 1),
        torch.ones(5, 1),
        0.3,
        ValueError,
        "row 4",
    ),
    "NaN target": (Gaussian(), outputs(5), with_nan(torch.ones(5), 2), 0.3, ValueError, "finite, got nan at row 2"),
    "no draws": (Gaussian(), torch.zeros(0, 5), torch.ones(5), 0.3, ValueError, r"no draws, got .* shape \(0, 5\)"),
    "spread 0": (Gaussian(), outputs(5), torch.ones(5), 0.0, ValueError, "spread must be finite and positive, got 0"),
    "spread NaN": (Gaussian(), outputs(5), torch.ones(5), math.nan, ValueError, "spread must be finite"),
    "spread of text": (Gaussian(), outputs(5), torch.ones(5), "0.3", TypeError, "spread must be a number"),
}


@cases("row", WRONG)
def test_what_nothing_can_be_learnt_from_changes_nothing(row):
    likelihood, made, target, spread, error, message = row
    before = copy.deepcopy(likelihood.state_dict())
    with pytest.raises(error, match=message):
        likelihood.calibrate_(made, target, spread)
    assert all(torch.equal(value, before[name]) for name, value in likelihood.state_dict().items())


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
    "infinite but for a part": lambda x: (x - 1.3) ** 2 if 1 < x < 1.7 else math.inf,
    "NaN but for a part": lambda x: (x - 1.3) ** 2 if 1 < x < 1.7 else math.nan,
    "right end": lambda x: -x,
}


@cases("function", FUNCTIONS)
def test_the_minimum_is_that_of_scipy(function, request):
    bounds = (1.0, 1.7) if "part" in request.node.callspec.id else (-2.0, 2.0)
    expected = minimize_scalar(function, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    calls = []
    found = minimum(lambda x: calls.append(x) or function(x), -2, 2, 1e-4)
    assert found == pytest.approx(expected, abs=1.1e-4)
    assert len(calls) < 40  # a grid of 17, then log(0.5/1e-4) / log(1.618), and two at the start
    assert all(-2 <= each <= 2 for each in calls)
