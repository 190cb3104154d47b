"""``mnvi.fit``: against exact posteriors and single trainings; forms of data; models of every kind; what it reports."""

import contextlib
import copy
import math
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import mnvi
from mnvi.likelihoods import Gaussian
from tests.cases import cases

FIXED = {"epochs": 2, "kl_weight": 0.1, "batch_size": 8}
pytestmark = pytest.mark.filterwarnings("ignore:the posterior has not settled")


def generator(seed):
    return torch.Generator().manual_seed(seed)


X = torch.randn(37, 3, generator=generator(1))
LABELS = (X[:, 0] + 0.5 * X[:, 1].square() > 0.3).long()
REAL = X[:, :1].sin() + 0.1 * torch.randn(37, 1, generator=generator(2))


def network(inputs=3, outputs=2, seed=0, kind=mnvi.MNLinear):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mnvi.Sequential(kind(inputs, 5), nn.Tanh(), kind(5, outputs))


def same(one, other):
    """Whether two models or histories are equal to the last bit."""
    if isinstance(one, nn.Module):
        mine, its = one.state_dict(), other.state_dict()
        return mine.keys() == its.keys() and all(mine[name].equal(its[name]) for name in mine)
    fields = ("kl_weight", "epochs", "widening", "search", "records")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


# Against what is known exactly ----------------------------------------------------------------------------------------


def regression(kl_weight, tempered, **options):
    """The KL from what fit finds to the posterior of a linear regression with known noise, in nats.

    With NLL + w·KL/N that is the posterior under the likelihood to the power 1/w. The columns are orthogonal, so that
    the weights are independent also there.
    """
    noise, weight = 0.5, torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    columns = torch.linalg.qr(torch.randn(60, 4, generator=generator(3), dtype=torch.float64)).Q
    x = columns * torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    y = x @ weight + noise * torch.randn(60, generator=generator(4), dtype=torch.float64)
    family, prior = mnvi.posteriors.Diagonal(), mnvi.priors.Normal(1.0)
    model = mnvi.MNLinear(4, 1, bias=False, posterior=family, prior=prior, dtype=torch.float64)
    fixed = {"epochs": 200, "batch_size": 60, "draws": 4, "lr": 0.05}
    mnvi.fit(model, (x, y[:, None]), Gaussian(noise), kl_weight=kl_weight, **{**fixed, **options})
    precision = x.square().sum(0) / noise**2 / tempered + 1
    exact = torch.distributions.Normal(x.T @ y / noise**2 / tempered / precision, precision.rsqrt())
    found = model.distribution()
    normal = torch.distributions.Normal(found.mean[0].detach(), found.variance[0].detach().sqrt())
    return torch.distributions.kl_divergence(normal, exact).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_posterior_of_a_linear_regression_is_found(kl_weight):
    assert regression(kl_weight, kl_weight) < 0.1
    assert regression(kl_weight, 1.3 - kl_weight) > 0.5  # under the other power


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_several_plain_models_train_as_each_alone(own, likelihood):
    x, y = X.double(), LABELS if likelihood == "categorical" else REAL.double()
    kind = torch.nn.Linear
    outputs = 2 if likelihood == "categorical" else 1
    together = [network(outputs=outputs, seed=k, kind=kind).double() for k in range(3)]
    alone = copy.deepcopy(together)
    pairs = [(x + k, y) for k in range(3)] if own else [(x, y)] * 3
    options = {**FIXED, "epochs": 4}
    history = mnvi.fit(together, pairs if own else pairs[0], likelihood, seed=5, **options)
    for k, (model, single) in enumerate(zip(together, alone, strict=True)):
        own_history = mnvi.fit(single, pairs[k], likelihood, seed=5 + k, **options)
        for a, b in zip(model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert [r["nll"][k] for r in history.records] == pytest.approx([r["nll"] for r in own_history.records])
        mine = dict(history.likelihood[k].named_parameters())
        for name, value in own_history.likelihood.named_parameters():
            torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-6)


