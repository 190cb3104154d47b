"""Thresholds found on held-out data: against a search by hand, and the promise that pruning costs what is allowed."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mnvi
from mnvi import likelihoods, posteriors
from mnvi.sparsity import find_thresholds, prune, report, signal_to_noise
from mnvi.sparsity._bisection import search
from mnvi.sparsity._cuts import find_cuts
from tests.cases import cases

DIAGONAL = {"posterior": posteriors.Diagonal()}


def classifier(seed=0):
    """Means and deviations of every size, and targets that the model itself gives to most of 200 examples."""
    torch.manual_seed(seed)
    layers = [mnvi.MNLinear(6, 20, **DIAGONAL), nn.ReLU(), mnvi.MNLinear(20, 10, **DIAGONAL), nn.ReLU()]
    model = mnvi.Sequential(*layers, mnvi.MNLinear(10, 4, **DIAGONAL))
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.mul_(torch.randn_like(layer.weight).exp())
            layer.posterior.log_scale.add_(torch.randn_like(layer.posterior.log_scale))
    x = torch.randn(200, 6)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::10] = torch.randint(4, (20,))
    return model, x, y


@torch.no_grad()
def error(model, x, y):
    return 100 * (model.eval()(x).argmax(1) != y).double().mean().item()


@torch.no_grad()
def nll(model, x, y):
    return F.cross_entropy(model.eval()(x).double(), y).item()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unpruned(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer.is_pruned for _, layer in mnvi.bayesian_layers(model))


# The promise ----------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10),
    loss=st.sampled_from([0.0, 0.5, 2.0, 10.0, 100.0, None]),
    groups=st.sampled_from(["weights", "rows", "columns", ("rows", "columns"), ("weights", "rows")]),
)
@settings(max_examples=40, deadline=None)
def test_pruning_costs_no_more_error_than_is_allowed(seed, loss, groups):
    model, x, y = classifier(seed)
    before = error(model, x, y)
    found = find_thresholds(model, (x, y), loss=loss, groups=groups)
    assert found.before == pytest.approx(before)
    wrong = 100 * (model(x).argmax(1) != y).double()
    allowed = before + (wrong.std().item() / math.sqrt(200) if loss is None else loss)
    assert found.allowed == pytest.approx(allowed)
    prune(model, threshold=found)
    assert error(model, x, y) == pytest.approx(found.after)
    assert error(model, x, y) <= allowed + 1e-9
    assert error(model, x, y) >= 0


@given(seed=st.integers(0, 10), loss=st.sampled_from([0.0, 0.01, 0.1, 1.0, None]))
@settings(max_examples=20, deadline=None)
def test_pruning_costs_no_more_nll_than_is_allowed(seed, loss):
    model, x, y = classifier(seed)
    before = nll(model, x, y)
    found = find_thresholds(model, (x, y), loss=loss, measure="nll")
    assert prune(model, threshold=found) is model
    assert nll(model, x, y) == pytest.approx(found.after, rel=1e-5)
    assert nll(model, x, y) <= found.allowed + 1e-6
    assert found.before == pytest.approx(before, rel=1e-5)


def test_more_is_pruned_where_more_is_allowed_and_it_is_worth_it():
    model, x, y = classifier()
    left = [report(prune(classifier()[0], data=(x, y), loss=loss)).left for loss in (0.0, 5.0, 20.0)]
    assert left[0] < report(model).weights
    assert left[0] > left[1] > left[2] > 0
    model, x, y = classifier()
    prune(model, data=(x, y), loss=0.0)
    # No other set of as many weights is promised to be worse, but those of lowest score should be better than others.
    other, *_ = classifier()
    prune(
        other, fraction=1 - report(model).left / report(model).weights, score=lambda layer, _: -signal_to_noise(layer)
    )
    assert error(other, x, y) > error(model, x, y) + 10


def test_layers_and_kinds_have_thresholds_of_their_own_that_read_as_prune_reads_them():
    model, x, y = classifier()
    found = find_thresholds(model, (x, y), loss=5.0, groups=("rows", "columns"))
    assert [(each.name, each.groups) for each in found.layers] == [
        *(("0", "rows"), ("2", "rows"), ("0", "columns"), ("2", "columns"), ("4", "columns"))
    ]
    assert len({each.threshold for each in found.layers}) > 1
    for each in found.layers:
        scores = signal_to_noise(model.get_submodule(each.name), each.groups)
        assert each.left == (scores >= each.threshold).sum()
        assert each.count == len(scores)
    prune(model, threshold=found)
    by_hand, *_ = classifier()
    dropped = {
        (each.name, each.groups): signal_to_noise(by_hand.get_submodule(each.name), each.groups) < each.threshold
        for each in found.layers
    }
    for (name, groups), drop in dropped.items():
        layer = by_hand.get_submodule(name)
        layer.pruned.masked_fill_(drop[:, None] if groups == "rows" else drop, 1)
    for _, layer in mnvi.bayesian_layers(by_hand):
        layer.settle_()
    assert all(torch.equal(value, by_hand.state_dict()[name]) for name, value in model.state_dict().items())


# The search -----------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_largest_sum_that_fits_where_costs_are_monotone():
    model, *_ = classifier()
    cuts = find_cuts(model, ("weights",), signal_to_noise, ())
    trials = []

    def fits(thresholds):
        dropped = [int((cut.scores < each).sum()) for cut, each in zip(cuts, thresholds, strict=True)]
        trials.append((thresholds, dropped))
        return dropped[0] <= 60 and dropped[1] <= 100 and dropped[2] <= 13

    found = search(cuts, fits)
    dropped = [int((cut.scores < each).sum()) for cut, each in zip(cuts, found, strict=True)]
    assert dropped[0] in range(57, 61)  # of 120; a single candidate is a share of 1/32 of what is left
    assert dropped[1] in range(96, 101)  # of 200
    assert dropped[2] in range(12, 14)  # of 40
    assert (found, dropped) in trials  # what is returned was measured
    assert len(trials) <= 8 + 3 * 5


def test_where_nothing_fits_no_threshold_is_raised():
    model, *_ = classifier()
    cuts = find_cuts(model, ("rows", "columns"), signal_to_noise, ())
    assert search(cuts, lambda _: False) == [0.0] * 6


def test_what_is_pruned_already_stays_and_counts_as_dropped():
    model, x, y = classifier()
    prune(model, fraction=0.3)
    before = [layer.pruned.clone() for _, layer in mnvi.bayesian_layers(model)]
    wrong = error(model, x, y)
    prune(model, data=(x, y), loss=1.0)
    for (_, layer), mask in zip(mnvi.bayesian_layers(model), before, strict=True):
        assert layer.pruned[mask != 0].eq(1).all()
    assert error(model, x, y) <= wrong + 1.0 + 1e-9


# Outputs --------------------------------------------------------------------------------------------------------------


class OutOfOrder(mnvi.Module):
    """The layer that is called last is made first, and a function comes after it."""

    def __init__(self):
        super().__init__()
        self.last, self.first = mnvi.MNLinear(5, 4), mnvi.MNLinear(6, 5)

    def forward(self, x):
        return self.last(self.first(x).relu()) + 0 * x.sum(1, keepdim=True)


def test_the_rows_of_the_layer_that_is_called_last_stay():
    torch.manual_seed(0)
    model, x, y = OutOfOrder(), torch.randn(30, 6), torch.randint(4, (30,))
    found = find_thresholds(model, (x, y), loss=100.0, groups="rows")
    assert found.outputs == "last"
    assert [each.name for each in found.layers] == ["first"]
    assert "the rows of layer 'last' are the outputs and stay" in str(found)
    plain_head = nn.Sequential(mnvi.MNLinear(6, 5), nn.Linear(5, 4))
    assert find_thresholds(plain_head, (x, y), loss=100.0, groups="rows").outputs is None
    assert report(prune(plain_head, data=(x, y), loss=100.0, groups="rows")).layers[0].rows_left == 1
    assert not any(model.last._forward_pre_hooks.values())


def test_what_is_skipped_stays():
    model, x, y = classifier()
    found = find_thresholds(model, (x, y), loss=50.0, skip=["0"])
    assert {each.name for each in found.layers} == {"2", "4"}
    prune(model, threshold=found)
    assert not model[0].is_pruned
    assert model[2].is_pruned


# Data and likelihoods -------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.pairs)


FORMS = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dataset": TensorDataset,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), 7, shuffle=True),
    "stream": lambda x, y: DataLoader(Stream(x, y), 64),
    "mappings": lambda x, y: [{"input": x[:50], "labels": y[:50]}, {"input": x[50:], "labels": y[50:]}],
}


@cases("form", FORMS)
def test_every_form_of_data_is_the_same_data(form):
    model, x, y = classifier()
    expected = find_thresholds(model, (x, y), loss=2.0)
    data = form(x, y)
    data = DataLoader(data, batch_size=None) if isinstance(data[0] if isinstance(data, list) else 0, dict) else data
    found = find_thresholds(model, data, loss=2.0)
    assert found.layers == expected.layers
    assert (found.before, found.after, found.examples) == (
        pytest.approx(expected.before),
        pytest.approx(expected.after),
        200,
    )


def regression():
    torch.manual_seed(0)
    model = mnvi.Sequential(mnvi.MNLinear(6, 5, **DIAGONAL), nn.Tanh(), mnvi.MNLinear(5, 2, **DIAGONAL))
    x = torch.randn(40, 6)
    return model, x, model.eval()(x).detach() + 0.3 * torch.randn(40, 2)


def test_a_regression_is_measured_by_its_nll():
    model, x, y = regression()
    likelihood = likelihoods.Gaussian(0.3)
    found = find_thresholds(model, (x, y), loss=0.05, likelihood=likelihood)
    assert found.measure == "nll"
    normal = torch.distributions.Normal(model(x), 0.3)
    assert found.before == pytest.approx(-normal.log_prob(y).sum(1).mean().item(), rel=1e-5)
    prune(model, threshold=found)
    normal = torch.distributions.Normal(model(x), 0.3)
    assert found.after == pytest.approx(-normal.log_prob(y).sum(1).mean().item(), rel=1e-5)
    assert found.after <= found.before + 0.05 + 1e-6
    assert report(model).left < report(model).weights


def test_errors_of_labels_and_of_what_is_ignored():
    torch.manual_seed(0)
    model, x = nn.Sequential(mnvi.MNLinear(6, 3)), torch.randn(50, 6)
    labels = (torch.rand(50, 3) < 0.5).long()
    found = find_thresholds(model, (x, labels), likelihood="bernoulli")
    wrong = 100 * ((model.eval()(x) > 0) != labels).double().mean(1)
    assert found.before == pytest.approx(wrong.mean().item())
    assert found.allowed - found.before == pytest.approx(wrong.std().item() / 50**0.5)
    target = torch.randint(3, (50,))
    target[:20] = -100
    found = find_thresholds(model, (x, target))
    assert found.before == pytest.approx(error(model, x[20:], target[20:]) * 30 / 50)  # nothing seen, nothing wrong


def test_batch_norm_and_modes_are_left_as_they_are():
    torch.manual_seed(0)
    model = mnvi.Sequential(mnvi.MNLinear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), mnvi.MNLinear(8, 4)).train()
    model[2].eval()
    before = state(model)
    find_thresholds(model, (torch.randn(30, 6), torch.randint(4, (30,))))
    assert_unpruned(model, before)
    assert [module.training for module in model] == [True, True, False, True]


# What does not work ---------------------------------------------------------------------------------------------------


def test_an_allowance_that_nothing_meets_prunes_nothing_and_says_so():
    model = mnvi.Sequential(mnvi.MNLinear(2, 2, bias=False, **DIAGONAL))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    x = torch.eye(2).repeat(20, 1) + 0.01 * torch.randn(40, 2)
    data = x, torch.tensor([0, 1] * 20)
    before = state(model)
    with pytest.warns(UserWarning, match=r"nothing was pruned: every attempt costs more .*held-out NLL"):
        prune(model, data=data, loss=0.0, measure="nll", groups="columns")
    assert_unpruned(model, before)


def test_a_layer_of_which_nothing_is_left_is_named():
    model, x, _ = classifier()
    constant = torch.full((200,), 2)  # by the biases alone
    with torch.no_grad():
        model[4].bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    with pytest.warns(UserWarning, match="nothing is left of .*'4', .*are they few, or the model untrained"):
        prune(model, data=(x, constant), loss=1.0)
    assert error(model, x, constant) <= error(classifier()[0], x, constant) + 1.0


def test_few_examples_are_said_where_their_standard_error_decides(recwarn):
    model, x, y = classifier()
    prune(model, data=(x[:49], y[:49]), loss=1.0)
    prune(model, data=(x[:50], y[:50]))
    assert not recwarn.list
    model, x, y = classifier()
    with pytest.warns(UserWarning, match="20 held-out examples are few .* less than 5 points of error") as caught:
        prune(model, data=(x[:20], y[:20]))
    assert [each.filename for each in caught] == [__file__]


X, Y = torch.randn(8, 6), torch.randint(4, (8,))
REPEATED_X, REPEATED_Y, WRONG_LABEL = X.repeat(75, 1), Y.repeat(75), Y.repeat(75)
REPEATED_X[517, 2], WRONG_LABEL[599] = math.nan, 10
BAD = {
    "negative": ({"loss": -0.1}, ValueError, "loss must be finite, at least 0, got -0.1"),
    "nan": ({"loss": math.nan}, ValueError, "loss must be finite"),
    "text": ({"loss": "1"}, TypeError, "loss must be a number"),
    "measure": ({"measure": "accuracy"}, ValueError, "measure must be one of 'error', 'nll'"),
    "no classes": ({"measure": "error", "likelihood": likelihoods.Gaussian(1.0)}, ValueError, "needs classes"),
    "no noise": ({"likelihood": likelihoods.Gaussian(0.0)}, ValueError, "without noise has no NLL"),
    "likelihood": ({"likelihood": "normal"}, ValueError, "likelihood must be .*'categorical'"),
    "groups": ({"groups": ()}, ValueError, "groups must name kinds of groups"),
    "twice": ({"groups": ("rows", "rows")}, ValueError, "each once"),
    "unknown": ({"groups": ("rows", "filters")}, ValueError, "groups must be one of"),
    "array": ({"data": (X.numpy(), Y.numpy())}, TypeError, r"data must be a pair \(x, y\) of tensors"),
    "tensor": ({"data": X}, TypeError, r"data must be a pair .* a tensor of shape \(8, 6\)"),
    "three": ({"data": (X, X, Y)}, TypeError, "data must be a pair"),
    "lengths": ({"data": (X, Y[:5])}, ValueError, r"as many targets as inputs, got .*\(8, 6\) and .*\(5,\)"),
    "empty": ({"data": (X[:0], Y[:0])}, ValueError, "data has no examples"),
    "empty loader": ({"data": DataLoader([])}, ValueError, "data has no examples"),
    "one": ({"data": (X[:1], Y[:1])}, ValueError, "one held-out example has no standard error"),
    "no targets": ({"data": DataLoader(X, 4)}, ValueError, r"must be \[x, target\]"),
    "labels": ({"data": (X, Y + 10)}, ValueError, "the model returns 4 classes, 0..3"),
    "shape": ({"data": (X, Y[:, None])}, ValueError, "takes a target"),
    "NaN": ({"data": (X * math.nan, Y)}, ValueError, r"data: x has NaN or infinite entries at rows 0, 1, 2 and 5 more"),
    "one NaN": ({"data": (REPEATED_X, REPEATED_Y)}, ValueError, r"data: x has NaN .* at row 517 \(1 of 600 examples\)"),
    "NaN in a loader": (
        {"data": DataLoader(TensorDataset(REPEATED_X, REPEATED_Y), 100)},
        ValueError,
        "x, .* has NaN or infinite entries at row 17, and so has the prediction",
    ),
    "label": ({"data": (X.repeat(75, 1), WRONG_LABEL)}, ValueError, "data: target has label 10 at row 599"),
    "integers": ({"data": (X.round().long(), Y)}, ValueError, r"of torch.int64, .* torch.float32: x.float\(\) fits"),
    "double": ({"data": (X.double(), Y)}, ValueError, r"of torch.float64, .* torch.float32: x.float\(\) fits"),
    "double in a loader": ({"data": DataLoader(TensorDataset(X.double(), Y))}, ValueError, r"x.float\(\) fits"),
    "one example": ({"data": (X[0], Y[0])}, ValueError, r"a single example is a batch as \(x\[None\], y\[None\]\)"),
    "features": ({"data": (X[:, :5], Y)}, Exception, "5"),
    "threshold": ({"threshold": 0.5}, ValueError, "either threshold or fraction or data, got threshold=0.5"),
    "fraction": ({"fraction": 0.5}, ValueError, "either threshold or fraction or data"),
    "skip": ({"skip": ["7"]}, ValueError, "no module named '7'"),
    "score": ({"score": lambda layer, _: layer.weight[0]}, ValueError, "must have shape"),
}


@cases("options, error, message", BAD)
def test_errors_leave_the_model_unchanged(options, error, message):
    model, *_ = classifier()
    model.train()
    before = state(model)
    with pytest.raises(error, match=message):
        prune(model, **{"data": (X, Y), **options})
    assert_unpruned(model, before)
    assert model.training


@pytest.mark.parametrize("measure", ["error", "nll"])
def test_a_model_that_returns_nan_has_no_error_to_compare(measure):
    model, x, y = classifier()
    with torch.no_grad():
        model[4].bias[1] = math.nan
    with pytest.raises(ValueError, match=f"the model's mean {measure} on the held-out examples is nan"):
        find_thresholds(model, (x, y), measure=measure)


def test_other_errors():
    with pytest.raises(ValueError, match="only Bayesian layers can be pruned and there is none"):
        prune(nn.Linear(6, 4), data=(X, Y))
    with pytest.raises(ValueError, match="the rows of layer '0' are the model's outputs, and nothing else is pruned"):
        prune(nn.Sequential(mnvi.MNLinear(6, 4)), data=(X, Y), groups="rows")
    for options in ({"loss": 0.1}, {"measure": "nll"}, {"likelihood": "poisson"}):
        with pytest.raises(ValueError, match="belong to data"):
            prune(mnvi.MNLinear(6, 4), fraction=0.5, **options)
    model, x, y = classifier()
    found = find_thresholds(model, (x, y))
    with pytest.raises(ValueError, match="this one has no Bayesian layer '2'"):
        prune(nn.Sequential(mnvi.MNLinear(6, 4)), threshold=found)


def test_an_interrupt_leaves_the_model_unpruned(monkeypatch):
    model, x, y = classifier()
    model.train()
    before, calls = state(model), iter(range(5))
    cross = likelihoods.Categorical.check_target

    def interrupted(self, *args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return cross(self, *args)

    monkeypatch.setattr(likelihoods.Categorical, "check_target", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(model, data=(x, y), loss=5.0)
    assert_unpruned(model, before)
    assert model.training


# Several kinds of groups with a threshold or a fraction ---------------------------------------------------------------


def test_several_kinds_are_scored_before_anything_is_dropped():
    model, *_ = classifier()
    scores = {groups: signal_to_noise(model[0], groups) for groups in ("rows", "columns")}
    prune(model, fraction=0.25, groups=("rows", "columns"), skip=["2", "4"])
    rows, columns = (scores[groups].argsort() for groups in ("rows", "columns"))
    expected = torch.zeros(20, 6, dtype=torch.bool)
    expected[rows[:5]] = True
    expected[:, columns[:1]] = True
    assert torch.equal(model[0].pruned != 0, expected)
    other, *_ = classifier()
    value = scores["rows"].median().item()
    prune(other, threshold=value, groups=("columns", "rows"), skip=["2", "4"])
    expected = (scores["rows"] < value)[:, None] | (scores["columns"] < value)
    assert torch.equal(other[0].pruned != 0, expected)
