"""A custom layer, of two inputs: what a subclass of BayesianLayer and a row of the table of kinds need to say.

The laws of test_layers.py are for layers of one input. Bayesian ``nn.Bilinear``, of two, is a row of ``BILINEAR``.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mnvi
from mnvi.layers import BayesianLayer, kinds
from mnvi.layers.base import check_layer_arguments
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, assert_moments, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")


class CustomBilinear(BayesianLayer, nn.Bilinear):
    """y_k = x₁ᵀ W_k x₂: linear in x₁ ⊗ x₂ with the matrix ``weight.flatten(1)``."""

    local_estimator = "output_deviation"

    def __init__(self, *sizes, posterior=None, prior=None, estimator="local"):
        check_layer_arguments(posterior, prior, estimator)
        super().__init__(*sizes)
        self._add_posterior(posterior, prior, estimator)

    def _initial_scale(self):
        return 0.1 / (3 * self.in1_features) ** 0.5

    def _check_input(self, input1, input2):
        if (input1.shape[-1], input2.shape[-1]) != (self.in1_features, self.in2_features):
            raise ValueError(f"expected widths {self.in1_features} and {self.in2_features}")

    def _transform(self, weight, bias, input1, input2):
        return F.linear(products(input1, input2), weight.flatten(1), bias)

    def _deviation(self, input1, input2):
        return self.posterior.output_deviation(products(input1, input2))


def products(x1, x2):
    return (x1.unsqueeze(-1) @ x2.unsqueeze(-2)).flatten(-2)


BILINEAR = {"custom": CustomBilinear}


@pytest.fixture
def kind(request, monkeypatch):
    """A row of the table above, as the only one of its torch layer in the table of kinds."""
    others = [each for each in kinds.KINDS if each.plain is not nn.Bilinear]
    monkeypatch.setattr(kinds, "KINDS", (*others, kinds.LayerKind(nn.Bilinear, request.param)))
    return request.param


each_kind = pytest.mark.parametrize("kind", list(BILINEAR.values()), ids=list(BILINEAR), indirect=True)


X1, X2 = (torch.randn(2, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (3, 4))


@pytest.mark.parametrize("estimator", ["local", "weight"])
@each_kind
def test_two_inputs_reach_the_torch_layer_of_the_mean(kind, estimator):
    layer = kind(3, 4, 5, estimator=estimator)
    assert_close(layer.eval()(X1, X2), F.bilinear(X1, X2, layer.weight, layer.bias))
    assert not torch.equal(layer.train()(X1, X2), layer(X1, X2))
    with mnvi.frozen_sample(layer):
        assert_close(layer(2 * X1, X2), 2 * layer(X1, X2) - layer.bias)
    with pytest.raises(ValueError, match="3"):
        layer(X1, X1)


@cases("family", SOME_FAMILIES)
@each_kind
def test_its_local_draws_have_the_moments_of_the_posterior(kind, family):
    layer = randomise(kind(3, 4, 2, posterior=family), 0.4)
    count = 3000
    with torch.no_grad():
        draws = layer(X1[:1].expand(count, 3), X2[:1].expand(count, 4))
    maps = torch.kron(torch.eye(2), torch.kron(X1[:1], X2[:1]))
    covariance = maps @ dense_covariance(layer.posterior).detach() @ maps.mT
    assert_moments(draws, F.bilinear(X1[:1], X2[:1], layer.weight, layer.bias)[0].detach(), covariance)


@each_kind
def test_its_initial_scale_is_its_own(kind):
    layer = kind(50, 40, 30)
    for _ in range(2):
        size = layer.weight.std().item()
        assert layer.variance().sqrt().mean().item() == pytest.approx(0.1 * size, rel=0.05)
        layer.reset_parameters()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_kind
def test_both_inputs_of_16_bits_are_widened(kind, dtype):
    layer = kind(3, 4, 5).to(dtype)
    assert layer(X1.to(dtype), X2.to(dtype)).dtype == dtype


@each_kind
def test_a_row_of_the_table_is_all_that_conversion_and_reports_need(kind):
    plain = nn.ModuleDict({"a": nn.Bilinear(3, 4, 5), "b": nn.Linear(5, 2)}).eval()
    expected = plain["a"](X1, X2)
    model = mnvi.to_bayesian(copy.deepcopy(plain))
    assert type(model["a"]) is kind
    assert_close(model["a"](X1, X2), expected)
    back = mnvi.to_deterministic(model)
    assert type(back["a"]) is nn.Bilinear
    assert torch.equal(back["a"](X1, X2), expected)
    mnvi.sparsity.prune(model, fraction=0.4, groups="rows", skip="b")
    assert (model["a"].weight == 0).all((1, 2)).sum() == 2
    for counted in (mnvi.sparsity.report(model), mnvi.sparsity.report(mnvi.to_deterministic(model))):
        assert (counted.layers[0].rows_left, counted.layers[0].rows) == (3, 5)


@each_kind
def test_it_cannot_be_cut_and_compact_says_so(kind):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = kind(3, 3, 2)

        def forward(self, x):
            return self.a(x, x)

    with pytest.raises(ValueError, match=r"layer '0\.a'"):
        mnvi.sparsity.compact(nn.Sequential(Squared()))
