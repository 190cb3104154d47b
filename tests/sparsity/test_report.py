"""The report: what compaction leaves, against the compact network itself, and quantiles of scores, against numpy."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import mnvi
from mnvi import posteriors, priors
from mnvi.sparsity import compact, prune, report, signal_to_noise
from tests.cases import cases

DIAGONAL = {"posterior": posteriors.Diagonal()}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def mlp():
    layers = [mnvi.MNLinear(12, 9, **DIAGONAL), nn.BatchNorm1d(9), nn.ReLU(), mnvi.MNLinear(9, 4, **DIAGONAL)]
    return mnvi.Sequential(nn.Flatten(), *layers)


def without_biases():
    options = {"bias": False, "prior": priors.GroupARD(learn=True)}
    return mnvi.Sequential(mnvi.MNLinear(12, 9, **options), nn.Sigmoid(), mnvi.MNLinear(9, 4, **options))


def convolutions():
    first, second = mnvi.MNConv2d(2, 6, 3, **DIAGONAL), mnvi.MNConvTranspose2d(6, 4, 3, **DIAGONAL)
    return mnvi.Sequential(first, nn.ReLU(), second)


def partly_plain():
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), mnvi.MNLinear(9, 4, **DIAGONAL), nn.PReLU(4))


CHAINS = {each.__name__: each for each in (mlp, without_biases, convolutions, partly_plain)}


@cases("make", CHAINS)
@pytest.mark.parametrize("amounts", [{}, {"rows": 0.3}, {"columns": 0.4, "weights": 0.6}])
def test_the_compact_network_is_foretold(make, amounts):
    torch.manual_seed(0)
    model = make()
    for groups, fraction in amounts.items():
        prune(model, fraction=fraction, groups=groups)
    result, small = report(model), compact(model)
    layers = [each for each in small.modules() if isinstance(each, (nn.Linear, nn.modules.conv._ConvNd))]
    assert result.compact.parameters == parameters(small)
    assert result.compact.weights == sum(each.weight.numel() for each in layers)
    assert result.compact.zeros == sum(int((each.weight == 0).sum()) for each in layers)
    assert result.parameters == parameters(mnvi.to_deterministic(model))
    assert [each.compact[2] for each in result.layers] == [parameters(each) for each in layers]
    sizes = [(each.out_features, each.in_features) for each in layers if isinstance(each, nn.Linear)]
    sizes += [(each.out_channels, each.in_channels) for each in layers if not isinstance(each, nn.Linear)]
    assert [each.compact[:2] for each in result.layers] == sizes


def test_a_report_changes_nothing():
    model = prune(mlp(), fraction=0.5).train()
    before, generator = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    report(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    model(torch.randn(5, 12)).sum().backward()
    optimizer.step()  # pruned means are still followed
    assert not model[1].weight[model[1].pruned != 0].any()


class Residual(mnvi.Module):
    def __init__(self):
        super().__init__()
        self.layer = mnvi.MNLinear(4, 4)
        self.cache = None

    def forward(self, x):
        return self.layer(x) + x


def test_where_there_is_no_compact_network_the_report_says_why():
    result = report(Residual())
    assert result.compact.parameters is None
    assert result.layers[0].compact is None
    assert "compact: not possible: only a chain of layers can be compacted" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["compact"]["error"] == result.compact.error
    model = Residual()
    model.cache = model.layer.weight * 2  # torch copies no such tensor
    assert "deepcopy" in report(model).compact.error


def test_quantiles_are_those_of_what_is_left():
    torch.manual_seed(0)
    model = mlp()
    prune(model, fraction=0.5)
    result = report(model)
    layers = {each.name: model.get_submodule(each.name) for each in result.layers}
    left = {name: signal_to_noise(layer)[layer.pruned == 0].numpy() for name, layer in layers.items()}
    for scores, found in [
        (np.concatenate([*left.values()]), result.scores["weights"]),
        *((left[each.name], each.scores["weights"]) for each in result.layers),
    ]:
        assert found == tuple(np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf").tolist())
    median = result.scores["weights"][2]
    assert abs(report(prune(model, threshold=median)).left - result.left / 2) <= 1


def test_scores_that_are_not_there_or_not_finite_are_no_trouble():
    assert report(nn.Linear(2, 2)).scores == {}
    assert report(prune(mlp(), threshold=1e9)).scores == {}
    model = mlp()
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
        model[4].weight.fill_(math.nan)
    result = report(model)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["scores"]["weights"] == [None] * 5


def test_the_table_by_hand():
    model = mnvi.Sequential(mnvi.MNLinear(3, 2, **DIAGONAL), nn.ReLU(), mnvi.MNLinear(2, 2, **DIAGONAL))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(1.0)
            layer.posterior.set_scale_(0.25)
    model[0].pruned.copy_(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert str(report(model)).splitlines() == [
        "layer | weights | left | dropped % | rows left | columns left | compact | parameters",
        "------+---------+------+-----------+-----------+--------------+---------+-----------",
        "0     |       6 |    1 |     83.33 |       1/2 |          1/3 |     1x1 |          2",
        "2     |       4 |    4 |      0.00 |       2/2 |          2/2 |     2x1 |          4",
        "------+---------+------+-----------+-----------+--------------+---------+-----------",
        "total |      10 |    5 |     50.00 |       3/4 |          3/5 |         |          6",
        "compact: 14 -> 6 parameters: 3 weights and 3 others (biases)",
        "|mean|/sd of what is left |  5 % | 25 % | 50 % | 75 % | 95 %",
        "weights                   |    4 |    4 |    4 |    4 |    4",
        "rows                      | 2.31 | 2.31 |    4 |    4 |    4",
        "columns                   | 2.83 | 2.83 |    4 |    4 |    4",
    ]
