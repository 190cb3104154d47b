"""Activation checkpointing: what runs twice makes the same draws, or is refused."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mnvi
from mnvi import frozen_sample, sampling
from tests.laws import assert_close
from tests.models import X, mlp

pytestmark = pytest.mark.usefixtures("float64")


def gradients(model, x, run, reentrant):
    """Output and gradients of a model that runs plainly (None) or in a checkpoint, from the same random state."""
    model.zero_grad()
    torch.manual_seed(3)
    output = run(model, x) if reentrant is None else checkpoint(run, model, x, use_reentrant=reentrant)
    (output.square().sum() + mnvi.kl(model)).backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters())]


def in_train_mode(model, x):
    return model(x)


def in_sampling(model, x):
    with sampling(model):
        return model(x) + model(x)


def in_a_frozen_sample(model, x):
    with frozen_sample(model):
        return model(x) * model(2 * x)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("run", [in_train_mode, in_sampling, in_a_frozen_sample])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_what_is_checkpointed_makes_the_same_draws_again(estimator, run, reentrant):
    model = mlp(estimator=estimator).train(run is in_train_mode)
    x = X.clone().requires_grad_()
    for plain, recomputed in zip(gradients(model, x, run, None), gradients(model, x, run, reentrant), strict=True):
        assert_close(recomputed, plain)


class Checkpointed(nn.Module):
    def __init__(self, reentrant, **options):
        super().__init__()
        self.body, self.reentrant = mlp(**options), reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("context", [sampling, frozen_sample])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_checkpointing_inside_a_context_is_refused(estimator, context, reentrant):
    model = Checkpointed(reentrant, estimator=estimator).eval()
    x = X.clone().requires_grad_()
    with context(model), pytest.raises(RuntimeError, match="activation checkpointing"):
        model(x)
    assert torch.equal(model(x), model.body(x))
    inner = frozen_sample if context is sampling else sampling
    with context(model), pytest.raises(RuntimeError, match="activation checkpointing"):  # entered outside all the same
        checkpoint(lambda x: model(x), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="activation checkpointing"):  # inside the outer one, outside the inner one
        checkpoint(lambda x: entered(inner, model, x), x, use_reentrant=False)
    with context(model), pytest.raises(RuntimeError, match="activation checkpointing"):
        checkpoint(lambda x: entered(inner, model.body, x), x, use_reentrant=reentrant)


def entered(context, model, x):
    with context(model):
        return model(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("context", [sampling, frozen_sample])
def test_checkpointing_without_gradients_is_welcome_in_a_context(context, reentrant):
    model = Checkpointed(reentrant).eval()
    mean = model.body(X)
    with torch.no_grad(), context(model):
        assert not torch.equal(model(X), mean)
    assert mnvi.predict(model, X, 4).mutual_information.min() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_sampling_in_train_mode_is_what_train_mode_does(reentrant):
    model, x = Checkpointed(reentrant), X.clone().requires_grad_()
    with sampling(model):
        output = model(x)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
