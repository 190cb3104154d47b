"""Gradual magnitude pruning: what goes first, how much is left at the end, and the schedule of Zhu & Gupta between."""

import copy

import pytest
import torch

from examples.baselines.magnitude import Magnitude, lamp, layers, weights_after
from examples.common.networks import build
from mnvi.sparsity import compact, report

SHAPE = 1, 8, 8


@pytest.fixture(params=["mlp", "vgg"])
def network(request):
    torch.manual_seed(0)
    return build(request.param, SHAPE, 10)


def masked(network, masks):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter, keep in masks.items():
            copied.get_parameter(names[id(parameter)]).mul_(keep)
    return copied.eval()


def test_scores_are_those_of_lamp():
    weight = torch.randn(4, 3, 2)
    squares = weight.double().square()
    expected = torch.stack([each / squares[squares >= each].sum() for each in squares.flatten()])
    torch.testing.assert_close(lamp(weight).flatten(), expected)
    assert lamp(weight).max() == 1
    assert lamp(torch.zeros(2, 2)).eq(0).all()


def test_the_largest_weights_of_every_layer_stay(network):
    masks = Magnitude(network, 500, 10).masks(9)
    assert sum(int(keep.sum()) for keep in masks.values()) == 500
    for weight, keep in masks.items():
        assert keep.any()
        assert weight.detach().abs()[keep].min() > weight.detach().abs()[~keep].max()
    assert {id(weight) for weight in masks} == {id(layer.weight) for layer in layers(network)}


def test_what_is_left_falls_by_the_cubic_schedule(network):
    whole = report(network).weights
    schedule = Magnitude(network, 500, 11)
    counts = [sum(int(keep.sum()) for keep in schedule.masks(i).values()) for i in range(11)]
    assert counts[0] == whole
    assert counts[7:] == [500] * 4  # 0.6 of 11 epochs are over
    assert sorted(counts, reverse=True) == counts
    s = 1 - 500 / whole
    half = s * (1 - (1 - 3 / 6.6) ** 3)  # equation 1 of the paper, initial sparsity 0
    assert counts[3] / whole == pytest.approx(1 - half, abs=2e-3)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs_end_with_what_is_wanted_too(network, epochs):
    masks = Magnitude(network, 500, epochs).masks(max(1, epochs - 1))
    assert sum(int(keep.sum()) for keep in masks.values()) == 500


def test_units_go_with_their_biases_and_what_follows(network):
    schedule = Magnitude(network, 4000, 10, units=True)
    masks = schedule.masks(9)
    small = compact(masked(network, masks))
    left = sum(layer.weight.numel() for layer in layers(small))
    assert left == weights_after(network, masks) <= 4000
    one_more = Magnitude(network, round(1.5 * left), 10, units=True).masks(9)
    assert weights_after(network, one_more) > left
    last = layers(network)[-1]
    assert last.weight not in masks
    for layer in layers(network)[:-1]:
        rows = masks[layer.weight].flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))  # whole units
        if layer.bias is not None:
            assert torch.equal(masks[layer.bias], rows.any(1))
        squares = layer.weight.detach().flatten(1).square().mean(1)
        assert not rows.all()
        assert squares[rows.any(1)].min() >= squares[~rows.any(1)].max()


def test_at_least_one_unit_of_a_layer_stays(network):
    masks = Magnitude(network, 1, 10, units=True).masks(9)
    assert all(keep.flatten(1).any(1).sum() == 1 for weight, keep in masks.items() if weight.dim() > 1)


def test_the_network_itself_is_only_read(network):
    before = copy.deepcopy(network.state_dict())
    for units in (False, True):
        Magnitude(network, 100, 10, units=units).masks(9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
