"""What does not fit is said in words, before models, likelihood, data or torch's random state are changed."""

import copy
import math

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import mnvi
from mnvi.likelihoods import Categorical, Gaussian, Poisson
from tests.cases import cases
from tests.test_fit import LABELS, REAL, Rows, X, network


def with_nan(values, *rows):
    values = values.clone()
    values[list(rows)] = math.nan
    return values


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(X, LABELS, strict=True))


class Unlabelled(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return X[i]


class Frame:
    """As a DataFrame of pandas."""

    def to_numpy(self):
        return X.numpy()

    __array__ = to_numpy


PAIR, TARGET = (X, LABELS), (X, REAL)
SET = TensorDataset(X, LABELS)
OF_ONE = {"outputs": 1}  # of the network
CLASSES, VALUE, TYPE = "categorical", ValueError, TypeError
WRONG = {  # data, likelihood, options, error, message
    # data
    "NaN in x": ((with_nan(X, 3, 5), LABELS), CLASSES, {}, VALUE, r"data: x has NaN .* rows 3, 5 \(2 of 37"),
    "NaN in a dict": (({"input": with_nan(X, 3)}, LABELS), CLASSES, {}, VALUE, r"x\['input'\] has NaN"),
    "NaN in y": ((X, with_nan(REAL, 4)), "gaussian", OF_ONE, VALUE, "finite, got nan at row 4"),
    "NaN in y of a known noise": ((X, with_nan(REAL, 4)), Gaussian(1.0), OF_ONE, VALUE, "nan at row 4"),
    "labels out of range": ((X, LABELS + 1), CLASSES, {}, VALUE, r"label 2 at rows? .* 0\.\.1; .* subtract 1"),
    "labels that are floats": ((X, LABELS.float()), CLASSES, {}, TYPE, r"target\.long\(\)"),
    "(n,) for (n, 1)": ((X, REAL[:, 0]), "gaussian", OF_ONE, VALUE, r"target\.unsqueeze\(-1\) fits"),
    "(n, 1) for (n,)": ((X, LABELS[:, None]), CLASSES, {}, VALUE, r"target\.squeeze\(-1\) fits"),
    "one example": ((X[:1], LABELS[:1]), CLASSES, {"kl_weight": 1.0}, VALUE, "at least 2 examples .*, got 1"),
    "one target": ((X[:1], REAL[:1]), "gaussian", OF_ONE, VALUE, "at least 2 examples .*, got 1"),
    "none": ((X[:0], LABELS[:0]), CLASSES, {}, VALUE, "no examples"),
    "lengths": ((X[1:], LABELS), CLASSES, {}, VALUE, r"one number of examples, got shapes \(36, 3\), \(37,\)"),
    "scalar": ((X, LABELS[0]), CLASSES, {}, VALUE, "must count examples, got a scalar"),
    "constant target": ((X, REAL * 0 + 3), "gaussian", OF_ONE, VALUE, "constant"),
    "float64 x": ((X.double(), LABELS), CLASSES, {}, VALUE, r"float64, .*float32: x\.float\(\) fits"),
    "columns": ((X[:, :2], LABELS), CLASSES, {}, VALUE, r"data: expected an input of shape \(\*, 3\), got \(2, 2\)"),
    "columns of nn.Linear": ((X, LABELS), CLASSES, {"model": nn.Linear(2, 2)}, VALUE, r"not take a .* \(2, 3\) \(mat1"),
    "arrays": ((X.numpy(), LABELS.numpy()), CLASSES, {}, TYPE, "data must be .*torch.as_tensor makes"),
    "array target": ((X, LABELS.numpy()), CLASSES, {}, TYPE, "torch.as_tensor makes"),
    "x alone": (X, CLASSES, {}, TYPE, r"data must be .*; got a tensor of shape \(37, 3\)"),
    "names of a dict": (({"inputs": X}, LABELS), CLASSES, {}, TYPE, 'not take the arguments inputs: .* "labels"'),
    "classes as real": ((X, LABELS), "gaussian", {}, VALUE, 'of class labels the likelihood is "categorical"'),
    "a DataFrame": ((Frame(), LABELS), CLASSES, {}, TYPE, r"torch.as_tensor\(frame.to_numpy\(\)\)"),
    "array alone": (numpy.zeros((3, 2)), CLASSES, {}, TYPE, "torch.as_tensor makes"),
    "nothing": (None, CLASSES, {}, TYPE, "data must be"),
    "rows in a list": ([*zip(X, LABELS, strict=True)], CLASSES, {}, VALUE, r"DataLoader\(list, batch_size"),
    "IterableDataset": (Endless(), CLASSES, {}, TYPE, "data: an IterableDataset cannot be shuffled"),
    "loader of one": (DataLoader(Endless(), 4), CLASSES, {}, TYPE, "an IterableDataset cannot be shuffled"),
    "no targets": (Unlabelled(), CLASSES, {}, TYPE, r"must be \(x, target\), or dicts with \"labels\""),
    "three tensors": (TensorDataset(X, X, LABELS), CLASSES, {}, VALUE, "several inputs are"),
    "labels of a Dataset": (Rows(lambda i: (X[i], LABELS[i] + 5)), CLASSES, {}, VALUE, "data: target has label"),
    "sampler": (DataLoader(SET, 4, sampler=WeightedRandomSampler([1.0], 9)), CLASSES, {}, VALUE, "sampler of its own"),
    "no batches": (DataLoader(SET, None), CLASSES, {}, VALUE, r"DataLoader\(dataset, batch_size=…\)"),
    "two batch sizes": (DataLoader(SET, 4), CLASSES, {"batch_size": 8}, VALUE, "has a batch_size, 4; got batch_size=8"),
    # held-out data
    "validation of 1": (PAIR, CLASSES, {"validation": 1.0}, VALUE, "validation must be .* below 1"),
    "validation of 0": (PAIR, CLASSES, {"validation": 0}, VALUE, "validation=0 of 37 examples holds out 0"),
    "validation too small": (PAIR, CLASSES, {"validation": 0.01}, VALUE, "validation=0.01 of 37 .* holds out 0"),
    "validation None": (PAIR, CLASSES, {"validation": None}, TYPE, "validation must be .*; got None"),
    "validation labels": (PAIR, CLASSES, {"validation": (X, LABELS + 1)}, VALUE, "validation: target has label"),
    "validation NaN": (PAIR, CLASSES, {"validation": (with_nan(X, 1), LABELS)}, VALUE, "validation: x has NaN"),
    "validation columns": (PAIR, CLASSES, {"validation": (X[:, :2], LABELS)}, VALUE, "validation: expected an input"),
    # likelihood
    "likelihood class": (PAIR, Categorical, {}, VALUE, r"did you mean Categorical\(\)\?"),
    "likelihood name": (PAIR, "softmax", {}, VALUE, "or one of .*'categorical'.*, got 'softmax'"),
    "function": (PAIR, nn.functional.cross_entropy, {}, VALUE, "likelihood must be an object"),
    "negative counts": ((X, REAL.round() - 9), Poisson(), OF_ONE, VALUE, "counts"),
    # numbers
    "kl_weight of nothing": (PAIR, CLASSES, {"kl_weight": ()}, VALUE, r"kl_weight must be a number or several .*\(\)"),
    "negative kl_weight": (PAIR, CLASSES, {"kl_weight": (1.0, -0.1)}, VALUE, "kl_weight must be .*, got -0.1"),
    "kl_weight in words": (PAIR, CLASSES, {"kl_weight": "auto"}, TYPE, "kl_weight must be a number, got 'auto'"),
    "no epochs": (PAIR, CLASSES, {"epochs": 0}, VALUE, "epochs must be at least 1, got 0"),
    "epochs of nothing": (PAIR, CLASSES, {"epochs": []}, VALUE, "epochs must be"),
    "half an epoch": (PAIR, CLASSES, {"epochs": 0.5}, TYPE, "epochs must be an int"),
    "batch_size": (PAIR, CLASSES, {"batch_size": 0}, VALUE, "batch_size must be at least 1"),
    "lr": (PAIR, CLASSES, {"lr": 0.0}, VALUE, "lr must be finite and positive"),
    "draws": (PAIR, CLASSES, {"draws": 0}, VALUE, "draws must be at least 1"),
    "warmup": (PAIR, CLASSES, {"warmup": 2.0}, VALUE, "warmup must be"),
    "seed": (PAIR, CLASSES, {"seed": 0.5}, TYPE, "seed must be an int"),
    "negative seed": (PAIR, CLASSES, {"seed": -1}, VALUE, "seed must be at least 0"),
    "device": (PAIR, CLASSES, {"device": "gpu"}, VALUE, "device must be one that torch has here, got 'gpu'"),
    "meta device": (PAIR, CLASSES, {"device": "meta"}, VALUE, "meta device"),
}  # fmt: skip


@cases("row", WRONG)
def test_what_does_not_fit_is_named_before_anything_is_changed(row, tmp_path):
    data, likelihood, options, error, message = row
    options = dict(options)
    model = options.pop("model", None) or network(outputs=options.pop("outputs", 2))
    [*model.modules()][-1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(error, match=f"(?s){message}"):
        mnvi.fit(model, data, likelihood, checkpoint=tmp_path / "fit.pt", **options)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.get_rng_state().equal(state)
    assert not (tmp_path / "fit.pt").exists()


def test_a_device_that_is_not_here_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="got 'cuda'"):
        mnvi.fit(network(), PAIR, device="cuda")


def test_without_anything_to_choose_nothing_has_to_be_held_out():
    history = mnvi.fit(network(kind=nn.Linear), PAIR, validation=0, epochs=1)
    assert history.search == []


# Models ---------------------------------------------------------------------------------------------------------------


def frozen():
    return network().requires_grad_(False)


def half_frozen():
    model = network(seed=1)
    model[0].weight.requires_grad_(False)
    return model


def with_dropout(p):
    return mnvi.Sequential(mnvi.MNLinear(3, 2), nn.Dropout(p))


def relu():
    return mnvi.Sequential(mnvi.MNLinear(3, 5), nn.ReLU(), mnvi.MNLinear(5, 2))


TWICE = network()
MODELS = {
    "a class": (lambda: mnvi.MNLinear, TypeError, "model must be a torch.nn.Module or a list of them"),
    "a function": (lambda: torch.tanh, TypeError, "model must be"),
    "none": (list, TypeError, r"model must be .* got \[\]"),
    "one is none": (lambda: [network(), None], TypeError, "model must be"),
    "the same twice": (lambda: [TWICE, TWICE], ValueError, "twice"),
    "nothing to train": (nn.Tanh, ValueError, "no parameters to train"),
    "all frozen": (frozen, ValueError, "no parameters to train"),
    "meta": (lambda: network().to("meta"), ValueError, "to_empty"),
    "sizes": (
        lambda: [network(), mnvi.Sequential(mnvi.MNLinear(3, 4), nn.Tanh(), mnvi.MNLinear(4, 2))],
        ValueError,
        "model 1 differs from model 0: module 0 is",
    ),
    "activations": (
        lambda: [network(), network(), relu()],
        ValueError,
        r"model 2 .* module 1 is ReLU\(.*, not Tanh",
    ),
    "settings": (lambda: [with_dropout(0.1), with_dropout(0.2)], ValueError, "p=0.2.*, not Dropout"),
    "depth": (lambda: [network()[:1], network()[:2]], ValueError, "module 1 is Tanh.*, not None"),
    "frozen parts": (lambda: [network(), half_frozen()], ValueError, "parameter 0.weight .* frozen, not"),
    "precision": (lambda: [network(), network(seed=1).double()], ValueError, "float64.*, not .*float32"),
}


def sharing():
    first = network()
    return [first, mnvi.Sequential(first[0], nn.Tanh(), mnvi.MNLinear(5, 2))]


def sharing_a_bias():
    models = [network(), network(seed=1)]
    models[1][2].bias = models[0][2].bias
    return models


def one_pruned():
    models = [network(), network(seed=1)]
    mnvi.sparsity.prune(models[1], threshold=1.0)
    return models


def times(factor):
    def product(x):
        return factor * x

    return product


def squashed(function):
    model = network()
    model.squash = function
    return model


MODELS |= {
    "a shared module": (sharing, ValueError, "models 0 and 1 share 0, a MNLinear; copy it"),
    "a shared parameter": (sharing_a_bias, ValueError, "models 0 and 1 share 2.bias, a Parameter"),
    "one of them pruned": (one_pruned, ValueError, "pruned=True.*, not .*pruned=False"),
    "lazy layers": (
        lambda: [network(), nn.Sequential(nn.LazyLinear(2), network(2))],
        ValueError,
        "lazy layers, .* call each model with one batch first",
    ),
    "functions": (
        lambda: [squashed(torch.tanh), squashed(torch.relu)],
        ValueError,
        "attribute squash is relu, not tanh",
    ),
}


class Held:
    """Some object with a value."""

    def __init__(self, value):
        self.value = value

    def times(self, x):
        return self.value * x


class Shifted(mnvi.Module):
    """Adds a number that is in some way an attribute."""

    def __init__(self, name, value):
        super().__init__()
        self.net = network()
        setattr(self, name, value)

    def forward(self, x):
        return self.net(x)


def added(tensor):
    return lambda x: x + tensor


class Tempering(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(c))


def recursive(factor):
    def power(x, n):
        return power(factor * x, n - 1) if n else x

    return power


UNLIKE = {  # two values of an attribute that no parameter, buffer or text shows
    "a tensor": lambda c: torch.tensor([c, 1.0]),
    "a sparse tensor": lambda c: torch.tensor([c, 0.0]).to_sparse(),
    "a dict": lambda c: {"mu": c},
    "a dict of tensors": lambda c: {"mu": [torch.tensor(c)]},
    "a set": lambda c: {c, 1.0},
    "a scalar of numpy": numpy.float32,
    "an array": lambda c: numpy.array([c, 1.0]),
    "an object": Held,
    "an object within": lambda c: [Held((Held(c), 1))],
    "a closure over a tensor": lambda c: added(torch.tensor(c)),
    "a recursive closure": recursive,
    "a module that is none of its parts": lambda c: [Tempering(c)],
    "a method": lambda c: Held(c).times,
}  # fmt: skip


@pytest.mark.parametrize("name", ["mu", "_mu"])
@cases("make", UNLIKE)
def test_models_that_differ_in_an_attribute_are_refused_as_they_would_train_with_one(make, name):
    with torch.random.fork_rng(devices=[]):
        one, like, unlike = (torch.manual_seed(0) and Shifted(name, make(c)) for c in (2.0, 2.0, 3.0))
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match=f"model 1 differs from model 0: attribute {name} is .*, not .*"):
        mnvi.fit([one, unlike], PAIR, epochs=1, kl_weight=1.0)
    assert all(value.equal(before[key]) for key, value in one.state_dict().items())
    mnvi.fit([one, like], PAIR, epochs=1, kl_weight=0.0)


