"""What the comparison compares with, against known answers; nothing is trained but by IVON."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import nn

import mnvi
from examples.baselines import contest, temperature
from examples.baselines.draws import Training, outputs, single
from examples.baselines.ensemble import ensemble
from examples.baselines.ivon import ivon
from examples.baselines.laplace import fitted, last_layer
from examples.baselines.mc_dropout import before_linear_layers, mc_dropout


@dataclass(frozen=True)
class Untrained(Training):
    """Leaves the weights as they are, so that what the draws should be is known; remembers what was to be fitted."""

    calls: list = field(default_factory=list)

    def history(self, model, **options):
        self.calls.append((model, options))
        model.eval()
        return SimpleNamespace(likelihood=mnvi.likelihoods.Categorical())


def needs(name):
    return pytest.mark.skipif(not contest.METHODS[name].is_here, reason=contest.INSTALL)


def untrained(inputs=4, classes=3, count=200):
    x, y = torch.randn(count, inputs), torch.randint(classes, (count,))
    return Untrained((x, y), (x, y), epochs=1)


def close_in_mean(draws, mean, variance, deviations=5):
    """Whether the mean over the draws is ``mean`` within some standard errors."""
    return bool(((draws.mean(0) - mean).abs() <= deviations * (variance / len(draws)).sqrt() + 1e-6).all())


def close_in_variance(draws, variance, deviations=5):
    """The same of the variance, for draws of a kurtosis of at most 3: its relative standard error is √(2/S)."""
    ratio = draws.var(0) / variance
    return bool(((ratio - 1).abs() <= deviations * math.sqrt(2 / len(draws))).all())


# Draws ----------------------------------------------------------------------------------------------------------------


def test_outputs_of_parts_are_those_of_the_whole():
    model, x = nn.Linear(4, 3), torch.randn(11, 4)
    found = outputs(single(model), x, size=4)
    torch.testing.assert_close(found, model(x).detach()[None])
    assert not found.requires_grad


# Temperature ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [0.5, 3.0, 15.0])
def test_the_temperature_makes_the_confidence_the_share_that_is_right(difference):
    logits = torch.tensor([difference, 0.0]).expand(1, 100, 2)
    y = (torch.arange(100) >= 80).long()
    assert temperature.best(logits, y) == pytest.approx(difference / math.log(4), rel=1e-4)


def test_of_draws_it_is_the_mixture_that_is_calibrated():
    logits = torch.tensor([[4.0, 0.0], [1.0, 0.0]])[:, None].expand(2, 100, 2)
    y = (torch.arange(100) >= 80).long()
    right = brentq(lambda t: (expit(4 / t) + expit(1 / t)) / 2 - 0.8, 0.1, 10)
    assert temperature.best(logits, y) == pytest.approx(right, rel=1e-4)


def test_labels_that_are_all_right_have_no_best_temperature():
    with pytest.raises(ValueError, match=r"not between 0\.05 and 20 for 9 held-out labels"):
        temperature.best(torch.tensor([1.0, 0.0]).expand(1, 9, 2), torch.zeros(9, dtype=torch.long))


# MC dropout and ensembles ---------------------------------------------------------------------------------------------


def test_dropout_goes_before_every_linear_layer_of_a_copy():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Sequential(nn.Linear(8, 4), nn.ReLU()), nn.Linear(4, 2))
    dropping = before_linear_layers(model, 0.3)
    kinds = [type(module).__name__ for module in dropping.modules() if not list(module.children())]
    assert kinds == ["Conv2d", "Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(dropping.eval()(x), model(x))


def test_draws_of_dropout_have_the_moments_of_dropped_inputs():
    p, training, model = 0.25, untrained(), nn.Sequential(nn.Linear(4, 3))
    x = training.data[0][:5]
    with torch.no_grad():
        draws = mc_dropout(model, training, p=p, samples=4000)(x)
        mean, variance = model(x), p / (1 - p) * x.square() @ model[0].weight.square().T
    assert draws.shape == (4000, 5, 3)
    assert close_in_mean(draws, mean, variance)
    assert close_in_variance(draws, variance)
    assert not training.calls[0][0].training


def test_there_must_be_a_layer_for_dropout():
    with pytest.raises(ValueError, match=r"no nn\.Linear inside the Linear"):
        mc_dropout(nn.Linear(4, 3), untrained())


def test_members_of_an_ensemble_differ_in_weights_and_order():
    training = untrained()
    draws = outputs(ensemble(lambda: nn.Linear(4, 3), training, members=4), training.data[0])
    models, options = zip(*training.calls, strict=True)
    torch.testing.assert_close(draws, torch.stack([model(training.data[0]) for model in models]).detach())
    assert all((a - b).abs().min() > 0 for i, a in enumerate(draws) for b in draws[:i])
    assert len({each["seed"] for each in options}) == 4


def test_an_ensemble_of_another_seed_has_other_members():
    training = untrained()
    one, other = (
        outputs(ensemble(lambda: nn.Linear(4, 3), replace(training, seed=seed), members=2), training.data[0])
        for seed in (0, 1)
    )
    assert all((a - b).abs().min() > 0 for a in one for b in other)


# IVON and Laplace, where they are installed ---------------------------------------------------------------------------


@needs("ivon")
def test_ivon_learns_a_copy_and_draws():
    x = torch.randn(400, 2)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    draws = outputs(ivon(model, Training((x, y), (x, y), epochs=5, batch_size=20), samples=50), x)
    assert draws.shape == (50, 400, 2)
    assert torch.equal(model.weight, before)
    assert (draws.softmax(2).mean(0).argmax(1) == y).float().mean() > 0.95
    assert draws.std(0).min() > 0


@needs("laplace")
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_has_the_covariance_of_the_dense_formula(bias):
    training = untrained()
    x = training.data[0]
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3, bias=bias))
    names = dict(model[2].named_parameters())
    weights = torch.cat([each.detach().flatten() for each in names.values()])

    def logits(flat, features):
        parts = flat.split([each.numel() for each in names.values()])
        given = {name: part.view_as(names[name]) for name, part in zip(names, parts, strict=True)}
        return torch.func.functional_call(model[2], given, (features,))

    features = model[:2](x).detach()
    jacobians = torch.func.jacrev(logits)(weights, features)  # (N, C, weights)
    p = logits(weights, features).softmax(1)
    gauss_newton = torch.einsum("nci,ncd,ndj->ij", jacobians, p.diag_embed() - p[:, :, None] * p[:, None], jacobians)
    precision = fitted(model, training, "full").prior_precision
    covariance = torch.linalg.inv(gauss_newton + precision * torch.eye(len(weights)))
    variance = (jacobians @ covariance @ jacobians.mT).diagonal(dim1=1, dim2=2)

    draws = outputs(last_layer(model, training, structure="full", samples=4000), x[:5])
    assert close_in_mean(draws, model(x[:5]).detach(), variance[:5])
    assert close_in_variance(draws, variance[:5])


def test_laplace_refuses_another_likelihood():
    with pytest.raises(ValueError, match="must be \"categorical\", got 'gaussian'"):
        last_layer(nn.Linear(2, 1), replace(untrained(), likelihood="gaussian"))


# The contest ----------------------------------------------------------------------------------------------------------


def given(model, training, **options):
    options = {"draws": 3, "members": 2} | options
    return contest.Contest(lambda: nn.Sequential(nn.Linear(4, 3)), training, model, model, (1.0, 2.0), **options)


@pytest.mark.parametrize("name", ["plain", "dropout", "ensemble", "diagonal", "matrix-normal"])
def test_every_method_has_draws_rows_and_a_cost(name):
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2000, 4)
    pair = x, torch.distributions.Categorical(logits=2 * model(x)).sample()  # so that there is a best temperature
    training = Untrained(pair, pair, epochs=1)
    before = model[0].weight.clone()
    entry = contest.METHODS[name].run(given(model, training))
    assert entry.rows
    assert entry.draws(training.data[0]).shape == ({"plain": 1, "ensemble": 2}.get(name, 3), 2000, 3)
    assert entry.rows.get("plain + temperature", 0.5) == pytest.approx(0.5, abs=0.1)
    assert entry.seconds >= {"plain": 3, "ensemble": 0}.get(name, 1)  # with the first training, of a second
    assert torch.equal(model[0].weight, before)


def test_families_and_the_weight_of_the_kl_are_those_of_the_method():
    model, x = nn.Sequential(nn.Linear(200, 3), nn.Linear(3, 3)), torch.randn(2000, 200)
    pair = x, torch.distributions.Categorical(logits=2 * model(x)).sample()  # so that there is a best temperature
    training = Untrained(pair, pair, epochs=1)
    for name, kind in (("matrix-normal", "MatrixNormalPosterior"), ("diagonal", "DiagonalPosterior")):
        contest.METHODS[name].run(given(model, training, kl_weight=0.5))
        converted, options = training.calls.pop()
        assert [type(layer.posterior).__name__ for layer in converted] == [kind, kind]
        assert options == {"kl_weight": 0.5}


def test_a_package_that_is_not_installed_is_noticed():
    assert not contest.Method(lambda contest: None, "a_package_of_no_name").is_here
    assert contest.Method(lambda contest: None, "torch").is_here
