"""The linear layer with a weight of shape (in, out): ``Conv1D`` of Hugging Face's transformers."""

import copy

import pytest
import torch
from torch import nn

import mnvi
from mnvi import sampling, to_bayesian, to_deterministic
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")


class Conv1D(nn.Module):
    """As in ``transformers.pytorch_utils``: y = x W + b, W of shape (nx, nf)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(0.02 * torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


@cases("family", SOME_FAMILIES)
def test_conv1d_of_transformers_converts_there_and_back(family):
    plain = Conv1D(6, 4)
    x = torch.randn(2, 3, 4)
    expected, weight = plain(x), plain.weight
    model = to_bayesian(nn.Sequential(plain), posterior=family).eval()
    assert model[0] is plain
    assert model[0].weight is weight
    assert_close(model(x), expected.detach())
    assert_close(model[0].distribution().mean, weight.detach())
    assert len(mnvi.sparsity.report(model).layers) == 1
    with sampling(model):
        assert not torch.equal(model(x), model(x))
    twin = copy.deepcopy(model)
    back = to_deterministic(model)
    assert type(back[0]) is Conv1D
    assert set(vars(back[0])) == set(vars(Conv1D(6, 4)))
    assert torch.equal(back(x), expected)
    assert torch.equal(twin(x), model(x))


def test_a_class_of_another_library_is_no_conv1d_of_transformers():
    class Own(Conv1D):
        pass

    Own.__name__, Own.__module__ = "Conv1D", "elsewhere.layers"
    with pytest.raises(ValueError, match="nothing to convert"):
        to_bayesian(nn.Sequential(Own(3, 2)))


@pytest.mark.parametrize("estimator", ["local", "weight"])
@cases("family", SOME_FAMILIES)
def test_conv1d_draws_have_the_moments_of_its_posterior(family, estimator):
    """Outputs of one input: mean x M, covariance (I ⊗ x)ᵀ Cov (I ⊗ x) from the dense covariance (z-scores)."""
    layer = randomise(to_bayesian(Conv1D(3, 4), posterior=family, estimator=estimator))
    x = torch.randn(4)
    maps = torch.kron(x, torch.eye(3))  # vec(W) row-major -> x W
    count = 1500
    with torch.no_grad():
        expected = maps @ dense_covariance(layer.posterior) @ maps.mT
        rows = layer(x.expand(count, 4)) if estimator == "local" else torch.stack([layer(x) for _ in range(count)])
        error = rows - (x @ layer.weight + layer.bias)
        z = error.mean(0) / (expected.diagonal() / count).sqrt()
        second = error.mT @ error / count
        spread = (torch.outer(expected.diagonal(), expected.diagonal()) + expected.square()) / count
    assert z.abs().max() < 5
    assert ((second - expected) / spread.sqrt()).abs().max() < 5


def test_rows_of_a_conv1d_are_its_outputs():
    layer = to_bayesian(Conv1D(3, 4))
    with torch.no_grad():
        layer.weight[:, 1] = 0.0
        layer.weight[2] = 0.0
    for counted in (mnvi.sparsity.report(layer), mnvi.sparsity.report(to_deterministic(layer))):
        assert (counted.total.rows_left, counted.total.columns_left) == (2, 3)
    mnvi.sparsity.prune(layer, fraction=0.34, groups="rows")
    assert layer.pruned.shape == (4, 3)
    assert (layer.pruned != 0).all(0).tolist() == [False, True, False]


def test_a_conv1d_can_be_initialised_anew():
    layer = to_bayesian(Conv1D(60, 40))
    with torch.no_grad():
        layer.weight.fill_(7.0)
    layer.reset_parameters()
    assert 0.015 < layer.weight.std() < 0.025
    assert not layer.bias.any()
    assert_close(layer.distribution().variance.sqrt(), torch.full((40, 60), 0.002))
    with pytest.raises(ValueError, match=r"\(\*, 40\), got \(2, 60\)"):
        layer(torch.randn(2, 60))
