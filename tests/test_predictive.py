"""Predictions through every kind of input, output and loader; the likelihoods themselves are in test_likelihoods.py."""

import copy
import dataclasses
import math
import pickle
import time
from collections import deque
from typing import Any

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import mnvi
import mnvi._draws
from mnvi import MNConv2d, MNLinear, Prediction, frozen_sample, predict, to_bayesian
from mnvi._models.trained_likelihoods import remember_likelihood
from mnvi._progress import Progress
from mnvi.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Standardized, StudentT
from mnvi.posteriors import MatrixNormal
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, dense_covariance, randomise
from tests.models import X, draws, mlp

pytestmark = pytest.mark.usefixtures("float64")

IMAGES = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Around(nn.Module):
    """A layer of the input, or of a part of it, with its output put into a structure."""

    def __init__(self, layer, read=lambda x: x, wrap=lambda y: y):
        super().__init__()
        self.layer, self.read, self.wrap = layer, read, wrap

    def forward(self, *args, **named):
        return self.wrap(self.layer(self.read(*args, **named)))


def layer(outputs):
    torch.manual_seed(0)
    return randomise(MNLinear(4, outputs, posterior=MatrixNormal()))


# Outputs --------------------------------------------------------------------------------------------------------------


def test_a_network_of_one_logit_is_a_bernoulli():
    """p = E[σ(z)], z ~ N(m, v), against quadrature; entropy and information are not 0."""
    model = layer(1)
    p = predict(model, X, 4000, Bernoulli())
    maps = X @ model.weight.detach().mT + model.bias.detach()
    variance = torch.einsum("ni,ij,nj->n", X, dense_covariance(model.posterior).detach(), X)
    grid = torch.linspace(-9, 9, 4001)
    logits = maps + variance.sqrt()[:, None] * grid
    density = td.Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
    exact = (logits.sigmoid() * density).sum(-1)
    error = (((logits.sigmoid() - exact[:, None]).square() * density).sum(-1) / 4000).sqrt()
    assert ((p.mean[:, 0] - exact).abs() / error).max() < 5
    assert_close(p.predictive_entropy, td.Bernoulli(p.mean).entropy())
    assert (p.mutual_information > 0).all()
    with pytest.raises(ValueError, match="Bernoulli"):
        predict(model, X, 4)


def test_outputs_of_one_dimension_are_examples_not_classes():
    model = Around(layer(1), wrap=lambda y: y.squeeze(-1))
    torch.manual_seed(7)
    p = predict(model, X, 16, "bernoulli")
    torch.manual_seed(7)
    assert_close(p.mean, predict(model.layer, X, 16, "bernoulli").mean[:, 0])
    assert p.mean.shape == p.log_prob(torch.ones(7)).shape == p.predictive_entropy.shape == (7,)
    assert_close(p.log_prob(torch.ones(7)), p.mean.log())
    with pytest.raises(ValueError, match=r"\(7,\)"):
        predict(model, X, 4)


def test_images_have_their_classes_in_dimension_one():
    model = randomise(MNConv2d(3, 6, 3, padding=1, posterior=MatrixNormal()), 0.2)
    with pytest.raises(ValueError, match=r"Categorical\(dim=1\)"):
        predict(model, IMAGES, 4)
    p = predict(model, IMAGES, 8, Categorical(dim=1))
    assert p.mean.shape == (2, 6, 4, 5)
    assert_close(p.mean.sum(1), torch.ones(2, 4, 5))
    assert_close(p.mean, p.draws.softmax(2).mean(0))
    assert p.predictive_entropy.shape == (2, 4, 5)
    labels = torch.randint(6, (2, 4, 5))
    of_draws = td.Categorical(logits=p.draws.movedim(2, -1)).log_prob(labels).sum((-1, -2))
    assert_close(p.log_prob(labels), of_draws.logsumexp(0) - math.log(8))
    assert p.sample(3).shape == (3, 2, 4, 5)


def test_a_tuple_of_mean_and_log_variance():
    model = Around(layer(4), wrap=lambda y: (y[:, :2], y[:, 2:]))
    p = predict(model, X, 8, HeteroscedasticGaussian(log_variance=True))
    assert p.draws is not None
    mean, log_variance = p.draws
    assert mean.shape == log_variance.shape == (8, 7, 2)
    assert_close(p.mean, mean.mean(0))
    assert_close(p.variance, log_variance.exp().mean(0) + mean.var(0, correction=0))
    assert (p.mutual_information > 0).all()
    with pytest.raises(TypeError, match=r"tuple of a tensor of shape \(7, 2\)"):
        predict(model, X, 8)


