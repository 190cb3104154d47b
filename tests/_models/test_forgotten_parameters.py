"""A loss that depends on parameters which no optimiser has says so, once, after the first step of the model."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer

import mnvi
from mnvi import ELBO, MNLinear
from mnvi.likelihoods import Categorical, Gaussian, StudentT
from tests.cases import cases
from tests.models import X, mlp

pytestmark = pytest.mark.usefixtures("float64")

Y = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(elbo, model, nll, optimiser, steps=3, every=1):
    """The warnings of some steps of a training; the loss is ``nll(output)``, or of the objective's likelihood."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps * every):
            output = model(X)
            loss = elbo(output, Y, model)[0] if nll is None else elbo(nll(output), model)[0]
            loss.backward()
            if step % every == every - 1:
                optimiser.step()
                optimiser.zero_grad()
    return caught


def own(model, *more, **options):
    return torch.optim.Adam(mnvi.parameter_groups([model, *more]), **options)


def of_elbo():
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    return elbo, model, None, [elbo.likelihood]


def of_likelihood():
    likelihood = StudentT(shape=(3,))
    return ELBO(50), mlp(), lambda output: likelihood(output, Y), [likelihood]


def of_parameter():
    noise = nn.Parameter(torch.zeros(()))
    return ELBO(50), mlp(), lambda output: F.mse_loss(output, Y) * noise.exp() - noise, [noise]


FORGOTTEN = {"of the objective": of_elbo, "a likelihood": of_likelihood, "a free parameter": of_parameter}


@cases("made", FORGOTTEN)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_what_no_optimiser_has_is_said_once(made, every, fused):
    elbo, model, nll, _ = made()
    caught = trained(elbo, model, nll, own(model, fused=fused), every=every)
    assert [warning.category for warning in caught] == [UserWarning]
    assert caught[0].filename == __file__
    assert "parameter_groups([model, likelihood])" in str(caught[0].message)


@cases("made", FORGOTTEN)
def test_what_is_in_an_optimiser_trains_and_says_nothing(made):
    elbo, model, nll, beside = made()
    before = [
        p.detach().clone() for each in beside for p in ([each] if isinstance(each, nn.Parameter) else each.parameters())
    ]
    assert not trained(elbo, model, nll, own(model, *beside))
    after = [p for each in beside for p in ([each] if isinstance(each, nn.Parameter) else each.parameters())]
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@cases("made", FORGOTTEN)
def test_an_optimiser_of_its_own_may_step_later(made):
    elbo, model, nll, beside = made()
    later = torch.optim.Adam(mnvi.other_parameters([nn.Module(), *beside]))
    assert not trained(elbo, model, nll, own(model))
    assert later.param_groups


def frozen(elbo, model, beside):
    for each in beside:
        each.requires_grad_(False)


def by_hand(elbo, model, beside):
    """A step without an optimiser, of what is beside the model."""
    parameters = [p for each in beside for p in ([each] if isinstance(each, nn.Parameter) else each.parameters())]

    def step(*_):
        with torch.no_grad():
            for p in parameters:
                p.sub_(0.01 * p.grad)

    model.register_forward_pre_hook(lambda *_: step() if parameters[0].grad is not None else None)


@cases("made", FORGOTTEN)
@pytest.mark.parametrize("prepare", [frozen, by_hand])
def test_what_is_frozen_or_stepped_by_hand_says_nothing(made, prepare):
    elbo, model, nll, beside = made()
    prepare(elbo, model, beside)
    assert not trained(elbo, model, nll, own(model))


def test_a_model_without_an_optimiser_says_nothing():
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    for _ in range(3):
        elbo(model(X), Y, model)[0].backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.001 * p.grad)


def test_another_network_is_its_owners_affair():
    body, head = nn.Linear(4, 5), MNLinear(5, 3)
    elbo, optimiser = ELBO(50, likelihood=Categorical()), own(head)
    for _ in range(3):
        elbo(head(body(X)), torch.zeros(7, dtype=torch.long), head)[0].backward()
        optimiser.step()


def test_losses_in_evaluation_or_in_a_transform_are_not_looked_at():
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    with torch.no_grad():
        elbo(model.eval()(X), Y, model)
    model.train()

    def loss(parameters):
        return torch.func.functional_call(Both(model, elbo), parameters, ())

    class Both(nn.Module):
        def __init__(self, model, elbo):
            super().__init__()
            self.model, self.elbo = model, elbo

        def forward(self):
            return self.elbo(self.model(X), Y, self.model)[0]

    torch.func.grad(loss)(dict(Both(model, elbo).named_parameters()))
    assert len(trained(elbo, model, None, own(model))) == 1


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda elbo: pickle.loads(pickle.dumps(elbo))])
def test_a_copy_looks_anew(twin):
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    assert len(trained(elbo, model, None, own(model))) == 1
    assert len(trained(twin(elbo), model, None, own(model))) == 1


def test_a_pickle_of_before_looks_too():
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    state = {key: value for key, value in elbo.__dict__.items() if key != "_forgotten"}
    old = ELBO.__new__(ELBO)
    old.__setstate__(state)
    assert len(trained(old, model, None, own(model))) == 1


def test_nothing_is_called_after_steps_once_it_is_known():
    hooks = optimizer._global_optimizer_post_hooks
    before = len(hooks)
    elbo, model = ELBO(50, likelihood=Gaussian()), mlp()
    rule = own(model, elbo)
    assert not trained(elbo, model, None, rule, steps=1)
    assert len(hooks) == before + 1
    assert not trained(elbo, model, None, rule, steps=1)
    assert len(hooks) == before
    elbo = ELBO(50, likelihood=Gaussian())
    trained(elbo, model, None, rule, steps=1)
    del elbo
    gc.collect()
    assert len(hooks) == before
