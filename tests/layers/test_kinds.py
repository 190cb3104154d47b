"""The table of the kinds of layers: what it says of a layer is what the layer does."""

import copy

import pytest
import torch
from torch import nn

import mnvi
from mnvi.layers.kinds import KINDS, kind_of, names, plain_kind
from tests.cases import cases

# Each torch layer of the table, and an input of it: a new kind is a row here.
PLAIN = {
    "linear": (nn.Linear(3, 5), (2, 3)),
    "conv1d": (nn.Conv1d(3, 5, 2), (2, 3, 4)),
    "conv2d": (nn.Conv2d(3, 5, 2), (2, 3, 4, 4)),
    "conv3d": (nn.Conv3d(3, 5, 2), (2, 3, 4, 4, 4)),
    "transposed1d": (nn.ConvTranspose1d(3, 5, 2), (2, 3, 4)),
    "transposed2d": (nn.ConvTranspose2d(3, 5, 2), (2, 3, 4, 4)),
    "transposed3d": (nn.ConvTranspose3d(3, 5, 2), (2, 3, 4, 4, 4)),
}


def test_every_torch_layer_of_the_table_has_a_row_here():
    assert {type(plain) for plain, _ in PLAIN.values()} == {kind.plain for kind in KINDS if kind.plain}


@cases("row", PLAIN)
def test_both_sides_of_a_row_are_found_and_say_the_same(row):
    plain, _ = row
    bayesian = mnvi.to_bayesian(copy.deepcopy(plain))
    kind = kind_of(plain)
    assert kind is not None
    assert kind_of(bayesian) is kind
    assert type(bayesian) is kind.bayesian
    assert plain_kind(plain) is plain_kind(bayesian) is type(plain)
    assert kind.name == type(plain).__name__
    assert kind.name in names()


@cases("row", PLAIN)
def test_the_output_axis_counts_what_comes_out_and_the_other_what_goes_in(row):
    plain, shape = row
    kind, x = kind_of(plain), torch.randn(shape)
    assert plain.weight.shape[kind.output_axis] == plain(x).shape[1]
    assert plain.weight.shape[kind.input_axis] == x.shape[1]
    assert kind.is_transposed is (kind.output_axis == 1)


@pytest.mark.parametrize("base", [nn.Linear, mnvi.MNLinear])
def test_a_subclass_is_in_no_row_unless_it_is_taken_for_what_it_derives_from(base):
    layer = type("Own", (base,), {})(3, 5)
    assert kind_of(layer) is None
    assert plain_kind(layer) is None
    assert kind_of(layer, subclasses=True) is kind_of(base(3, 5))


@pytest.mark.parametrize("make", [nn.Linear, mnvi.MNLinear])
def test_a_constrained_layer_is_of_its_kind(make):
    layer = mnvi.constrain(make(4, 4), "weight", mnvi.parametrizations.Cayley())
    assert type(layer) is not make
    assert plain_kind(layer) is nn.Linear


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Embedding(3, 4), nn.Sequential(nn.Linear(2, 2))])
def test_other_modules_are_in_no_row(module):
    assert kind_of(module) is kind_of(module, subclasses=True) is plain_kind(module) is None