def test_trials_of_a_plain_model_are_the_same_together_and_one_by_one(monkeypatch):
    def search():
        history = mnvi.fit(network(kind=nn.Linear), (X, LABELS), epochs=(2, 4), kl_weight=(1, 0.1), batch_size=8)
        return [each["nll"] for each in history.search]

    together = search()
    monkeypatch.setattr("mnvi._fitting.job.SMALL", 0)
    assert search() == pytest.approx(together, rel=1e-3)  # rounding, which Adam's first steps enlarge


def test_fit_learns():
    x = torch.randn(400, 3, generator=generator(8))
    model = network()
    history = mnvi.fit(model, (x, (x.sum(1) > 0).long()), epochs=20)
    new = torch.randn(500, 3, generator=generator(9))
    prediction = mnvi.predict(model, new, 64, history.likelihood)
    assert (prediction.mean.argmax(1) == (new.sum(1) > 0)).float().mean() > 0.93
    assert not model.training


# Seeds and random numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_seed_gives_the_same_and_another_something_else(count):
    def fitted(seed):
        models = [network(seed=k) for k in range(count)]
        torch.rand(seed + 1)  # torch's own random numbers do not matter
        history = mnvi.fit(models if count > 1 else models[0], (X, LABELS), epochs=2, batch_size=8, seed=seed)
        return models[-1], history

    (first, history), (again, its), (other, _) = fitted(3), fitted(3), fitted(4)
    assert same(first, again)
    assert same(history, its)
    assert not same(first, other)


class Noisy(Dataset):
    """Examples with random augmentation."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(3), REAL[i]


def test_the_random_state_of_torch_is_as_before():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    mnvi.fit(network(outputs=1), Noisy(), "gaussian", epochs=2, validation=(X[:9], REAL[:9]))
    assert torch.get_rng_state().equal(before)
    with pytest.raises(ValueError, match="takes a target"):
        mnvi.fit(network(), DataLoader(Noisy(), 4), mnvi.likelihoods.Bernoulli(), epochs=2)
    assert torch.get_rng_state().equal(before)


def test_random_augmentation_follows_from_the_seed():
    models = [network(outputs=1) for _ in range(2)]
    for model in models:
        torch.rand(3)
        mnvi.fit(model, Noisy(), "gaussian", **FIXED)
    assert same(*models)


# Forms of data --------------------------------------------------------------------------------------------------------


class Rows(Dataset):
    """Rows of tensors, one by one; remembers which were read."""

    def __init__(self, make=lambda i: (X[i], LABELS[i]), size=37):
        self.make, self.size, self.read = make, size, []

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        self.read.append(i)
        return self.make(i)


class Sum(mnvi.Module):
    """Of two arguments."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, a, b):
        return self.net(a + b)


class HuggingFace(Sum):
    """Named arguments, and an output with logits."""

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.net(input_ids * attention_mask))


def collated(rows):
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