@dataclasses.dataclass
class ModelOutput:
    logits: torch.Tensor
    cache: object = None


class DictOutput(dict):
    logits = property(lambda self: self["logits"])


@pytest.mark.parametrize("wrap", [ModelOutput, lambda y: DictOutput(loss=None, logits=y), lambda y: {"logits": y}])
def test_outputs_with_logits(wrap):
    model = Around(layer(3), wrap=wrap)
    torch.manual_seed(7)
    p = predict(model, X, 8)
    torch.manual_seed(7)
    assert_close(p.mean, predict(model.layer, X, 8).mean)


# Inputs ---------------------------------------------------------------------------------------------------------------

CALLS = {
    "tuple": (lambda a, b: a + b, (X, 2 * X)),
    "tuple of one": (lambda a: 3 * a, (X,)),
    "dict": (lambda a, *, b: a + b, {"a": X, "b": 2 * X}),
    "dict with labels": (lambda a, labels: a * labels, {"a": X, "labels": 3}),
    "tuple with an object": (lambda a, how: a * how["factor"], (X, {"factor": 3})),
}


@cases("row", CALLS)
def test_structures_are_the_arguments_of_the_model(row):
    read, x = row
    model = Around(layer(3), read)
    torch.manual_seed(7)
    p = predict(model, x, 8)
    torch.manual_seed(7)
    assert_close(p.mean, predict(model.layer, 3 * X, 8).mean)


def test_a_named_tuple_is_one_argument():
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3]))
    model = Around(layer(3), lambda sequence: sequence.data)
    assert predict(model, packed, 2).mean.shape == (8, 3)
    assert predict(model, DataLoader(Plain([(packed,)]), batch_size=None), 2).mean.shape == (8, 3)


@pytest.mark.parametrize("x", [[X], X.numpy(), None, "x"], ids=["list", "numpy", "none", "text"])
def test_other_inputs_are_refused(x):
    with pytest.raises(
        TypeError, match="x must be a tensor, a tuple or dict of the model's arguments, or a DataLoader"
    ):
        predict(layer(3), x, 2)


def test_a_mistake_in_the_model_is_shown_before_a_draw():
    calls = []

    def fail(x):
        calls.append(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        predict(Around(layer(3), fail), X, 5)
    assert calls == [1]


def test_the_first_look_at_the_output_draws_nothing():
    model = Around(layer(3))
    seen = []
    model.layer.register_forward_hook(lambda module, args, output: seen.append((module.is_sampling, module.training)))
    predict(model.train(), X, 4, chunk_size=2)
    assert seen == [(False, False), (True, False), (True, False)]


# Loaders --------------------------------------------------------------------------------------------------------------

Y = torch.arange(7) % 3


class Dicts(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"a": X[i], "b": 2 * X[i], "labels": Y[i]}


class Plain(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(x, y) for x, y in zip(X, Y, strict=True)])


LOADERS = {
    "x": (lambda x: 3 * x, Plain(list(X)), False),
    "[x]": (lambda x: 3 * x, TensorDataset(X), False),
    "[x, y]": (lambda x: 3 * x, TensorDataset(X, Y), True),
    "stream": (lambda x: 3 * x, Stream(), True),
    "dict": (lambda a, b: a + b, Dicts(), True),
    "((a, b), y)": (lambda a, b: a + b, Plain([((x, 2 * x), y) for x, y in zip(X, Y, strict=True)]), True),
    "({a, b}, y)": (lambda a, b: a + b, Plain([({"a": x, "b": 2 * x}, y) for x, y in zip(X, Y, strict=True)]), True),
    "(x, name)": (lambda x: 3 * x, Plain([(x, "name") for x in X]), False),
}


