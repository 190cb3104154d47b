"""Optimisers that were made before a conversion warn of variances that they leave as they are."""

import warnings

import pytest
import torch
from torch import nn

import mnvi
from mnvi import to_bayesian
from tests.cases import cases
from tests.models import X

pytestmark = pytest.mark.usefixtures("float64")


def trained(plain, prepare=lambda model: None, steps=2, convert=to_bayesian):
    """Training steps of an optimiser that was made before the conversion; the warnings that they gave."""
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.01)
    model = convert(plain)
    prepare(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimiser.zero_grad()
            (model(X).square().mean() + mnvi.kl(model) / 100).backward()
            optimiser.step()
    return caught


def plain_mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def test_an_optimiser_made_before_the_conversion_warns_once_at_its_step():
    caught = trained(plain_mlp(), steps=3)
    assert [warning.category for warning in caught] == [UserWarning]
    assert caught[0].filename == __file__
    assert "made before to_bayesian and steps the means of '0' and '2'" in str(caught[0].message).replace(
        ", '2'", " and '2'"
    )


def freeze(model):
    for layer in (model[0], model[2]):
        layer.posterior.requires_grad_(False)


def test_means_may_be_trained_alone():
    assert not trained(plain_mlp(), freeze)
    model = to_bayesian(plain_mlp())  # an optimiser made afterwards is what its maker wanted
    optimiser = torch.optim.SGD([model[0].weight, model[2].weight], lr=0.01)
    model.kl().backward()
    optimiser.step()


OTHERS = {
    "natural gradient": lambda model: mnvi.optim.NaturalGradient(model, lr=0.1, every=10),
    "groups": lambda model: torch.optim.Adam(mnvi.parameter_groups(model)[1:]),
}


@cases("other", OTHERS)
def test_variances_may_be_in_another_optimiser_whenever_it_steps(other):
    kept = []
    assert not trained(plain_mlp(), lambda model: kept.append(other(model)), steps=4)


def test_variances_may_be_added_to_the_earlier_optimiser():
    plain = plain_mlp()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.01)
    model = to_bayesian(plain)
    optimiser.add_param_group({"params": [p for i in (0, 2) for p in model[i].posterior.parameters()]})
    model.kl().backward()
    optimiser.step()


def test_a_layer_whose_variances_were_forgotten_is_named_alone():
    plain = plain_mlp()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.01)
    model = to_bayesian(plain)
    optimiser.add_param_group({"params": list(model[0].posterior.parameters())})
    model.kl().backward()
    with pytest.warns(UserWarning, match="means of '2', but"):
        optimiser.step()


def test_variances_may_be_stepped_by_hand():
    plain = plain_mlp()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.01)
    model = to_bayesian(plain)
    for _ in range(2):
        model.kl().backward()
        with torch.no_grad():
            for p in (p for i in (0, 2) for p in model[i].posterior.parameters()):
                p.sub_(0.01 * p.grad)
        optimiser.step()


def test_an_optimiser_of_the_plain_training_that_steps_no_more_says_nothing():
    plain = plain_mlp()
    earlier = torch.optim.Adam(plain.parameters())
    plain(X).sum().backward()
    earlier.step()
    model = to_bayesian(plain)
    optimiser = torch.optim.Adam(mnvi.parameter_groups(model))
    for _ in range(2):
        model.kl().backward()
        optimiser.step()
    other = nn.Linear(4, 3)
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    other(X).sum().backward()
    elsewhere.step()