ONES = torch.ones(37, 1)
TOKENS = {"input_ids": X, "attention_mask": ONES}
PLAIN = {
    "pair": lambda: ((X, LABELS), {"batch_size": 8}),
    "list": lambda: ([X, LABELS], {"batch_size": 8}),
    "list of one pair": lambda: ([(X, LABELS)], {"batch_size": 8}),
    "TensorDataset": lambda: (TensorDataset(X, LABELS), {"batch_size": 8}),
    "Dataset": lambda: (Rows(), {"batch_size": 8}),
    "list in a DataLoader": lambda: (DataLoader(list(zip(X, LABELS, strict=True)), 8), {}),
    "DataLoader of tensors": lambda: (DataLoader(TensorDataset(X, LABELS), 8, shuffle=True, drop_last=True), {}),
    "DataLoader": lambda: (DataLoader(Rows(), 8, shuffle=True), {}),
    "collate_fn": lambda: (DataLoader(TensorDataset(X, LABELS), 8, collate_fn=collated), {}),
    "not a torch Dataset": lambda: (SimpleRows(), {"batch_size": 8}),
    "tuple": lambda: (((X, ONES * 0), LABELS), {"batch_size": 8, "model": Sum()}),
    "tuple of a Dataset": lambda: (Rows(lambda i: ((X[i], ONES[i] * 0), LABELS[i])), {"batch_size": 8, "model": Sum()}),
    "dict": lambda: ((TOKENS, LABELS), {"batch_size": 8, "model": HuggingFace()}),
    "dicts with labels": lambda: (
        Rows(lambda i: {"input_ids": X[i], "attention_mask": ONES[i], "labels": LABELS[i]}),
        {"batch_size": 8, "model": HuggingFace()},
    ),
}  # fmt: skip


class SimpleRows:
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], LABELS[i]


@cases("form", PLAIN)
def test_all_forms_of_the_same_data_train_the_same(form):
    expected = network()
    mnvi.fit(expected, (X, LABELS), **FIXED)
    data, options = form()
    model = options.pop("model", network())
    mnvi.fit(model, data, epochs=2, kl_weight=0.1, **options)
    for a, b in zip(expected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_workers_of_a_dataloader_are_used():
    expected = network()
    mnvi.fit(expected, (X, LABELS), **FIXED)
    model = network()
    rows = Rows()
    mnvi.fit(model, DataLoader(rows, 8, num_workers=1), epochs=2, kl_weight=0.1)
    assert same(expected, model)
    assert rows.read == []  # in this process


@cases("data", {"pairs": lambda: (X, LABELS), "Dataset": Rows})
def test_several_models_take_one_data_set(data):
    models = [network(seed=k) for k in range(2)]
    history = mnvi.fit(models, data(), epochs=2, batch_size=8)
    assert len(history.kl_weight) == len(history.records[0]["nll"]) == 2
    assert not same(*models)


def test_several_models_take_arguments_that_are_no_tensors():
    class Scaled(Sum):
        def forward(self, x, scale):
            return self.net(x * scale)

    models = [Scaled() for _ in range(2)]
    mnvi.fit(models, ((X, 2), LABELS), **FIXED)


def test_several_models_with_outputs_of_hugging_face_choose_together():
    models = [HuggingFace() for _ in range(2)]
    history = mnvi.fit(models, (TOKENS, LABELS), epochs=2)
    assert len(history.search) == 2 * 4


TARGETS = {  # a target for each short name, and the model's outputs
    "categorical": (LABELS, 2),
    "bernoulli": (LABELS[:, None].float(), 1),
    "poisson": (LABELS[:, None] * 3, 1),
    "gaussian": (REAL, 1),
    "student_t": (REAL * 100, 1),
    "heteroscedastic_gaussian": (REAL * 100 + 7, 2),
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_short_name_trains_and_predicts(name):
    target, outputs = TARGETS[name]
    model = network(outputs=outputs)
    history = mnvi.fit(model, (X, target), name, epochs=30, batch_size=8, kl_weight=0.01, validation=(X, target))
    found = mnvi.predict(model, X, 16, history.likelihood).log_prob(target).mean()
    before = mnvi.predict(network(outputs=outputs), X, 16, history.likelihood).log_prob(target).mean()
    assert found > before + 0.1


def test_targets_of_one_dimension_are_taken():
    model = nn.Sequential(network(outputs=1), nn.Flatten(0))
    history = mnvi.fit(model, (X, REAL[:, 0]), "gaussian", epochs=2)
    assert history.likelihood.mean.shape == ()


# Held-out data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [0, 50_000])
def test_held_out_examples_are_never_trained_on_in_a_trial(small, monkeypatch):
    monkeypatch.setattr("mnvi._fitting.job.SMALL", small)
    rows, seen = Rows(), []
    model = network()
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, rows.read.copy())) or rows.read.clear()
    )
    one_by_one = 2 if small == 0 else 1
    mnvi.fit(model, rows, epochs=4, kl_weight=(1.0, 0.1), batch_size=8, validation=0.3)
    training = [set(read) for is_training, read in seen if is_training]
    steps = 2 * 4 * one_by_one  # two epochs of a trial with 26 examples
    of_trials = set().union(*training[: -4 * 5])
    judged = set().union(*(set(read) for is_training, read in seen[2:] if not is_training))
    assert len(training) >= steps + 20
    assert len(judged) == 11
    assert not of_trials & judged
    assert set().union(*training[-4 * 5 :]) == set(range(37))  # the training itself is on all