@cases("row", LOADERS)
def test_a_loader_is_one_large_tensor(row):
    """Within a frozen sample every draw is one function, so that both must agree exactly."""
    read, data, targets = row
    model = Around(layer(3), read)
    with mnvi.frozen_sample(model):
        p = predict(model, DataLoader(data, batch_size=3), 4)
        whole = predict(model.layer, 3 * X, 4)
        for field in ("mean", "variance", "predictive_entropy", "expected_entropy", "mutual_information", "draws"):
            assert_close(getattr(p, field), getattr(whole, field))
        assert_close(p.log_prob(Y), whole.log_prob(Y))
        if targets:
            assert torch.equal(p.target, Y)
            assert_close(p.log_prob(), whole.log_prob(Y))
        else:
            assert p.target is None
            with pytest.raises(ValueError, match="no targets"):
                p.log_prob()


def test_a_loader_has_the_distribution_of_one_large_tensor():
    model, count = layer(3), 3000
    loader = DataLoader(TensorDataset(X), batch_size=3)
    parts = predict(model, loader, count, "gaussian"), predict(model, X, count, "gaussian")
    error = ((parts[0].variance + parts[1].variance) / count).sqrt()
    assert ((parts[0].mean - parts[1].mean).abs() / error).max() < 5
    spread = (2 / count) ** 0.5 * (parts[0].variance.square() + parts[1].variance.square()).sqrt()
    assert ((parts[0].variance - parts[1].variance).abs() / spread).max() < 5


def test_a_pair_of_outputs_goes_through_a_loader():
    model = Around(layer(4), wrap=lambda y: (y[:, :2], y[:, 2:]))
    y = torch.randn(7, 2)
    with mnvi.frozen_sample(model):
        p = predict(model, DataLoader(TensorDataset(X, y), 3), 4, HeteroscedasticGaussian())
        assert_close(p.log_prob(), predict(model, X, 4, HeteroscedasticGaussian()).log_prob(y))
    assert p.draws is not None
    assert [tuple(each.shape) for each in p.draws] == [(4, 7, 2), (4, 7, 2)]


def test_the_model_sees_one_batch_and_one_chunk_at_a_time():
    model = Around(layer(3))
    rows = []
    model.layer.register_forward_hook(lambda module, args, output: rows.append((len(args[0]), module.is_sampling)))
    predict(model, DataLoader(TensorDataset(X), 3), 4, chunk_size=2)
    assert rows == [(3, False), (3, True), (3, True), (3, True), (3, True), (1, True), (1, True)]


def test_without_draws_a_prediction_is_as_large_as_one_output():
    model = layer(3)
    loader = DataLoader(TensorDataset(X, Y), 3)
    with mnvi.frozen_sample(model):
        small, full = (predict(model, loader, 50, keep_draws=keep) for keep in (False, True))
    held = [value for value in vars(small).values() if isinstance(value, torch.Tensor)]
    assert max(value.numel() for value in held) == 7 * 3
    assert small.draws is None
    assert_close(small.mean, full.mean)
    assert_close(small.log_prob(), full.log_prob())
    for use in (lambda: small.log_prob(Y), small.sample):
        with pytest.raises(ValueError, match="keep_draws=True"):
            use()


def test_noise_free_functions_go_without_draws_too():
    p = predict(layer(3), DataLoader(TensorDataset(X, torch.zeros(7, 3)), 3), 5, "gaussian", keep_draws=False)
    assert p.mean.shape == p.target.shape == (7, 3)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("estimator", ["weight", "local"])
def test_drawn_kernels_of_convolutions_run_one_after_the_other(kind, estimator):
    """On a CPU vmap would make grouped convolutions of them, which are slower; everything else is batched."""
    options: Any = {"estimator": estimator, "posterior": MatrixNormal()}
    layer = MNConv2d(3, 8, 4, **options) if kind == "conv" else MNLinear(48, 8, **options)
    calls = []
    model = Around(nn.Sequential(layer, nn.Flatten()), wrap=lambda y: calls.append(1) or y)
    p = predict(model, torch.randn(7, 3, 4, 4) if kind == "conv" else torch.randn(7, 48), 5)
    assert len(calls) == 1 + (5 if (kind, estimator) == ("conv", "weight") else 1)  # the mean first
    assert p.draws.shape == (5, 7, 8)
    assert p.draws.unique(dim=0).shape[0] == 5


def test_a_model_that_vmap_cannot_follow_is_tried_once():
    class Branching(Around):
        def forward(self, x):
            self.wrap(x)
            y = self.layer(x)
            return y if y.sum() > 0 else 0 + y

    calls = []
    model = Branching(layer(3), wrap=lambda _: calls.append(1))
    p = predict(model, DataLoader(TensorDataset(X), 3), 4)
    assert len(calls) == 1 + 1 + 3 * 4
    assert (p.mutual_information > 0).all()


