"""Predictions of several models: the mixture of all their draws, against the prediction of each by itself."""

import copy
import math

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mnvi
from mnvi import predict
from mnvi.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Standardized, StudentT
from mnvi.likelihoods._mixture import Mixture
from tests.cases import cases
from tests.laws import assert_close, randomise
from tests.models import X

pytestmark = pytest.mark.usefixtures("float64")

S = 5


def layer(outputs, seed):
    torch.manual_seed(seed)
    return randomise(mnvi.MNLinear(4, outputs, posterior=mnvi.posteriors.MatrixNormal()), 0.3).double()


def wider(likelihood, factor):
    found = copy.deepcopy(likelihood)
    found.widen_(factor)
    return found


REAL = torch.randn(7, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
KINDS = {  # the number of outputs, likelihoods of two models, targets
    "categorical": (3, [Categorical(), wider(Categorical(), 3.0)], torch.arange(7) % 3),
    "bernoulli": (2, [Bernoulli(), wider(Bernoulli(), 0.5)], torch.arange(14).view(7, 2) % 2),
    "gaussian": (2, [wider(Gaussian(), 0.3), wider(Gaussian(), 2.0)], REAL),
    "heteroscedastic": (4, [HeteroscedasticGaussian(), wider(HeteroscedasticGaussian(), 0.4)], REAL),
    "student t": (2, [StudentT(5.0, 0.3), StudentT(3.0, 2.0)], REAL),
    "standardized": (2, [Standardized(Gaussian(0.2), 1.0, 3.0), Standardized(Gaussian(0.9), -1.0, 0.5)], REAL),
    "poisson": (2, [Poisson(), Poisson()], torch.arange(14).view(7, 2)),
}


def alone_and_together(outputs, likelihoods, **options):
    """Predictions of each model and of both, of the same draws."""
    models = [layer(outputs, k) for k in range(len(likelihoods))]
    torch.manual_seed(9)
    alone = [predict(model, X, S, each, **options) for model, each in zip(models, likelihoods, strict=True)]
    torch.manual_seed(9)
    return alone, predict(models, X, S, likelihoods, **options), models


@cases("row", KINDS)
def test_moments_and_densities_are_those_of_the_mixture(row):
    outputs, likelihoods, y = row
    alone, p, _ = alone_and_together(outputs, likelihoods)
    assert_close(p.mean, torch.stack([each.mean for each in alone]).mean(0))
    second = torch.stack([each.variance + each.mean.square() for each in alone]).mean(0)
    assert_close(p.variance, second - p.mean.square())
    densities = torch.stack([each.log_prob(y) for each in alone])
    assert_close(p.log_prob(y), densities.logsumexp(0) - math.log(2))
    if alone[0].expected_entropy is not None:
        assert_close(p.expected_entropy, torch.stack([each.expected_entropy for each in alone]).mean(0))


@cases("row", KINDS)
def test_entropies_are_those_of_the_mean_or_of_the_normal_with_the_moments(row):
    outputs, likelihoods, _ = row
    alone, p, _ = alone_and_together(outputs, likelihoods)
    entropy = {
        Categorical: lambda: td.Categorical(p.mean).entropy(),
        Bernoulli: lambda: td.Bernoulli(p.mean).entropy(),
        StudentT: lambda: None,
        Poisson: lambda: None,
    }.get(type(likelihoods[0]), lambda: td.Normal(p.mean, p.variance.sqrt()).entropy())()
    if entropy is None:
        assert p.predictive_entropy is p.mutual_information is None
        return
    assert_close(p.predictive_entropy, entropy)
    assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
    assert (p.mutual_information > torch.stack([each.mutual_information for each in alone]).mean(0)).all()


@pytest.mark.parametrize("unit", [1e20, 1e-25])
@pytest.mark.parametrize(
    "kind", [Gaussian, lambda scale: Standardized(Gaussian(), *torch.tensor([3 * scale, scale]).float())]
)
def test_entropies_change_with_the_unit_by_its_logarithm(kind, unit):
    """The variance is no number of float32 then."""
    outputs = [torch.randn(S, 7, 2, generator=torch.Generator().manual_seed(k)).float() for k in range(2)]

    def predicted(unit):
        mixture = Mixture([kind(0.4 * unit), kind(0.7 * unit)])
        size = unit if kind is Gaussian else 1.0
        return mixture.prediction(mixture.joined([each * size for each in outputs]))

    small, large = predicted(1.0), predicted(unit)
    assert large.predictive_entropy.dtype == torch.float32
    assert_close(large.predictive_entropy, small.predictive_entropy + math.log(unit))
    assert_close(large.expected_entropy, small.expected_entropy + math.log(unit))
    torch.testing.assert_close(large.mutual_information, small.mutual_information, rtol=0, atol=2e-5)


@cases("row", KINDS)
def test_samples_have_the_moments_of_the_mixture(row):
    outputs, likelihoods, _ = row
    _, p, _ = alone_and_together(outputs, likelihoods)
    if isinstance(likelihoods[0], Categorical):
        counts = nn.functional.one_hot(p.sample(20_000), 3).double().mean(0)
        assert ((counts - p.mean).abs() / (p.mean * (1 - p.mean) / 20_000).sqrt()).max() < 5
        return
    found = p.sample(20_000).double()
    variance = p.mean * (1 - p.mean) if isinstance(likelihoods[0], Bernoulli) else p.variance
    assert ((found.mean(0) - p.mean).abs() / (variance / 20_000).sqrt()).max() < 5


def test_one_factor_calibrates_all_likelihoods():
    outputs, likelihoods, y = KINDS["gaussian"]
    _, p, models = alone_and_together(outputs, likelihoods)
    before = p.log_prob(y).sum()
    factor = p.likelihood.calibrate_(p.draws, 5 * y, spread=9.0)  # targets five times as far off
    assert factor > 1.5
    torch.manual_seed(9)
    wide = predict(models, X, S, [wider(each, factor) for each in likelihoods])
    assert_close(p.log_prob(y), wide.log_prob(y))
    assert p.log_prob(y).sum() != before


@pytest.mark.parametrize("likelihood", ["categorical", Categorical()], ids=["name", "object"])
def test_one_likelihood_is_that_of_all_models(likelihood):
    models = [layer(3, k) for k in range(3)]
    torch.manual_seed(9)
    p = predict(models, X, S, likelihood)
    assert p.draws.shape == (3 * S, 7, 3)
    torch.manual_seed(9)
    assert_close(p.mean, torch.stack([predict(each, X, S).mean for each in models]).mean(0))
    assert p.sample(2).shape == (2, 7)


def test_a_list_of_one_model_is_the_model():
    model = layer(2, 0)
    with mnvi.frozen_sample(model):
        for models, likelihood in (([model], [Gaussian(0.3)]), (model, [Gaussian(0.3)]), ([model], Gaussian(0.3))):
            p = predict(models, X, S, likelihood)
            assert_close(p.mean, predict(model, X, S, Gaussian(0.3)).mean)
            assert isinstance(p.likelihood, Gaussian)


def test_plain_networks_know_what_they_disagree_about():
    torch.manual_seed(0)
    models = nn.ModuleList([nn.Linear(4, 3) for _ in range(4)])
    p = predict(models, X, 1)  # without the warning that all draws are equal
    assert_close(p.mean, torch.stack([model(X).detach().softmax(-1) for model in models]).mean(0))
    assert (p.mutual_information > 0).all()


@pytest.mark.parametrize("keep", [True, False])
def test_a_loader_gives_every_batch_to_all(keep):
    outputs, likelihoods, y = KINDS["gaussian"]
    models = [layer(outputs, k) for k in range(2)]
    with mnvi.frozen_sample(models[0]), mnvi.frozen_sample(models[1]):
        whole = predict(models, X, S, likelihoods)
        p = predict(models, DataLoader(TensorDataset(X, y), 3), S, likelihoods, keep_draws=keep)
    assert_close(p.mean, whole.mean)
    assert_close(p.variance, whole.variance)
    assert_close(p.log_prob(), whole.log_prob(y))
    assert torch.equal(p.target, y)


def test_models_and_likelihoods_stay_as_they_were_and_the_prediction_as_it_is():
    outputs, likelihoods, y = KINDS["gaussian"]
    likelihoods = copy.deepcopy(likelihoods)
    models = [layer(outputs, k).train() for k in range(2)]
    models[1].eval()
    p = predict(models, X, S, likelihoods)
    before = p.log_prob(y)
    assert [each.training for each in models] == [True, False]
    with torch.no_grad():
        likelihoods[0].log_scale.fill_(3.0)
    assert torch.equal(p.log_prob(y), before)
    assert torch.equal(copy.deepcopy(p).log_prob(y), before)
    assert likelihoods[0].log_scale.requires_grad
    assert not before.requires_grad


@pytest.mark.filterwarnings("ignore:the (KL|posterior)")  # two epochs
def test_what_fit_returns_for_several_models_goes_in():
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = 100 + 10 * x[:, :1]
    models = [mnvi.Sequential(mnvi.MNLinear(4, 8), nn.ReLU(), mnvi.MNLinear(8, 1)) for _ in range(2)]
    history = mnvi.fit(models, (x, y), "gaussian", epochs=5, kl_weight=1.0)
    p = predict(models, x, 8, history.likelihood)
    assert 90 < p.mean.mean() < 110
    assert p.log_prob(y).shape == (60,)
    assert "Mixture" not in repr(p)


MODELS = [layer(2, 0), layer(2, 1)]
WRONG = {  # models, likelihood, options, error, message
    "none": (
        [],
        "categorical",
        {},
        TypeError,
        "model must be a torch.nn.Module or a list of them, got a list of nothing",
    ),
    "others": ([MODELS[0], 3], "categorical", {}, TypeError, "got a list of MNLinear, int$"),
    "text": ("model", "categorical", {}, TypeError, "got 'model' of type str"),
    "classes": ([mnvi.MNLinear], "categorical", {}, TypeError, "got a list of type"),
    "too few": (MODELS, [Gaussian()], {}, ValueError, "as many likelihoods as models are needed, or one; got 1 for 2"),
    "too many": (MODELS[0], [Gaussian()] * 2, {}, ValueError, "got 2 for 1"),
    "kinds": (MODELS, [Gaussian(), StudentT()], {}, ValueError, "must be of one kind, got Gaussian, StudentT"),
    "inner kinds": (
        MODELS,
        [Standardized(Gaussian(), 0.0, 1.0), Standardized(StudentT(), 0.0, 1.0)],
        {},
        ValueError,
        r"of one kind, got Standardized\(Gaussian\), Standardized\(StudentT\)",
    ),
    "noise": (MODELS, [Gaussian()] * 2, {"noise_scale": 0.1}, ValueError, "noise_scale"),
    "no likelihood": (MODELS, [Gaussian(), MODELS[0]], {}, ValueError, "likelihood must be .*, got MNLinear$"),
    "shapes": (
        [MODELS[0], layer(3, 1)],
        Gaussian(1.0),
        {},
        ValueError,
        r"must have one shape; model 0 returns \(7, 2\), model 1 \(7, 3\)",
    ),
}


@cases("row", WRONG)
def test_what_does_not_go_together_is_refused_in_few_words(row):
    models, likelihood, options, error, message = row
    with pytest.raises(error, match=message) as caught:
        predict(models, X, 2, likelihood, **options)
    assert len(str(caught.value)) < 300
    if isinstance(models, list):
        assert all(each.training for each in models if isinstance(each, nn.Module))