@cases(
    "form",
    {
        "pair": lambda: (X[:9], LABELS[:9]),
        "Dataset": lambda: Rows(size=9),
        "loader": lambda: DataLoader(Rows(size=9), 4),
    },
)
def test_data_held_out_beside_the_others_choose_and_calibrate(form):
    history = mnvi.fit(network(), (X, LABELS), epochs=2, kl_weight=(1.0, 0.1), validation=form())
    assert [each["kl_weight"] for each in history.search] == [1.0, 0.1]
    single = mnvi.fit(network(), (X, LABELS), epochs=2, kl_weight=0.1, validation=form())
    assert single.search == []
    assert single.widening != 1
    assert single.likelihood.temperature.item() == pytest.approx(single.widening)


def test_calibration_can_be_left_out():
    history = mnvi.fit(network(), (X, LABELS), epochs=2, kl_weight=(1.0, 0.1), calibrate=False)
    assert history.widening == history.likelihood.temperature == 1
    assert [each["widening"] for each in history.search] == [1, 1]


@pytest.mark.parametrize("kl_weight", [0.1, (1.0, 0.1)])
@pytest.mark.parametrize("name", ["gaussian", "standardized"])
def test_a_frozen_scale_stays(name, kl_weight):
    learnt = Gaussian()
    likelihood = learnt if name == "gaussian" else mnvi.likelihoods.Standardized(learnt, torch.zeros(1), torch.ones(1))
    likelihood.requires_grad_(False)
    held = (X[:9], 5 * REAL[:9])
    history = mnvi.fit(network(outputs=1), (X, REAL), likelihood, epochs=2, kl_weight=kl_weight, validation=held)
    assert learnt.scale == history.widening == 1
    mnvi.fit(network(outputs=1), (X, REAL), learnt.requires_grad_(), epochs=2, kl_weight=kl_weight, validation=held)
    assert learnt.scale > 1.1


def test_a_known_scale_stays():
    history = mnvi.fit(network(outputs=1), (X, REAL), Gaussian(0.2), epochs=2)
    assert history.widening == 1
    assert history.likelihood.scale == pytest.approx(0.2)


# Models ---------------------------------------------------------------------------------------------------------------


