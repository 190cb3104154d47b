"""Held means stay zero through the steps of optimisers, and nothing else does."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mnvi
from mnvi import MNConv2d, MNLinear
from mnvi.sparsity import find_thresholds, hold, prune, signal_to_noise
from tests.laws import randomise

OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "decay": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


def make(kind="mlp"):
    torch.manual_seed(0)
    if kind == "mlp":
        return mnvi.Sequential(MNLinear(6, 8), nn.ReLU(), MNLinear(8, 3))
    return mnvi.Sequential(MNConv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), MNLinear(36, 3))


def images(kind):
    return torch.randn(20, 6) if kind == "mlp" else torch.randn(20, 2, 3, 3)


def step(model, optimiser, x):
    optimiser.zero_grad()
    (F.cross_entropy(model(x), torch.arange(len(x)) % 3) + mnvi.kl(model) / 100).backward()
    optimiser.step()


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_held_means_stay_zero_and_all_else_trains(kind, optimiser):
    model, x = make(kind), images(kind)
    optimiser = OPTIMISERS[optimiser](model.parameters())
    step(model, optimiser, x)  # momentum that goes on
    below = {name: signal_to_noise(layer) < 8 for name, layer in mnvi.bayesian_layers(model)}
    held = hold(model, 8.0)
    before = copy.deepcopy(model)
    assert held.count == sum(int(each.sum()) for each in below.values()) > 10
    for _ in range(3):
        step(model, optimiser, x)
    for name, layer in mnvi.bayesian_layers(model):
        old = before.get_submodule(name)
        assert torch.equal(layer.weight == 0, below[name])
        assert not torch.equal(layer.weight, old.weight)
        assert not torch.equal(layer.variance(), old.variance())
        assert not layer.is_pruned  # noise and local reparametrisation go on
        assert (layer.draw_weight() != 0).all()
    held.release()
    step(model, optimiser, x)
    assert all((layer.weight != 0).all() for _, layer in mnvi.bayesian_layers(model))


@pytest.mark.filterwarnings("ignore:nothing is left of")
def test_what_thresholds_drop_is_held():
    model, x = make(), images("mlp")
    found = find_thresholds(model, (x, torch.arange(20) % 3), loss=10.0, groups=("weights", "columns"))
    pruned = prune(copy.deepcopy(model), threshold=found)
    held = hold(model, found)
    for (_, layer), (_, other) in zip(mnvi.bayesian_layers(model), mnvi.bayesian_layers(pruned), strict=True):
        assert torch.equal(layer.weight, other.mean_weight())
    assert held.count > 0
    held.release()


@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_whole_units_are_held(groups):
    model = make()
    least = max(signal_to_noise(model[0], groups).median().item(), signal_to_noise(model[2], groups).median().item())
    hold(model, least, groups=groups).release()
    zero = model[0].weight == 0
    whole = zero.all(1 if groups == "rows" else 0)
    assert torch.equal(zero.any(1 if groups == "rows" else 0), whole)
    assert whole.any()


def test_after_loading_zeros_are_held_again():
    model, x = make(), images("mlp")
    hold(model, 8.0).release()
    again = make()
    again.load_state_dict(model.state_dict())
    held = hold(again)
    zero = again[0].weight == 0
    step(again, torch.optim.Adam(again.parameters(), 0.1), x)
    assert torch.equal(again[0].weight == 0, zero)
    assert zero.any()
    held.release()


def test_means_are_held_where_the_model_goes_and_while_the_result_is_dropped():
    model, x = make(), images("mlp").double()
    hold(model, 8.0)
    gc.collect()
    model.double()  # other tensors
    zero = model[0].weight == 0
    step(model, torch.optim.Adam(model.parameters(), 0.1), x)
    assert torch.equal(model[0].weight == 0, zero)
    assert zero.any()


def test_a_model_that_is_gone_leaves_no_masks_behind():
    held = hold(make(), 8.0)
    gc.collect()
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert not held._held
    held.release()
    held.release()


def test_pruned_layers_may_be_held_too():
    model, x = make(), images("mlp")
    prune(model, fraction=0.3)
    held = hold(model, 8.0)
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    zero = model[0].weight == 0
    step(model, optimiser, x)
    held.release()
    assert torch.equal(model[0].weight == 0, zero)
    step(model, optimiser, x)
    assert torch.equal(model[0].weight == 0, model[0].pruned != 0)


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), "much"])
def test_bad_thresholds_change_nothing(threshold):
    model = randomise(make())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match="threshold"):
        hold(model, threshold)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_plain_models_have_nothing_to_hold():
    with pytest.raises(ValueError, match="only Bayesian layers"):
        hold(nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_zeros_of_a_compacted_network_are_held_while_it_trains_on(kind):
    model, x = make(kind), images(kind)
    small = mnvi.sparsity.compact(prune(model, fraction=0.5)).train()
    weights = [parameter for parameter in small.parameters() if parameter.ndim > 1]
    zeros, before = [weight == 0 for weight in weights], [weight.detach().clone() for weight in weights]
    held = hold(small)
    assert held.count == sum(int(zero.sum()) for zero in zeros) > 0
    optimiser = torch.optim.Adam(small.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(small(x), torch.arange(len(x)) % 3).backward()
        optimiser.step()
    assert all(torch.equal(weight == 0, zero) for weight, zero in zip(weights, zeros, strict=True))
    assert all(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    held.release()


def test_plain_layers_beside_bayesian_ones_are_not_held():
    model = mnvi.Sequential(MNLinear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)  # as a last layer may start
    held = hold(model)
    step(model, torch.optim.Adam(model.parameters(), 0.1), images("mlp"))
    assert (model[2].weight != 0).any()
    held.release()


def test_thresholds_that_leave_nothing_are_told():
    model, x = make(), images("mlp")
    found = find_thresholds(model, (x, torch.zeros(20, dtype=torch.long)), loss=100.0)
    with pytest.warns(UserWarning, match="nothing is left of"):
        hold(model, found).release()