class Remembering(mnvi.Module):
    """Keeps its last output, counts its calls, and has parts with a private state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.net = nn.LSTM(3, 3, batch_first=True), network()
        self.last, self._calls, self._seen_shapes = None, 0, {}

    def forward(self, x):
        self._calls += 1
        self.last = self.net(x)
        self._seen_shapes["x"] = (x.shape, self._calls)
        return self.last


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_what_a_use_of_a_model_sets_makes_no_difference(tmp_path):
    models = [Remembering(), Remembering()]
    models[1](X)
    mnvi.predict(models[1], X, 2)
    models[1].register_forward_hook(lambda module, inputs, output: None)
    alone = Remembering()
    for _ in range(2):
        mnvi.fit(models, PAIR, epochs=1, kl_weight=1.0)
        mnvi.fit(alone, PAIR, epochs=1, kl_weight=1.0, checkpoint=tmp_path / "fit.pt")


@cases("row", MODELS)
def test_models_that_do_not_fit_are_refused(row):
    make, error, message = row
    with pytest.raises(error, match=message):
        mnvi.fit(make(), PAIR)


PAIRS = {
    "too few": ([PAIR], ValueError, "as many as there are models, 2; got 1"),
    "shapes": ([PAIR, (X[1:], LABELS[1:])], ValueError, r"equal shapes, got \(36, 3\), \(37, 3\)"),
    "no pairs": ([(X, X, LABELS), (X, X, LABELS)], TypeError, "data must be"),
    "NaN": ([PAIR, (with_nan(X, 2), LABELS)], ValueError, "data of model 1: x has NaN .* row 2"),
}


@cases("row", PAIRS)
def test_data_of_several_models_that_do_not_fit_are_refused(row):
    data, error, message = row
    with pytest.raises(error, match=message):
        mnvi.fit([network(), network(seed=1)], data)


class Counting(nn.Module):
    """Puts another tensor in place of its buffer, which vmap does not see."""

    def __init__(self):
        super().__init__()
        self.layer = mnvi.MNLinear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_a_buffer_assigned_in_forward_keeps_models_from_training_together():
    with pytest.raises(ValueError, match=r"cannot train in one vmap.*the buffer calls is assigned .* buffer\.copy_"):
        mnvi.fit([Counting(), Counting()], PAIR, epochs=2)
    model = Counting()
    mnvi.fit(model, PAIR, epochs=2, kl_weight=(1.0, 0.1), batch_size=37)
    assert model.calls == 3  # of two epochs and the first look at its output; trials went one by one, on copies


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_a_likelihood_that_is_part_of_a_model_serves_that_one_alone():
    likelihood = Gaussian()
    models = [network(outputs=1), network(outputs=1, seed=1)]
    for each in models:
        each.likelihood = copy.deepcopy(likelihood)
    models[0].likelihood = likelihood
    with pytest.raises(ValueError, match="a part of one of the models"):
        mnvi.fit(models, TARGET, likelihood, epochs=2)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.likelihood = network(outputs=1), Gaussian()

        def forward(self, x):
            return self.net(x)

    model = Both()
    before = model.likelihood.log_scale.clone()
    history = mnvi.fit(model, TARGET, model.likelihood, epochs=2, kl_weight=(1.0, 0.1))
    assert history.likelihood is model.likelihood
    assert not model.likelihood.log_scale.equal(before)


def test_batches_of_one_are_refused_where_batch_norm_would():
    model = mnvi.Sequential(mnvi.MNLinear(3, 4), nn.BatchNorm1d(4), mnvi.MNLinear(4, 2)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"does not train on batches of one example \(Expected more than 1"):
        mnvi.fit(model, PAIR, epochs=2, batch_size=1)
    assert all(model.state_dict()[name].equal(value) for name, value in before.items())
    assert not any(part.training for part in model.modules())


class Mislabelled(Dataset):
    """Its example 30 has a label that there is not."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], LABELS[i] + 5 * (i == 30)


def test_a_wrong_label_of_a_dataset_names_the_batch_and_leaves_the_modes():
    model = network().eval()
    with pytest.raises(ValueError, match=r"epoch 1, the batch of examples (\d+, )*30\b.*: target has label \d at row"):
        mnvi.fit(model, Mislabelled(), epochs=2, kl_weight=1.0, batch_size=8)
    assert not any(part.training for part in model.modules())


def test_a_checkpoint_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").touch()
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OSError):
        mnvi.fit(model, PAIR, epochs=2, kl_weight=1.0, checkpoint=tmp_path / "file" / "fit.pt")
    assert all(model.state_dict()[name].equal(value) for name, value in before.items())


def test_nothing_trains_in_inference_mode():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"call mnvi\.fit outside"):
        mnvi.fit(network(), PAIR)


def test_equal_functions_are_one_architecture():
    models = [squashed(times(2.0)), squashed(times(2.0))]
    mnvi.fit(models, PAIR, epochs=1, kl_weight=0.0)