def normalised(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mnvi.Sequential(mnvi.MNLinear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.ReLU(), mnvi.MNLinear(6, 2))


@pytest.mark.parametrize("count", [1, 3])
def test_batch_norm_and_dropout_train_also_together(count):
    models = [normalised(k) for k in range(count)]
    mnvi.fit(models if count > 1 else models[0], (X[:33], LABELS[:33]), epochs=3, batch_size=8, kl_weight=0.1)
    for model in models:
        assert model[1].num_batches_tracked == 3 * 4  # 33 examples are batches of 8, 8, 8 and 9
        assert model[1].running_mean.ne(0).all()
    assert len({tuple(model[1].running_mean.tolist()) for model in models}) == count


@pytest.mark.parametrize("count", [1, 2])
def test_frozen_parameters_stay(count):
    models = [network(seed=k) for k in range(count)]
    for model in models:
        model[0].weight.requires_grad_(False)
    before = copy.deepcopy(models)
    mnvi.fit(models if count > 1 else models[0], (X, LABELS), **FIXED)
    for model, old in zip(models, before, strict=True):
        assert model[0].weight.equal(old[0].weight)
        assert not model[0].weight.requires_grad
        assert not model[2].weight.equal(old[2].weight)


@pytest.mark.parametrize("count", [1, 2])
def test_scales_that_a_prior_fits_are_those_of_the_trained_weights(count):
    """They say which units can go. The best τ, γ give τ_i·γ_j·E[W_ij²] the mean 1 in every row and column."""
    torch.manual_seed(0)
    prior, family = mnvi.priors.GroupARD(), mnvi.posteriors.Diagonal()
    kinds = {"prior": prior, "posterior": family}
    models = [
        mnvi.Sequential(mnvi.MNLinear(3, 8, **kinds), nn.ReLU(), mnvi.MNLinear(8, 2, **kinds)) for _ in range(count)
    ]
    mnvi.fit(models if count > 1 else models[0], (X, LABELS), epochs=30, kl_weight=1.0)
    for layer in (models[-1][0], models[-1][2]):
        moments = layer.weight.square() + layer.posterior.variance()
        precision = layer.prior.log_row_precision.exp()[:, None] * layer.prior.log_column_precision.exp()
        torch.testing.assert_close((precision * moments).mean(1), torch.ones(len(moments)), rtol=0.05, atol=0)
        torch.testing.assert_close((precision * moments).mean(0), torch.ones(moments.shape[1]), rtol=0.05, atol=0)


class Tied(mnvi.Module):
    """One layer used twice, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), mnvi.MNLinear(3, 2)
        self.second.weight = self.first.weight
        self.again = self.last

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x))))) + self.again(x)


def test_shared_layers_and_weights_stay_shared():
    torch.manual_seed(1)
    models = [Tied() for _ in range(2)]
    mnvi.fit(models, (X, LABELS), **FIXED)
    for model in models:
        assert model.first.weight is model.second.weight
        assert model.last is model.again
    mnvi.predict(models[0], X, 4)  # nothing that vmap made is left


class TiedPlain(Tied):
    """The same without noise."""

    def __init__(self):
        super().__init__()
        self.last = self.again = nn.Linear(3, 2)


def test_shared_layers_and_weights_train_together_as_alone():
    torch.manual_seed(1)
    models = [TiedPlain().double() for _ in range(2)]
    alone = copy.deepcopy(models)
    mnvi.fit(models, (X.double(), LABELS), **FIXED)
    for k, (model, single) in enumerate(zip(models, alone, strict=True)):
        mnvi.fit(single, (X.double(), LABELS), seed=k, **FIXED)
        for a, b in zip(model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_model_in_eval_mode_trains_as_any_other():
    one, other = normalised(), normalised().eval()
    for model in (one, other):
        mnvi.fit(model, (X, LABELS), **FIXED)
        assert not any(module.training for module in model.modules())
    assert same(one, other)


def test_float64_targets_of_a_float32_model_are_taken():
    history = mnvi.fit(network(outputs=1), (X, REAL.double()), "gaussian", epochs=2)
    assert history.likelihood.mean.dtype == torch.float64
    assert next(network().parameters()).dtype == torch.float32


class Branching(mnvi.Module):
    """Decides by its data, which vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        output = self.net(x)
        return output if output.sum() > 0 else 2 * output


def test_trials_of_a_model_that_vmap_cannot_follow_run_one_by_one():
    model = Branching()
    history = mnvi.fit(model, (X, LABELS), epochs=2)
    assert [each["kl_weight"] for each in history.search] == [1.0, 0.1, 0.03, 0.01]


def test_several_of_them_are_refused_with_the_reason():
    models = [Branching() for _ in range(2)]
    before = copy.deepcopy(models)
    with pytest.raises(ValueError, match=r"cannot train in one vmap, fit them one by one \(.*data-dependent"):
        mnvi.fit(models, (X, LABELS), **FIXED)
    assert all(map(same, models, before))


def test_a_failed_training_of_several_leaves_them_as_they_were(monkeypatch):
    models = [network(seed=k) for k in range(2)]
    before = copy.deepcopy(models)
    with pytest.raises(ValueError, match="not finite"):
        mnvi.fit(models, (X, REAL[:, 0]), Overflowing(), **FIXED)
    assert all(map(same, models, before))


class Overflowing(Gaussian):
    """Infinite at the third call of the training."""

    calls = 0

    def target_shape(self, draws):
        return draws.shape[1:-1]

    def log_density(self, draws, target):
        Overflowing.calls += 1
        return (draws[..., 0] - target) * (torch.inf if Overflowing.calls > 3 else 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:There is a performance drop")  # torch's own
@pytest.mark.parametrize("count", [1, 2])
def test_compiled_models_train_the_same(count, monkeypatch):
    compiled, real = [], torch.compile

    def eager(function, **options):
        compiled.append(function)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    models, plain = ([network(seed=k) for k in range(count)] for _ in range(2))
    for each, on in ((models, True), (plain, False)):
        mnvi.fit(each if count > 1 else each[0], (X[:32], LABELS[:32]), compile=on, **FIXED)
    assert len(compiled) == 1
    for a, b in zip(models[0].parameters(), plain[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


# After it -------------------------------------------------------------------------------------------------------------


def test_predictions_by_a_short_name_after_it_are_warned_of():
    model = network(outputs=1)
    history = mnvi.fit(model, (X, REAL), "gaussian", epochs=2, kl_weight=1.0)
    with pytest.warns(UserWarning, match=r"trained with Standardized, and 'gaussian' .* history\.likelihood"):
        mnvi.predict(model, X, 2, "gaussian")
    mnvi.predict(model, X, 2, history.likelihood)


# Around it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_it_trains_under_no_grad_and_under_autocast(count):
    def fitted(context):
        models = [network(seed=k) for k in range(count)]
        with context:
            mnvi.fit(models if count > 1 else models[0], (X, LABELS), epochs=2, kl_weight=(1.0, 0.1))
        return models[0]

    plain = fitted(contextlib.nullcontext())
    assert same(plain, fitted(torch.no_grad()))
    rounded = fitted(torch.autocast("cpu", torch.bfloat16))
    for one, other in zip(plain.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)
        assert other.dtype == torch.float32


@cases("form", {"pair": lambda x: (x, LABELS), "Dataset": lambda x: Rows(lambda i: (x[i], LABELS[i]))})
def test_data_that_require_grad_gather_none(form):
    x = X.clone().requires_grad_()
    mnvi.fit(network(), form(x), epochs=2, kl_weight=1.0)
    assert x.grad is None


@pytest.mark.parametrize("count", [1, 2])
def test_no_gradients_are_left(count):
    models = [network(seed=k) for k in range(count)]
    history = mnvi.fit(models if count > 1 else models[0], (X, LABELS), epochs=1, kl_weight=1.0)
    likelihoods = history.likelihood if count > 1 else [history.likelihood]
    assert all(p.grad is None for each in [*models, *likelihoods] for p in each.parameters())


def test_a_module_list_is_several_models():
    several = [[network(seed=k) for k in range(2)] for _ in range(2)]
    mnvi.fit(several[0], (X, LABELS), **FIXED)
    mnvi.fit(nn.ModuleList(several[1]), (X, LABELS), **FIXED)
    assert all(map(same, *several))


def test_norms_alone_have_a_kl_too():
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the layer that is skipped
        mnvi.to_bayesian(model, skip=("1",), bias_posterior=True)
    history = mnvi.fit(model, (X, LABELS), epochs=2)
    assert history.kl_weight > 0
    assert history.records[-1]["kl"] > 0


class Diverging(mnvi.Module):
    """Its output is infinite where the KL has shrunk its mean below a bound, that is, with a large weight of it."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        small = self.net[0].posterior.variance().mean() > 0.05
        return self.net(x) + torch.where(small, torch.nan, 0.0)


@pytest.mark.parametrize("small", [50_000, 0])
def test_a_trial_that_diverges_counts_as_infinite(small, monkeypatch):
    """Of trials in one vmap and of those one by one."""
    monkeypatch.setattr("mnvi._fitting.job.SMALL", small)
    model = Diverging()
    history = mnvi.fit(model, (X, LABELS), epochs=40, kl_weight=(30.0, 0.001), batch_size=8)
    assert [math.isfinite(each["nll"]) for each in history.search] == [False, True]
    assert history.kl_weight == 0.001
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    with pytest.raises(ValueError, match="loss is not finite"):
        mnvi.fit(Diverging(), (X, LABELS), epochs=40, kl_weight=(30.0, 20.0), batch_size=8)


# What it reports ------------------------------------------------------------------------------------------------------


def test_history_has_what_was_chosen_and_every_epoch():
    model = network()
    history = mnvi.fit(model, (X, LABELS), epochs=(2, 5), kl_weight=[1, 0.1], batch_size=8)
    assert isinstance(history, mnvi.History)
    assert {(each["epochs"], each["kl_weight"]) for each in history.search} == {(2, 1), (5, 1), (2, 0.1), (5, 0.1)}
    assert (history.epochs, history.kl_weight) in {(each["epochs"], each["kl_weight"]) for each in history.search}
    assert [each["epoch"] for each in history.records] == list(range(1, history.epochs + 1))
    assert history.records[-1]["kl"] == pytest.approx(model.kl().item() / 37, rel=0.2)
    assert repr(history).startswith(f"History(kl_weight={history.kl_weight:g}, epochs={history.epochs}, nll=0.")
    assert "settled=" in repr(history)


def history(unmet):
    several = isinstance(unmet, list)
    return mnvi.History(Gaussian(), [1.0] * len(unmet) if several else 1.0, 2, 1.0, unmet, 1.0, [], [])


@pytest.mark.parametrize(
    ("unmet", "settled"), [(0.0, True), (0.24, True), (0.26, False), ([0.0, 0.5], False), ([0.0, 0.2], True)]
)
def test_a_posterior_whose_pull_is_not_met_has_not_settled(unmet, settled):
    assert history(unmet).settled == settled


def test_what_has_not_settled_is_warned_of_where_fit_was_called():
    with pytest.warns(
        UserWarning, match=r"not settled: .* met at least \d+ % of the pull .* more epochs help"
    ) as caught:
        assert not mnvi.fit(network(), (X, LABELS), epochs=2, kl_weight=1.0, batch_size=4, lr=1e-4).settled
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnvi.fit(network(kind=nn.Linear), (X, LABELS), epochs=1)
        assert mnvi.fit(network(), (X, LABELS), epochs=200, kl_weight=1.0).settled


def test_a_second_fit_that_holds_out_what_the_first_has_seen_is_warned_of(tmp_path):
    model, kwargs = network(kind=nn.Linear), {"epochs": 2, "kl_weight": (1.0, 0.1)}
    for _ in range(2):  # which is done already
        mnvi.fit(model, (X, LABELS), checkpoint=tmp_path / "fit.pt", **kwargs)
    with pytest.warns(UserWarning, match="fitted before: .* validation=") as caught:
        mnvi.fit(model, (X, LABELS), **kwargs)
    assert caught[0].filename == __file__
    mnvi.fit(model, (X, LABELS), validation=(X[:9], LABELS[:9]), **kwargs)  # has others,
    mnvi.fit(model, (X, LABELS), epochs=1, kl_weight=0.0)  # holds nothing out


SIZES = {  # inputs, targets, likelihood, what is said
    "inputs": (X * torch.tensor([1.0, 1.0, 1e4]), LABELS, "categorical", r"mean square \S+e\+04, column 2; subtract"),
    "images": (X[:, None] * 1e3, LABELS, "categorical", r"mean square \S+; subtract"),
    "a keyword": ({"input": X * 1e5}, LABELS, "categorical", "inputs have"),
    "large targets": (X, REAL * 1e3, Gaussian(), 'targets have .* the short name .*"gaussian"'),
    "small targets": (X, REAL * 1e-3, Gaussian(), "targets have"),
}


@pytest.mark.parametrize("row", SIZES)
def test_numbers_far_from_one_are_warned_of_before_training(row):
    x, y, likelihood, words = SIZES[row]
    model = network(outputs=2 if y is LABELS else 1, kind=nn.Linear)
    model = nn.Sequential(nn.Flatten(), model) if row == "images" else model
    with pytest.warns(UserWarning, match=f"numbers far from 1: .*{words}") as caught:
        mnvi.fit(model, (x, y), copy.deepcopy(likelihood), epochs=1)
    assert caught[0].filename == __file__


def test_what_is_standardised_and_counts_and_indices_are_not_warned_of():
    mnvi.fit(network(outputs=1, kind=nn.Linear), (X, REAL * 1e6), "gaussian", epochs=1)
    mnvi.fit(network(outputs=1, kind=nn.Linear), (X, torch.full((37, 1), 900)), "poisson", epochs=1)
    embedding = mnvi.Sequential(nn.Embedding(5000, 3), nn.Flatten(), nn.Linear(3, 2))
    mnvi.fit(embedding, (torch.arange(37)[:, None] + 4000, LABELS), epochs=1)


@pytest.mark.parametrize("widening", [0.125, 7.99, [1.0, 8.0]])
def test_a_widening_at_its_bound_is_warned_of(widening):
    several = isinstance(widening, list)
    one = mnvi.History(Gaussian(), [1.0, 1.0] if several else 1.0, 2, widening, 0.0, 1.0, [], [])
    with pytest.warns(UserWarning, match="held-out data widened the likelihood by .*the most or least"):
        one.warn()


def test_the_progress_line_tells_stage_losses_and_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    model = network(kind=nn.Linear)
    model.register_forward_hook(lambda module, inputs, output: now.__setitem__(0, now[0] + 0.3))
    mnvi.fit(model, (X, LABELS), epochs=4, batch_size=8, kl_weight=(1.0, 0.1))
    lines = [line.strip() for line in capsys.readouterr().err.split("\r")[1:]]
    assert any("choosing, epoch 4/4: NLL 0." in line for line in lines)
    assert ", 0 s left; training, epoch 4/4: NLL 0." in lines[-1]
    assert "KL 0 nats/example" in lines[-1]
    assert lines[-1].startswith("fit: 36/36 in ")  # four times 4 batches, four times 5


def test_what_is_quick_is_silent(capsys):
    mnvi.fit(network(kind=nn.Linear), (X, LABELS), epochs=1)
    assert capsys.readouterr() == ("", "")


# The docstring --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring_runs(monkeypatch):
    monkeypatch.setattr(sys.modules["mnvi.fit"], "REAL_STEPS", 300)
    example = mnvi.fit.__doc__.partition("Example:")[2]
    lines = [line.partition(">>> ")[2] for line in example.splitlines() if ">>> " in line]
    names = {"mnvi": mnvi, "x": X, "y": REAL, "x_test": X[:5], "model": network(outputs=1)}
    names["model"].register_forward_hook(lambda module, inputs, output: None)
    exec("\n".join(lines), names)
    assert len(lines) == 3
    assert F.mse_loss(names["prediction"].mean, REAL[:5]) < REAL.var()
