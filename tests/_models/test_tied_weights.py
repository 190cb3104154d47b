"""One parameter in two places of a model is refused by what would give it two posteriors."""

import pytest
import torch
from torch import nn

import mnvi
from mnvi import MNLinear, to_bayesian
from mnvi.layers import BayesianLayer
from tests.cases import cases

pytestmark = pytest.mark.usefixtures("float64")


class LanguageModel(nn.Module):
    """An embedding whose weight is that of the output layer too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embedding(tokens))))


def two_linears():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


def aliased():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model.register_parameter("alias", model[0].weight)
    return model


TIED = {
    "embedding": (
        LanguageModel,
        {"skip": "embedding"},
        r"'embedding.weight' and 'head.weight'.*=\['embedding', 'head'\]",
    ),
    "linears": (two_linears, {}, r"'0.weight' and '2.weight'"),
    "one of two linears": (two_linears, {"skip": "0"}, r"'0.weight' and '2.weight'"),
    "the other of two linears": (two_linears, {"only": ["0", "3"]}, r"'0.weight' and '2.weight'"),
    "alias": (aliased, {}, r"'alias' and '0.weight'"),
}


@pytest.mark.filterwarnings("ignore:no posterior for")
@cases("row", TIED)
def test_a_weight_that_stands_in_two_places_is_refused_and_nothing_changes(row):
    build, options, message = row
    model = build()
    kinds, state = [type(module) for module in model.modules()], list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        to_bayesian(model, **options)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == state
    assert not model._forward_hooks


def test_skipping_every_place_of_a_tied_weight_converts_the_rest():
    model = to_bayesian(LanguageModel(), skip=["embedding", "head"])
    assert [name for name, module in model.named_modules() if isinstance(module, BayesianLayer)] == ["hidden"]
    assert model.head.weight is model.embedding.weight
    model = to_bayesian(two_linears(), skip=["0", "2"])
    assert [isinstance(module, BayesianLayer) for module in model.children()] == [False, False, False, True]


def test_a_bias_may_be_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    assert to_bayesian(model)[1].bias is model[0].bias


def test_pruning_refuses_a_weight_that_was_tied_later():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": MNLinear(4, 5), "other": MNLinear(4, 4)})
    model["embedding"].weight = model["head"].weight
    before = model["head"].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'embedding.weight' and 'head.weight'"):
        mnvi.sparsity.prune(model, fraction=0.9)
    assert torch.equal(model["embedding"].weight, before)
    mnvi.sparsity.prune(model, fraction=0.5, skip=["head"])
    assert torch.equal(model["embedding"].weight, before)
    assert (model["other"].weight == 0).sum() == 8


def test_the_kl_counts_no_mean_twice():
    model = mnvi.Sequential(MNLinear(4, 4), MNLinear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="'0' and '1' have one parameter as their mean"):
        model.kl()
