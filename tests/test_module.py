"""Whole models: their KL, and the contexts in which they draw."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mnvi
from mnvi import MNLinear, frozen_sample, sampling, to_bayesian
from mnvi.priors import GroupARD
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, randomise
from tests.models import X, draws, mlp

pytestmark = pytest.mark.usefixtures("float64")


# KL -------------------------------------------------------------------------------------------------------------------


def test_kl_is_the_sum_over_the_layers():
    model = randomise(mlp())
    expected = model[0].kl() + model[2].kl()
    assert_close(model.kl(), expected)
    assert_close(mnvi.kl(model), expected)
    assert_close(mnvi.kl(nn.ModuleDict({"a": model, "b": nn.Linear(2, 2)})), expected)
    assert_close(mnvi.kl(model[0]), model[0].kl())


def test_a_module_has_a_kl():
    class Model(mnvi.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([MNLinear(4, 4), nn.Linear(4, 2)])

    model = Model()
    assert_close(model.kl(), model.layers[0].kl())
    assert isinstance(model, nn.Module)
    assert isinstance(mnvi.Sequential(), nn.Sequential)


def test_shared_layers_count_once():
    layer = MNLinear(4, 4)
    assert_close(mnvi.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer)).kl(), layer.kl())


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(), nn.ReLU()])
def test_a_plain_model_has_kl_zero(model):
    assert mnvi.kl(model).item() == 0.0
    assert mnvi.kl(model).shape == ()


def test_kl_has_gradients_for_every_posterior_parameter():
    model = randomise(mlp())
    model.kl().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "bias" not in name)


# Modes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_train_draws_and_eval_does_not(estimator):
    model = mlp(estimator=estimator)
    assert draws(model.train())
    assert not draws(model.eval())
    assert draws(model.train())


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_sampling_draws_in_eval_mode(estimator):
    model = mlp(estimator=estimator).eval()
    mean = model(X)
    with sampling(model) as same:
        assert same is model
        assert draws(model)
        assert not model.training
    assert torch.equal(model(X), mean)


def test_sampling_leaves_batch_norm_and_dropout_alone():
    model = mnvi.Sequential(MNLinear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(model[1].state_dict())
    with sampling(model):
        hidden = model[0](X)
        assert torch.equal(model[1:](hidden), model[1](hidden))
        model(X)
    assert all(torch.equal(model[1].state_dict()[key], value) for key, value in before.items())
    with sampling(model.train()):
        model(X)
    assert model[1].num_batches_tracked == 1
    assert model.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_a_frozen_sample_is_one_function(estimator, training):
    model = mlp(estimator=estimator).train(training)
    with frozen_sample(model) as same:
        assert same is model
        output = model(X)
        assert torch.equal(model(X), output)
        assert_close(model(X[2:4]), output[2:4])
    with frozen_sample(model):
        assert not torch.equal(model(X), output)
    assert draws(model) is training


def test_a_frozen_sample_is_a_draw_not_the_mean():
    model = mlp().eval()
    mean = model(X)
    with frozen_sample(model):
        assert not torch.equal(model(X), mean)
    assert torch.equal(model(X), mean)


def test_a_shared_layer_has_one_frozen_weight():
    layer = MNLinear(4, 4)
    model = mnvi.Sequential(layer, layer)
    with frozen_sample(model):
        assert_close(model(X), layer(layer(X)))


@cases("family", SOME_FAMILIES)
def test_gradients_reach_the_posterior_through_a_frozen_sample(family):
    model = mlp(posterior=family)
    with frozen_sample(model):
        model(X).square().sum().backward()
        model(X).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("context", [sampling, frozen_sample])
@pytest.mark.parametrize("training", [True, False])
def test_contexts_restore_the_state_after_an_exception(context, training):
    model = mlp().train(training)
    with pytest.raises(ValueError), context(model):
        model(X[:, :2])
    assert draws(model) is training
    assert model.training is training


def test_contexts_nest():
    model = mlp().eval()
    with sampling(model):
        with sampling(model):
            assert draws(model)
        assert draws(model)
        with frozen_sample(model):
            outer = model(X)
            with frozen_sample(model):
                assert not torch.equal(model(X), outer)
                assert not draws(model)
            assert torch.equal(model(X), outer)
            with sampling(model):
                assert torch.equal(model(X), outer)
        assert draws(model)
    assert not draws(model)


def test_contexts_of_a_part_of_a_model_leave_the_rest():
    model = mlp().eval()
    mean = model[2](model[0](X))
    with sampling(model[0]):
        assert draws(model[0])
        assert not draws(model[2], torch.randn(2, 6))
    assert torch.equal(model[2](model[0](X)), mean)


def test_mode_changes_inside_a_context_stay():
    model = mlp().eval()
    with sampling(model):
        model.train()
    assert model.training
    with frozen_sample(model):
        output = model(X)
        assert torch.equal(model.eval()(X), output)
    assert not draws(model)


def test_a_model_of_bayesian_layers_copies_and_pickles():
    model = mlp(prior=GroupARD())
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded.eval()(X), model.eval()(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))


# Prediction -----------------------------------------------------------------------------------------------------------


def test_transformers_draw_in_eval_mode():
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(plain, 2, enable_nested_tensor=True).eval()
    by_hand = copy.deepcopy(encoder)
    for layer in by_hand.layers:
        layer.linear1, layer.linear2 = mnvi.MNLinear(8, 16), mnvi.MNLinear(16, 8)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    attentions = [f"layers.{i}.self_attn" for i in range(2)]
    for model in (to_bayesian(encoder, skip=attentions), by_hand):
        with torch.no_grad(), sampling(model):
            assert (model(x, src_key_padding_mask=mask) - model(x, src_key_padding_mask=mask)).abs().max() > 0


def test_copies_made_inside_a_context_are_outside_it():
    model = mlp().eval()
    with sampling(model), frozen_sample(model):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(X), twin(X))
    assert torch.equal(twin(X), model(X))