def test_loaders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a batch must be.*list of a tensor of shape \(3, 4\)"):
        predict(layer(3), DataLoader(TensorDataset(X, X, Y), 3), 2)
    with pytest.raises(ValueError, match="no batches"):
        predict(layer(3), DataLoader(TensorDataset(X[:0]), 3), 2)
    ragged = DataLoader(Plain([torch.randn(length, 4) for length in (2, 3)]), batch_size=None)
    assert predict(layer(3), ragged, 2).mean.shape == (5, 3)
    ragged = DataLoader(Plain([torch.randn(1, length, 4) for length in (2, 3)]), batch_size=None)
    with pytest.raises(ValueError, match="cannot be joined"):
        predict(layer(3), ragged, 2)


def test_a_loader_that_fails_leaves_the_model_as_it_was():
    model = Around(layer(3)).train()
    with pytest.raises(ValueError, match="a batch must be"):
        predict(model, DataLoader(TensorDataset(X, X, Y), 3), 2)
    assert model.training
    assert model.layer.training
    assert not model.layer.eval().is_sampling


# The density of the mixture -------------------------------------------------------------------------------------------


def test_log_prob_converges_to_the_exact_predictive_density():
    """Of a linear model it is N(y; m, v + noise²), the mean of a conjugate posterior."""
    model, noise, count = layer(1), 0.8, 20_000
    y = torch.randn(7, 1)
    p = predict(model, X, count, Gaussian(noise))
    mean = X @ model.weight.detach().mT + model.bias.detach()
    variance = torch.einsum("ni,ij,nj->n", X, dense_covariance(model.posterior).detach(), X)[:, None]
    exact = td.Normal(mean, (variance + noise**2).sqrt()).log_prob(y)[:, 0]
    density = td.Normal(p.draws, noise).log_prob(y)[..., 0].exp()
    error = density.std(0) / count**0.5
    assert ((p.log_prob(y).exp() - exact.exp()).abs() / error).max() < 5


def test_a_prediction_keeps_its_likelihood_when_training_goes_on():
    likelihood = Gaussian()
    p = predict(layer(2), X, 4, likelihood)
    y = torch.randn(7, 2)
    before = p.log_prob(y)
    with torch.no_grad():
        likelihood.log_scale.fill_(3.0)
    assert torch.equal(p.log_prob(y), before)
    assert likelihood.log_scale.requires_grad
    assert not p.log_prob(y).requires_grad


def test_a_prediction_is_public_and_copies():
    p = predict(layer(3), X, 4)
    assert isinstance(p, Prediction)
    assert torch.equal(copy.deepcopy(p).log_prob(Y), p.log_prob(Y))
    assert repr(p).startswith("Prediction(mean: (7, 3), variance: (7, 3), predictive_entropy: (7,)")


SHORT = {
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(0.0),
    "heteroscedastic_gaussian": HeteroscedasticGaussian(),
    "poisson": Poisson(),
}


@pytest.mark.parametrize("name", list(SHORT))
def test_short_names_are_likelihoods_without_parameters(name):
    model = layer(4)
    with mnvi.frozen_sample(model):
        short, long = predict(model, X, 3, name), predict(model, X, 3, SHORT[name])
    assert_close(short.mean, long.mean)
    assert_close(short.variance, long.variance)


def test_noise_scale_is_the_scale_of_a_gaussian():
    model, y = layer(2), torch.randn(7, 2)
    with mnvi.frozen_sample(model):
        short, long = predict(model, X, 3, "gaussian", noise_scale=0.3), predict(model, X, 3, Gaussian(0.3))
    assert_close(short.variance, long.variance)
    assert_close(short.log_prob(y), long.log_prob(y))


