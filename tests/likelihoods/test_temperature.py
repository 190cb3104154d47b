"""A temperature is part of a likelihood's state, and states and pickles from before there was one still load."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import mnvi
from mnvi.likelihoods import Bernoulli, Categorical, HeteroscedasticGaussian
from tests.cases import cases

KINDS = {"categorical": Categorical, "bernoulli": Bernoulli, "heteroscedastic": HeteroscedasticGaussian}


@cases("kind", KINDS)
def test_it_is_saved_and_loaded_and_reset(kind):
    likelihood = kind()
    likelihood.widen_(3.0)
    likelihood.widen_(0.5)
    loaded = kind()
    loaded.load_state_dict(likelihood.state_dict())
    for each in (loaded, copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood))):
        assert each.temperature.item() == 1.5
    likelihood.reset_parameters()
    assert likelihood.temperature.item() == 1.0


@cases("kind", KINDS)
def test_states_and_pickles_without_one_have_the_temperature_1(kind):
    likelihood, old = kind(), kind()
    likelihood.widen_(3.0)
    likelihood.load_state_dict({})
    assert likelihood.temperature.item() == 1.0
    del old._buffers["temperature"]
    assert pickle.loads(pickle.dumps(old)).temperature.item() == 1.0
    elbo = mnvi.ELBO(10, likelihood=kind())
    elbo.load_state_dict({"step": torch.tensor(4)})
    assert elbo.step.item() == 4


def test_it_divides_logits_and_multiplies_scales():
    logits, y = torch.randn(5, 3), torch.randint(3, (5,))
    likelihood = Categorical()
    likelihood.widen_(2.0)
    torch.testing.assert_close(likelihood(logits, y), F.cross_entropy(logits / 2, y))
    torch.testing.assert_close(likelihood.prediction(logits[None]).mean, (logits / 2).softmax(-1))
    yes = Bernoulli()
    yes.widen_(2.0)
    torch.testing.assert_close(yes.prediction(logits[None]).mean, (logits / 2).sigmoid())
    normal = HeteroscedasticGaussian()
    normal.widen_(2.0)
    mean, log_scale = torch.randn(2, 4, 1)
    expected = torch.distributions.Normal(mean, 2 * log_scale.exp()).log_prob(torch.ones(4, 1)).sum(-1)
    torch.testing.assert_close(normal.log_prob((mean[None], log_scale[None]), torch.ones(4, 1)), expected)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused(factor):
    likelihood = Categorical()
    with pytest.raises(ValueError, match="factor must be finite and positive"):
        likelihood.widen_(factor)
    assert likelihood.temperature.item() == 1.0