@pytest.mark.parametrize("name", ["gaussian", "heteroscedastic_gaussian"])
def test_a_short_name_after_a_training_with_units_is_warned_of(name):
    model, trained = layer(2), Standardized(Gaussian(), 0.0, 2.0)
    remember_likelihood(model, trained)
    with pytest.warns(UserWarning, match=f"trained with Standardized, and '{name}' .*history.likelihood") as caught:
        predict(model, X, 3, name)
    assert caught[0].filename == __file__
    predict(model, X, 3, trained)  # nor of what says how much noise there is, nor of another model
    predict(model, X, 3, "gaussian", noise_scale=0.1)
    predict(layer(2), X, 3, name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.warns(UserWarning, match=r"history\.likelihood has them"):
            predict(twin, X, 3, name)


@pytest.mark.parametrize("row", [(Standardized(Gaussian(), 0.0, 2.0), "categorical"), (Poisson(), "bernoulli")])
def test_a_short_name_of_another_kind_than_the_training_had_is_warned_of(row):
    model, (trained, name) = layer(2), row
    remember_likelihood(model, trained)
    with pytest.warns(UserWarning, match=f"with {type(trained).__name__}, and '{name}' takes .*history.likelihood"):
        predict(model, X, 3, name)
    remember_likelihood(model, SHORT[name])
    predict(model, X, 3, name)


def test_a_history_is_no_likelihood_but_has_one():
    history = mnvi.History(Gaussian(), 1.0, 2, 1.0, 0.0, 1.0, [], [{"nll": 1.0, "kl": 0.0}])
    with pytest.raises(ValueError, match=r"got History.*; what a History has is history\.likelihood"):
        predict(layer(2), X, 3, history)


def test_of_a_pair_with_targets_it_is_said_that_the_model_takes_one():
    with pytest.raises(ValueError, match="which takes the first alone: give that, without targets"):
        predict(layer(2), (X, torch.zeros(7)), 3)


def tensors(prediction):
    """All tensors of a prediction and of its likelihood."""
    values = [*vars(prediction).values(), *prediction.likelihood.state_dict(keep_vars=True).values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def test_predictions_require_no_grad_even_where_the_noise_does():
    noise = nn.Parameter(torch.tensor(-1.0))
    p = predict(layer(2), X, 3, "gaussian", noise_scale=noise.exp())
    learnt = predict(layer(2), X, 3, Standardized(Gaussian(), 0.0, 2.0))
    assert not any(value.requires_grad for value in (*tensors(p), *tensors(learnt)))
    assert_close(p.likelihood.scale, noise.detach().exp())


def test_predictions_require_no_grad_even_where_the_model_switches_gradients_on():
    class WithGradients(Around):
        def forward(self, x):
            with torch.enable_grad():
                return self.layer(x)

    p = predict(WithGradients(layer(2)), X, 3, Gaussian(0.5))
    assert not any(value.requires_grad for value in tensors(p))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="x has no examples"):
        predict(layer(2), X[:0], 3)


def images():
    """Takes images (N, 1, 4, 4)."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), MNLinear(8, 3))


REAL_NUMBERS = torch.ones(5, 4)
UNFIT = {  # model, inputs, what the message says
    "double": (mlp, REAL_NUMBERS.double(), r"\(5, 4\) of torch.float64, .* are torch.float32: x.float\(\) fits"),
    "double images": (images, torch.ones(2, 1, 4, 4).double(), r"x.float\(\) fits"),
    "float": (lambda: mlp().double(), REAL_NUMBERS, r"are torch.float64: x.to\(torch.float64\) fits"),
    "integers": (mlp, REAL_NUMBERS.long(), r"of torch.int64, .*x.float\(\) fits"),
    "double argument": (lambda: Around(mlp(), lambda a: a), {"a": REAL_NUMBERS.double()}, r"x.float\(\) fits"),
    "one image": (images, torch.ones(1, 4, 4), r"takes? .*\(1, 4, 4\); a single example x is a batch as x\[None\]"),
    "one vector of classes": (mlp, REAL_NUMBERS[0], r"a single example x is a batch as x\[None\]"),
    "other width": (
        lambda: nn.Sequential(nn.Linear(3, 4), mlp()),
        REAL_NUMBERS,
        r"the model does not take a tensor of shape \(5, 4\) \(mat1",
    ),
}


@cases("row", UNFIT)
def test_what_makes_inputs_fit_is_said(row):
    build, x, message = row
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with pytest.raises(ValueError, match=message):
            predict(build(), x, 2)
    finally:
        torch.set_default_dtype(previous)


def test_one_vector_without_batch_is_not_taken_for_as_many_examples_as_it_has_outputs():
    with pytest.raises(
        ValueError, match=r"must count examples, got .*\(4,\); a single example x is a batch as x\[None\]"
    ):
        predict(layer(2), X[0], 3, Gaussian(1.0))
    numbers = Around(layer(2), lambda x: x[..., None].expand(*x.shape, 4))  # here it is examples of one number each
    assert predict(numbers, X[0], 3, Gaussian(1.0)).mean.shape == (4, 2)


def spoiled(row, value=math.nan):
    x = X.clone()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(("value", "row"), [(math.nan, 2), (math.inf, 0), (-math.inf, 6)])
def test_inputs_that_are_not_finite_are_refused_with_their_rows(value, row):
    model = randomise(mlp())
    for x in (spoiled(row, value), (spoiled(row, value),), DataLoader(TensorDataset(spoiled(row, value), Y), 7)):
        with pytest.raises(ValueError, match=rf"x, .*\(7, 4\), has NaN or infinite entries at row {row}, and so has"):
            predict(model, x, 2)
    model = Around(model, lambda a, b: a + b)
    with pytest.raises(ValueError, match=rf"x\['b'\], .* at row {row}" if value != value else "x"):
        predict(model, {"a": X, "b": spoiled(row)} if value != value else (spoiled(row), X), 2)


def test_a_later_batch_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="at row 1, and so has the prediction"):
        predict(randomise(mlp()), DataLoader(TensorDataset(spoiled(4)), 3), 2)


def test_a_model_that_takes_missing_values_or_infinite_masks_predicts():
    filling = Around(layer(3), torch.nan_to_num)
    assert predict(filling, spoiled(2), 3).mean.isfinite().all()
    masked = Around(layer(3), lambda x, mask: x * mask.softmax(-1))
    mask = torch.zeros(7, 4)
    mask[3] = -math.inf  # NaN in row 3, as attention to nothing is
    assert predict(masked, (X, mask), 3).mean.isnan().any(1).tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("loader", [False, True])
def test_a_model_without_posterior_is_said_once_with_what_helps(loader):
    x = DataLoader(TensorDataset(X), 3) if loader else X
    with pytest.warns(UserWarning, match="all draws are equal.*does not know; mnvi.to_bayesian converts") as caught:
        predict(nn.Linear(4, 3), x, 3)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("inner", [Gaussian(0.3), StudentT(5.0, 0.3)], ids=["gaussian", "student-t"])
def test_a_model_of_standardised_targets_predicts_in_their_units(inner):
    model = layer(2)
    center, std = torch.tensor([100.0, -5.0]), torch.tensor([20.0, 0.1])
    y = center + std * torch.randn(7, 2)
    with mnvi.frozen_sample(model):
        plain, units = predict(model, X, 3, inner), predict(model, X, 3, Standardized(inner, center, std))
    assert_close(units.mean, center + std * plain.mean)
    assert_close(units.variance, std.square() * plain.variance)
    assert_close(units.log_prob(y), plain.log_prob((y - center) / std) - std.log().sum())


def test_poisson_predictions_have_the_variance_of_the_mixture():
    p = predict(layer(2), X, 50, "poisson")
    rate = p.draws.exp()
    assert_close(p.mean, rate.mean(0))
    assert_close(p.variance, rate.mean(0) + rate.var(0, correction=0))
    assert p.mutual_information is None


# Progress -------------------------------------------------------------------------------------------------------------


def test_what_is_quick_is_silent(capsys):
    predict(layer(3), DataLoader(TensorDataset(X), 3), 4)
    assert capsys.readouterr().err == ""


def test_what_takes_long_says_how_far_it_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(x):
        now[0] += 1.0
        return x

    predict(Around(layer(3), slow), DataLoader(TensorDataset(X), 3), 4)
    lines = capsys.readouterr().err.split("\r")
    assert lines[1].startswith("predict: 4/12 in 2 s, 4 s left")
    assert lines[-1].startswith("predict: 12/12 in 4 s, 0 s left")
    assert lines[-1].endswith("\n")


def test_progress_without_an_end_counts(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("predict", None) as progress:
        now[0] = 3.0
        progress.advance(5)
    assert "predict: 5 in 3 s" in capsys.readouterr().err


class Keeping(nn.Module):
    """Keeps what it computes: as an attribute, as a buffer, and in containers old and new."""

    def __init__(self):
        super().__init__()
        self.layer = mnvi.MNLinear(4, 3)
        self.last = None
        self.register_buffer("running", torch.zeros(()))
        self.named: dict[str, Any] = {"calls": 0}
        self.listed, self.recent, self.nested = [], deque(maxlen=2), ([], {})

    def forward(self, x):
        self.last = self.layer(x)
        self.running = 0.9 * self.running + 0.1 * self.last.mean()
        self.new, self.named["y"] = [{"y": self.last}], (self.last,)
        self.named["calls"] += 1
        self.listed.append(self.last)
        self.recent.append(self.last)
        self.nested[0].append(self.last)
        self.nested[1]["y"] = self.last
        return self.last


def test_draws_leave_nothing_behind_in_the_model():
    model = Keeping()
    predict(model, X, 4)
    copy.deepcopy(model)
    assert model.last.sum().isfinite()
    assert model.state_dict()["running"].isfinite()
    [inner], mapping = model.nested
    found = [model.new[0]["y"], *model.named["y"], *model.listed, *model.recent, inner, mapping["y"]]
    assert all(torch.equal(each, model.last) for each in found)  # of the call before the draws
    assert model.named["calls"] > 1  # what is no tensor stays


# Modes ----------------------------------------------------------------------------------------------------------------


# Prediction -----------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """The same function as its layer, with a branch on the data that vmap cannot follow."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x):
        self.calls += 1
        y = self.layer(x)
        return y if y.sum() > 0 else 0 + y


class Counting(Branching):
    def forward(self, x):
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"num_samples": 1}])
@cases("family", SOME_FAMILIES)
def test_categorical_prediction(family, options):
    p = predict(randomise(mlp(posterior=family)), X, **options)
    assert p.mean.shape == p.variance.shape == (7, 3)
    assert p.predictive_entropy.shape == p.expected_entropy.shape == p.mutual_information.shape == (7,)
    assert p.probs is p.mean
    assert_close(p.mean.sum(-1), torch.ones(7))
    assert_close(p.predictive_entropy, td.Categorical(p.mean).entropy())
    assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
    assert (p.mutual_information >= 0).all()
    assert (p.variance >= 0).all()
    assert not p.mean.requires_grad
    if options.get("num_samples") == 1:
        assert not p.variance.any()
        assert_close(p.mutual_information, torch.zeros(7))
    else:
        assert (p.mutual_information > 0).all()


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_a_plain_model_has_no_epistemic_uncertainty():
    model = nn.Linear(4, 3)
    p = predict(model, X)
    expected = td.Categorical(logits=model(X))
    assert_close(p.mean, expected.probs)
    assert_close(p.expected_entropy, expected.entropy())
    assert_close(p.mutual_information, torch.zeros(7))
    assert_close(p.variance, torch.zeros(7, 3))


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_extreme_logits_give_finite_entropies():
    model = nn.Linear(4, 3).requires_grad_(False)
    model.weight.mul_(1e6)
    p = predict(model, X, 4)
    assert p.predictive_entropy.isfinite().all()
    assert p.mutual_information.isfinite().all()


def exact_moments(layer, x):
    """Mean and variance of layer(x) over the posterior, from the dense covariance of its weight."""
    maps = torch.stack([torch.kron(torch.eye(layer.out_features), row) for row in x])
    variance = (maps @ dense_covariance(layer.posterior) * maps).sum(-1)
    return copy.deepcopy(layer).eval()(x).detach(), variance.detach()


@pytest.mark.parametrize("noise", [0.0, 0.7, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("wrapper", [Counting, Branching])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_gaussian_prediction_has_the_analytic_mean_and_variance(wrapper, estimator, noise):
    """Batched by vmap, and by a loop where the model branches: the same moments (z-scores)."""
    model = wrapper(randomise(MNLinear(4, 3, estimator=estimator)))
    count = 1000
    p = predict(model, X, count, "gaussian", noise_scale=noise)
    mean, variance = exact_moments(model.layer, X)
    assert ((p.mean - mean).abs() / (variance / count).sqrt()).max() < 5
    noise = torch.as_tensor(noise)
    assert ((p.variance - variance - noise**2).abs() / (variance * (2 / count) ** 0.5)).max() < 5
    assert model.calls == 1 + (1 if wrapper is Counting else count + 1)  # the mean first; then a try of vmap
    assert_close(p.predictive_entropy, td.Normal(p.mean, p.variance.sqrt()).entropy())
    if noise.min() > 0:
        assert_close(p.expected_entropy, td.Normal(p.mean, noise.expand(7, 3)).entropy())
        assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
        assert (p.mutual_information > 0).all()
    else:
        assert (p.expected_entropy == -torch.inf).all()


def test_chunks_bound_what_is_drawn_at_a_time():
    model = Counting(randomise(mlp()))
    predict(model, X, 10, chunk_size=4)
    assert model.calls == 1 + 3


def test_by_default_the_numbers_of_a_chunk_are_bounded(monkeypatch):
    """A draw holds 7·4 inputs, 7·6 and 7·3 outputs of layers, and the 7·3 outputs: 112 numbers."""
    model = Counting(randomise(mnvi.Sequential(MNLinear(4, 6), nn.ReLU(), MNLinear(6, 3))))
    sizes = []
    monkeypatch.setattr(Progress, "advance", lambda self, count: sizes.append(count))
    monkeypatch.setattr(mnvi._draws, "NUMBERS", 4 * 112 + 111)
    assert predict(model, X, 10).draws.shape == (10, 7, 3)
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(mnvi._draws, "NUMBERS", 1)
    predict(model, X, 2)
    assert sizes == [4, 4, 2, 1, 1]  # at least one at a time


def test_a_small_prediction_is_one_chunk():
    model = Counting(randomise(mlp()))
    predict(model, X, 1000)
    assert model.calls == 1 + 1


@pytest.mark.parametrize("wrapper", [Counting, Branching])
def test_prediction_leaves_the_model_as_it_was(wrapper):
    model = wrapper(mnvi.Sequential(MNLinear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), MNLinear(6, 3)))
    model.layer[1].eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    predict(model, X, 5)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(ValueError):
        predict(model, X[:, :3], 5)
    assert [m.training for m in model.modules()] == modes
    assert draws(model)
    assert not draws(model.eval())


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_dropout_is_off_in_prediction():
    p = predict(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train(), X)
    assert not p.variance.any()


def test_prediction_inside_a_frozen_sample_is_that_sample():
    model = mlp().eval()
    with frozen_sample(model):
        p = predict(model, X, 5)
        assert_close(p.mean, model(X).softmax(-1))
        assert_close(p.mutual_information, torch.zeros(7))


def test_a_converted_transformer_layer_draws():
    """In eval mode torch's layer has a fast path that reads the weights past the forward of our layers."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = to_bayesian(model, skip=["self_attn"])
    p = predict(model, X.view(1, 7, 4), 8)
    assert (p.mutual_information > 1e-9).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"num_samples": -3}, ValueError, "num_samples"),
        ({"num_samples": 2.5}, TypeError, "num_samples"),
        ({"likelihood": "laplace"}, ValueError, "likelihood.*'laplace'"),
        (
            {"likelihood": "student_t"},
            ValueError,
            r"likelihood.*'student_t'.*history\.likelihood, .*StudentT\(scale=…\)",
        ),
        ({"likelihood": mnvi.likelihoods.Gaussian}, ValueError, r"likelihood.*did you mean Gaussian\(\)"),
        ({"noise_scale": 1.0}, ValueError, "noise_scale.*gaussian"),
        ({"noise_scale": 1.0, "likelihood": mnvi.likelihoods.Gaussian()}, ValueError, "noise_scale"),
        ({"noise_scale": "1", "likelihood": "gaussian"}, TypeError, "noise_scale"),
        ({"likelihood": None}, ValueError, "likelihood"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"noise_scale": -1.0, "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"noise_scale": float("nan"), "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"noise_scale": torch.tensor([1.0, -1.0, 1.0]), "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"samples": 3}, TypeError, "samples"),
    ],
    ids=str,
)
def test_prediction_errors(options, error, message):
    with pytest.raises(error, match=message):
        predict(mlp(), X, **options)


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_noise_free_gaussian_prediction_has_no_nan():
    prediction = predict(nn.Linear(2, 2), torch.randn(3, 2), 4, "gaussian")
    assert prediction.mutual_information is None
    assert "mutual_information: None" in repr(prediction)
    assert not prediction.variance.any()
    with pytest.raises(ValueError, match=r"scale of shape \(5, 3, 2\).*\(3, 2\)"):
        predict(nn.Linear(2, 2), torch.randn(3, 2), 4, "gaussian", noise_scale=torch.ones(5, 3, 2))
