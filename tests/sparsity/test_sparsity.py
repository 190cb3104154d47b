"""Scores against hand-computed numbers, pruning by exact counts, and compact networks against the pruned ones."""

import copy
import io
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mnvi
from mnvi import posteriors, priors
from mnvi.sparsity import LayerReport, Report, Select, compact, prior_scale, prune, report, signal_to_noise
from mnvi.sparsity._stages import Stage

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
GROUPS = ("weights", "rows", "columns")


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def linear(inputs, outputs, **options):
    return mnvi.MNLinear(inputs, outputs, posterior=posteriors.Diagonal(), **options)


def conv(dims, *args, transposed=False, **options):
    kind = getattr(mnvi, f"MNConv{'Transpose' if transposed else ''}{dims}d")
    return kind(*args, posterior=posteriors.Diagonal(), **options)


def set_weight(layer, values):
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(values, dtype=layer.weight.dtype).view_as(layer.weight))
    return layer


def left(layer):
    """1 for every weight that is left, 0 for every pruned one."""
    return (layer.pruned == 0).to(layer.weight.dtype)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_state(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)


# -- Scores ------------------------------------------------------------------------------------------------------------


def test_signal_to_noise_is_the_ratio_by_hand():
    layer = set_weight(mnvi.MNLinear(2, 2), [[1.0, -2.0], [3.0, 0.0]])
    sd = layer.posterior.variance().detach().sqrt()
    torch.testing.assert_close(signal_to_noise(layer), layer.weight.detach().abs() / sd)
    var = sd.square()
    rows = torch.stack([(5.0 / var[0].sum()).sqrt(), (9.0 / var[1].sum()).sqrt()])
    columns = torch.stack([(10.0 / var[:, 0].sum()).sqrt(), (4.0 / var[:, 1].sum()).sqrt()])
    torch.testing.assert_close(signal_to_noise(layer, "rows"), rows)
    torch.testing.assert_close(signal_to_noise(layer, "columns"), columns)


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])  # exp(±1000) is no double
def test_signal_to_noise_weighs_by_the_group_ard_precisions(shift):
    layer = set_weight(linear(2, 2, prior=priors.GroupARD()), [[1.0, -2.0], [3.0, 0.5]])
    tau, gamma = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 3.0])
    layer.prior.log_row_precision.copy_(tau.log() + shift)
    layer.prior.log_column_precision.copy_(gamma.log() + shift)
    variance, square = layer.posterior.variance().detach(), layer.weight.detach().square()
    rows = ((square @ gamma) / (variance @ gamma)).sqrt()
    columns = ((tau @ square) / (tau @ variance)).sqrt()
    torch.testing.assert_close(signal_to_noise(layer, "rows"), rows)
    torch.testing.assert_close(signal_to_noise(layer, "columns"), columns)


@pytest.mark.parametrize(
    ("layer", "rows", "columns"),
    [
        (lambda: linear(2, 3), 3, 2),
        (lambda: conv(1, 2, 3, 4), 3, 2),
        (lambda: conv(2, 4, 6, 3, groups=2), 6, 2),
        (lambda: conv(1, 2, 3, 4, transposed=True), 3, 2),
        (lambda: conv(2, 4, 6, 3, transposed=True, groups=2), 3, 4),
    ],
)
def test_units_of_every_layout(layer, rows, columns):
    layer = layer()
    assert signal_to_noise(layer).shape == layer.weight.shape
    assert signal_to_noise(layer, "rows").shape == (rows,)
    assert signal_to_noise(layer, "columns").shape == (columns,)
    prune(layer, fraction=0.5, groups="rows")
    taps = (columns, *layer.weight.shape[2:])
    assert signal_to_noise(layer, "taps").shape == taps
    counts = report(layer).layers[0]
    assert (counts.rows, counts.columns, counts.taps) == (rows, columns, math.prod(taps))
    assert counts.rows_left == rows - rows // 2


def test_a_column_of_a_convolution_is_a_channel_with_all_its_positions():
    layer = set_weight(conv(1, 2, 2, 2), [[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [0.1, 0.0]]])
    prune(layer, fraction=0.5, groups="columns")
    assert layer.pruned[:, 1].eq(1).all()
    assert layer.pruned[:, 0].eq(0).all()
    transposed = set_weight(conv(1, 2, 2, 2, transposed=True), [[[9.0, 9.0], [1.0, 0.0]], [[9.0, 9.0], [0.0, 1.0]]])
    prune(transposed, fraction=0.5, groups="rows")
    assert transposed.pruned[:, 1].eq(1).all()
    assert transposed.pruned[:, 0].eq(0).all()


def test_a_tap_is_a_channel_at_one_position():
    layer = set_weight(conv(1, 2, 2, 2), [[[1.0, 2.0], [0.0, 3.0]], [[3.0, 0.0], [0.1, 0.0]]])
    variance, square = layer.variance().detach(), layer.weight.detach().square()
    torch.testing.assert_close(signal_to_noise(layer, "taps"), (square.sum(0) / variance.sum(0)).sqrt())
    prune(layer, threshold=1.5, groups="taps", score=lambda each, groups: each.weight.detach().abs().amax(0))
    assert layer.weight.tolist() == [[[1.0, 2.0], [0.0, 3.0]], [[3.0, 0.0], [0.0, 0.0]]]
    assert (report(layer).total.taps, report(layer).total.taps_left, report(layer).total.columns_left) == (4, 3, 2)
    transposed = set_weight(conv(1, 2, 2, 2, transposed=True), [[[9.0, 1.0], [2.0, 1.0]], [[0.0, 4.0], [0.0, 5.0]]])
    prune(transposed, fraction=0.5, groups="taps", score=lambda each, groups: each.weight.detach().abs().amax(1))
    assert transposed.weight.tolist() == [[[9.0, 0.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 5.0]]]


def test_prior_scale_is_relative_to_the_largest_group():
    layer = linear(2, 3, prior=priors.GroupARD())
    torch.testing.assert_close(prior_scale(layer, "rows"), torch.ones(3))
    layer.prior.log_row_precision.copy_(torch.tensor([1.0, 4.0, 100.0]).log())
    layer.prior.log_column_precision.copy_(torch.tensor([9.0, 900.0]).log())
    torch.testing.assert_close(prior_scale(layer, "rows"), torch.tensor([1.0, 0.5, 0.1]))
    torch.testing.assert_close(prior_scale(layer, "columns"), torch.tensor([1.0, 0.1]))
    prune(layer, threshold=0.2, groups="rows", score=prior_scale)
    assert left(layer).tolist() == [[1, 1], [1, 1], [0, 0]]


def test_scores_raise_for_what_they_cannot_do():
    with pytest.raises(ValueError, match="groups must be one of"):
        signal_to_noise(linear(2, 2), "row")
    with pytest.raises(ValueError, match="groups must be one of 'rows', 'columns'"):
        prior_scale(linear(2, 2, prior=priors.GroupARD()), "weights")
    with pytest.raises(ValueError, match="GroupARD"):
        prior_scale(linear(2, 2), "rows")


# -- Pruning -----------------------------------------------------------------------------------------------------------


def magnitude(layer, groups):
    """A score that does not know the posterior."""
    weight = layer.weight.detach().abs()
    return {"weights": lambda: weight, "rows": lambda: weight.sum(1), "columns": lambda: weight.sum(0)}[groups]()


def two_layers():
    first = set_weight(linear(2, 3), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    second = set_weight(linear(3, 2), [[7.0, 8.0, 0.5], [10.0, 11.0, 12.0]])
    return mnvi.Sequential(first, nn.Tanh(), second)


def test_threshold_drops_what_scores_below_it_and_nothing_else():
    model = two_layers()
    assert prune(model, threshold=3.0, score=magnitude) is model
    assert left(model[0]).tolist() == [[0, 0], [1, 1], [1, 1]]
    assert model[2].weight.tolist() == [[7.0, 8.0, 0.0], [10.0, 11.0, 12.0]]
    assert model[0].weight.tolist() == [[0.0, 0.0], [3.0, 4.0], [5.0, 6.0]]


def test_fraction_counts_over_all_layers():
    model = prune(two_layers(), fraction=5 / 12, score=magnitude)
    assert left(model[0]).tolist() == [[0, 0], [0, 0], [1, 1]]
    assert left(model[2]).tolist() == [[1, 1, 0], [1, 1, 1]]
    model = prune(two_layers(), fraction=0.6, groups="rows", score=magnitude)  # 3 of 5 rows
    assert left(model[0]).sum(1).tolist() == [0, 0, 0]  # sums 3, 7, 11 against 15.5, 33
    assert not model[2].is_pruned
    model = prune(two_layers(), fraction=0.5, groups="columns", score=magnitude)  # 2 of 5: sums 9, 12 | 17, 19, 12.5
    assert left(model[0]).sum(0).tolist() == [0, 0]


@given(fraction=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_fraction_drops_the_lowest_and_their_exact_number(fraction, seed):
    torch.manual_seed(seed)
    model = mnvi.Sequential(linear(4, 5), linear(5, 3))
    scores = torch.cat([signal_to_noise(layer).flatten() for layer in model])
    prune(model, fraction=fraction)
    kept = torch.cat([left(layer).flatten() for layer in model]).bool()
    assert (~kept).sum() == math.floor(fraction * 35 + 1e-9)
    assert not (~kept).any() or scores[~kept].max() <= scores[kept].min()


def test_a_rounding_error_of_the_fraction_loses_no_weight():
    layer = prune(linear(10, 10), fraction=0.29)  # 0.29·100 < 29 in floating point
    assert report(layer).left == 71


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("amount", [{"fraction": 0.5}, {"threshold": 6.0}])
def test_pruning_twice_is_pruning_once(groups, amount):
    model = prune(two_layers(), **amount, groups=groups)
    before = state(model)
    assert_state(prune(model, **amount, groups=groups), before)


def test_what_is_pruned_stays_pruned_and_counts_as_lowest():
    model = prune(two_layers(), fraction=0.25, score=magnitude)
    prune(model, fraction=0.5, score=lambda layer, groups: -magnitude(layer, groups))
    assert report(model).left == 6
    assert left(model[0]).tolist() == [[0, 0], [1, 1], [1, 1]]
    assert left(model[2]).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_draws_and_the_forward_pass_are_masked_and_biases_stay():
    model = two_layers()
    biases = [model[0].bias.clone(), model[2].bias.clone()]
    prune(model, fraction=0.5)
    masks = [left(model[0]), left(model[2])]
    for layer, bias, mask in zip((model[0], model[2]), biases, masks, strict=True):
        for _ in range(3):
            assert ((layer.draw_weight() == 0) == (mask == 0)).all()
        torch.testing.assert_close(layer.bias, bias, rtol=0, atol=0)
    x = torch.randn(5, 2)
    weights = [layer.weight * mask for layer, mask in zip((model[0], model[2]), masks, strict=True)]
    expected = F.linear(F.linear(x, weights[0], biases[0]).tanh(), weights[1], biases[1])
    torch.testing.assert_close(model.eval()(x), expected)
    with torch.no_grad():
        model[0].weight += 1  # as an optimiser with momentum does
    assert report(model).left == 6


def test_skip_leaves_layers_alone():
    model = prune(two_layers(), fraction=0.5, skip=["2"])
    assert not model[2].is_pruned
    assert report(model).layers[0].left == 3
    nested = prune(nn.Sequential(two_layers(), linear(2, 2)), threshold=1e9, skip="0")
    assert report(nested).layers[0].dropped == 0
    assert report(nested).layers[2].left == 0


def test_a_shared_layer_counts_once():
    layer = linear(2, 2)
    model = prune(nn.Sequential(layer, nn.Tanh(), layer), fraction=0.5)
    assert report(model).weights == 4
    assert report(model).left == 2


def test_pruning_nothing_changes_nothing():
    model = two_layers()
    before = state(model)
    assert_state(prune(model, fraction=0.0), before)
    assert_state(prune(model, threshold=0), before)


def diverged():
    model = two_layers()
    set_weight(model[2], torch.full((2, 3), math.nan))
    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (two_layers, {}, ValueError, "either threshold or fraction"),
        (two_layers, {"threshold": 1.0, "fraction": 0.5}, ValueError, "either threshold or fraction"),
        (two_layers, {"threshold": -1.0}, ValueError, "threshold must be finite, at least 0"),
        (two_layers, {"threshold": math.inf}, ValueError, "threshold must be finite"),
        (two_layers, {"threshold": math.nan}, ValueError, "threshold must be finite"),
        (two_layers, {"threshold": "1"}, TypeError, "threshold must be a number"),
        (two_layers, {"fraction": True}, TypeError, "fraction must be a number"),
        (two_layers, {"fraction": -0.1}, ValueError, "fraction must be finite, at least 0"),
        (two_layers, {"fraction": 1}, ValueError, "fraction must be finite, at least 0, below 1, got 1"),
        (two_layers, {"fraction": 0.5, "groups": "row"}, ValueError, "groups must be one of"),
        (two_layers, {"fraction": 0.5, "skip": ["3"]}, ValueError, "no module named '3'"),
        (two_layers, {"fraction": 0.5, "skip": ["0", "2"]}, ValueError, "only Bayesian layers"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {"fraction": 0.5}, ValueError, "only Bayesian layers"),
        (two_layers, {"fraction": 0.5, "groups": "rows", "score": prior_scale}, ValueError, "GroupARD"),
        (two_layers, {"fraction": 0.5, "score": lambda layer, _: layer.weight[0]}, ValueError, "'0' must have shape"),
        (diverged, {"threshold": 1.5}, ValueError, "6 of 6 scores of layer '2'"),
        (diverged, {"fraction": 0.5, "groups": "rows"}, ValueError, "layer '2'"),
    ],
)
def test_errors_of_prune_leave_the_model_unchanged(model, options, error, message):
    model = model()
    before = state(model)
    with pytest.raises(error, match=message):
        prune(model, **options)
    assert_state(model, before)
    assert not any(getattr(layer, "is_pruned", False) for layer in model)


# -- Report ------------------------------------------------------------------------------------------------------------


def masked_model():
    first = set_weight(linear(3, 2), torch.ones(2, 3))
    first.pruned.copy_(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    second = nn.Conv2d(2, 2, 2)
    return nn.Sequential(
        first, set_weight(second, [[[[1, 1], [1, 1]], [[0, 0], [0, 0]]], [[[0, 0], [0, 2]], [[0, 0], [0, 0]]]])
    )


def test_report_counts_a_hand_made_mask():
    result = report(masked_model())
    assert isinstance(result, Report)
    first, second = result.layers
    assert first == LayerReport("0", weights=6, left=1, rows=2, rows_left=1, columns=3, columns_left=1)
    assert (second.weights, second.left, second.rows_left, second.columns_left) == (16, 5, 2, 1)
    assert second.dropped == 100 * 11 / 16
    assert (result.weights, result.left, result.dropped) == (22, 6, 100 * 16 / 22)
    assert result.compression == 22 / 6
    assert (result.total.rows_left, result.total.columns_left) == (3, 2)


def test_report_is_json_and_safe_where_nothing_is_left():
    result = report(masked_model())
    data = json.loads(json.dumps(result.to_dict()))
    assert data["total"]["left"] == 6
    assert data["layers"][0]["dropped"] == pytest.approx(100 * 5 / 6)
    assert data["compression"] == pytest.approx(22 / 6)
    empty = report(prune(linear(2, 2), threshold=1e9))
    assert empty.compression == math.inf
    assert json.loads(json.dumps(empty.to_dict(), allow_nan=False))["compression"] is None
    with pytest.raises(ValueError, match="this Tanh has none"):
        report(nn.Tanh())


# -- Compact networks --------------------------------------------------------------------------------------------------


class LeNet(mnvi.Module):
    """Functions and methods in place of modules."""

    def __init__(self, flatten):
        super().__init__()
        self.flatten = flatten
        self.features = nn.Sequential(conv(2, 2, 4, 3), nn.ReLU())
        self.conv = conv(2, 4, 5, 3)
        self.hidden = linear(20, 8)
        self.out = linear(8, 3)

    def forward(self, x):
        x = F.max_pool2d(self.features(x), 2)
        x = F.avg_pool2d(torch.sigmoid(self.conv(x)), 2)
        x = F.dropout(self.flatten(x), 0.5, training=self.training)
        x = F.leaky_relu(self.hidden(x), 0.2).tanh()
        return F.log_softmax(self.out(x), dim=1)


FLATTENS = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "view size": lambda x: x.view(x.size(0), -1),
    "view shape": lambda x: x.reshape(x.shape[0], -1),
    "view size()": lambda x: x.view((x.size()[0], 20)),
    "view -1": lambda x: x.view(-1, 20),
}


def mlp(*between, **options):
    return mnvi.Sequential(
        linear(6, 9, **options), *between, linear(9, 7, **options), nn.Softplus(), linear(7, 3, **options)
    )


def conv_net(*between, first=None, second=None, size=2, dims=2):
    """Convolution, `between`, convolution, pooling, linear; 2 channels in, 4 units between."""
    second = second or conv(dims, 4, 5, 3)
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool3d)[dims - 1]
    first = first or conv(dims, 2, 4, 3)
    return mnvi.Sequential(first, *between, second, nn.Sigmoid(), pool(size), nn.Flatten(), linear(5 * size**dims, 3))


# fmt: off
ARCHITECTURES = {
    "mlp relu": (lambda: mlp(nn.ReLU()), (6,)),
    "mlp sigmoid": (lambda: mlp(nn.Sigmoid(), nn.Dropout(0.5)), (6,)),
    "mlp no bias": (lambda: mlp(nn.Sigmoid(), bias=False), (6,)),
    "mlp batch norm": (lambda: mlp(nn.BatchNorm1d(9), nn.Tanh(), nn.BatchNorm1d(9, affine=False)), (6,)),
    "mlp batch statistics": (lambda: mlp(nn.BatchNorm1d(9, track_running_stats=False), nn.ELU()), (6,)),
    "mlp prelu": (lambda: mlp(nn.PReLU(9), nn.Identity(), nn.PReLU()), (6,)),
    "mlp more dimensions": (lambda: mlp(nn.GELU()), (4, 6)),
    "flatten first": (lambda: mnvi.Sequential(nn.Flatten(), mlp(nn.SiLU()), nn.Softmax(-1)), (2, 3)),
    "two flattens": (lambda: mnvi.Sequential(conv(1, 2, 3, 2), nn.Flatten(), nn.Flatten(), linear(15, 2)), (2, 6)),
    "one layer": (lambda: linear(6, 3), (6,)),
    "plain layers": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), linear(9, 7), nn.Tanh(), nn.Linear(7, 3)), (6,)),
    **{f"lenet {name}": (lambda flatten=flatten: LeNet(flatten), (2, 14, 14)) for name, flatten in FLATTENS.items()},
    "conv 1d": (lambda: conv_net(nn.ReLU(), nn.MaxPool1d(2, 2, 1), dims=1), (2, 14)),
    "conv 3d": (lambda: conv_net(nn.Tanh(), nn.BatchNorm3d(4), nn.Dropout3d(), dims=3), (2, 5, 5, 5)),
    "conv batch norm padded": (
        lambda: conv_net(nn.BatchNorm2d(4), nn.ReLU(), second=conv(2, 4, 5, 3, padding=1)),
        (2, 6, 6),
    ),
    "conv same": (lambda: conv_net(nn.ReLU(), second=conv(2, 4, 5, (1, 3), padding="same")), (2, 6, 6)),
    "conv valid": (lambda: conv_net(nn.Sigmoid(), second=conv(2, 4, 5, 2, padding="valid", dilation=2)), (2, 6, 6)),
    "conv circular": (
        lambda: conv_net(nn.Sigmoid(), second=conv(2, 4, 5, 3, padding=1, padding_mode="circular")),
        (2, 6, 6),
    ),
    "conv strided no bias": (lambda: conv_net(nn.Sigmoid(), second=conv(2, 4, 5, 2, stride=2, bias=False)), (2, 7, 7)),
    "average pool padded": (lambda: conv_net(nn.AvgPool2d(2, 2, 1)), (2, 10, 10)),
    "average pool padding not counted": (
        lambda: conv_net(nn.AvgPool2d(2, 2, 1, count_include_pad=False)),
        (2, 10, 10),
    ),
    "average pool ceil": (lambda: conv_net(nn.AvgPool2d(2, 2, ceil_mode=True), second=conv(2, 4, 5, 2)), (2, 9, 9)),
    "average pool divisor": (lambda: conv_net(nn.AvgPool2d(2, 2, ceil_mode=True, divisor_override=3)), (2, 9, 9)),
    "flatten batch norm": (
        lambda: mnvi.Sequential(
            *(conv(1, 2, 3, 2), nn.AvgPool1d(2), nn.Flatten(), nn.BatchNorm1d(9), nn.Tanh(), linear(9, 2))
        ),
        (2, 7),
    ),
    "grouped": (lambda: conv_net(conv(2, 4, 4, 3, groups=2), nn.Sigmoid(), conv(2, 4, 4, 1)), (2, 9, 9)),
    "transposed": (
        lambda: conv_net(nn.Sigmoid(), conv(2, 4, 4, 2, transposed=True, output_padding=1, stride=2), nn.Sigmoid()),
        (2, 6, 6),
    ),
}
# fmt: on


def build(name, seed=0):
    """An architecture with random biases and batch-norm statistics, and a batch for it."""
    torch.manual_seed(seed)
    make, shape = ARCHITECTURES[name]
    model = make().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value in (*module.parameters(), *module.buffers()):
                    value.copy_(torch.rand_like(value.double()) + 0.3)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_()
    return model, torch.randn(3, *shape)


def mask_randomly(model, fraction, groups, seed):
    """Drop weights or units of Bayesian and plain layers at random."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            axis = ("weights", "rows", "columns").index(groups) - 1
            shape = [s if groups == "weights" or i == axis else 1 for i, s in enumerate(module.weight.shape)]
            mask = (torch.rand(shape, generator=generator) >= fraction).double().expand_as(module.weight).clone()
            if isinstance(module, mnvi.MNLinear):
                module.pruned.copy_(mask == 0)
            else:
                set_weight(module, module.weight * mask)


def parameters(model):
    return sum(
        layer.weight.numel() for layer in model.modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)
    )


def assert_compact(model, x):
    before = state(model)
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        expected = model(x)
    small = compact(model)
    assert type(small) is nn.Sequential
    assert not small.training
    assert all(
        type(module).__module__.startswith("torch.nn") or isinstance(module, Select) for module in small.modules()
    )
    assert parameters(small) <= parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected, **CLOSE)
    assert_state(model, before)
    assert modes == [module.training for module in model.modules()]
    return small


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compact_equals_the_pruned_network(name, groups):
    for fraction in (0.0, 0.5, 0.9):
        model, x = build(name)
        assert_compact(prune(model, fraction=fraction, groups=groups), x)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compact_of_a_network_with_nothing_left(name):
    model, x = build(name)
    assert_compact(prune(model, threshold=1e9), x)


@given(
    name=st.sampled_from(list(ARCHITECTURES)),
    fraction=st.sampled_from([0.2, 0.6, 0.9]),
    groups=st.sampled_from(GROUPS),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_compact_equals_any_masked_network(name, fraction, groups, seed):
    model, x = build(name, seed)
    mask_randomly(model, fraction, groups, seed)
    assert_compact(model, x)


def layer_sizes(model):
    return [tuple(m.weight.shape[:2]) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("between", [nn.ReLU, nn.Sigmoid, lambda: nn.BatchNorm1d(9)])
def test_compact_removes_exactly_the_dead_units(between):
    model, x = build("mlp relu")
    model[1] = between().eval()
    model[0].pruned[[1, 4]] = 1  # constant units
    model[0].pruned[:, [0, 5]] = 1  # inputs nobody uses
    model[2].pruned[:, [2, 8, 4]] = 1  # units nobody uses, one of them constant
    model[4].pruned[:, 3] = 1
    small = assert_compact(model, x)
    assert layer_sizes(small) == [(5, 4), (6, 5), (3, 6)]
    assert small[0].indices.tolist() == [1, 2, 3, 4]


def test_a_unit_is_dead_if_only_dead_units_feed_it():
    model, x = build("mlp sigmoid")
    model[0].pruned[:3] = 1
    model[3].pruned[0, 3:] = 1  # fed by the constants alone
    model[5].pruned[:, 1:5] = 1  # and the units of the first layer that feed only these
    model[3].pruned[5:, 3:6] = 1
    small = assert_compact(model, x)
    assert layer_sizes(small) == [(3, 6), (2, 3), (3, 2)]


def test_flatten_gives_a_channel_a_run_of_inputs():
    model, x = build("lenet method")
    model.conv.pruned[[0, 3]] = 1
    model.hidden.pruned[:, 4:8] = 1  # all of channel 1
    model.hidden.pruned[:, 8:11] = 1  # not all of channel 2
    small = assert_compact(model, x)
    assert layer_sizes(small) == [(4, 2), (2, 4), (8, 8), (3, 8)]


def test_padding_keeps_a_constant_that_is_not_zero_and_drops_one_that_is():
    for activation, left in ((nn.Sigmoid(), 4), (nn.ReLU(), 3)):
        torch.manual_seed(0)
        model = conv_net(activation, second=conv(2, 4, 5, 3, padding=1)).eval()
        with torch.no_grad():
            model[0].bias.fill_(-1.0)
        model[0].pruned[1] = 1
        small = assert_compact(model, torch.randn(2, 2, 6, 6))
        assert layer_sizes(small)[1] == (5, left)


def test_inputs_nobody_uses_are_dropped_by_one_select():
    for name, dim in (("conv circular", -3), ("flatten first", -1)):
        model, x = build(name)
        first = next(layer for layer in model.modules() if hasattr(layer, "pruned"))
        first.pruned[:, 0] = 1
        small = assert_compact(model, x)
        selects = [module for module in small if isinstance(module, Select)]
        assert [select.dim for select in selects] == [dim]
        assert 0 not in selects[0].indices
        assert_compact(small, x)
    small = compact(build("conv circular")[0])
    assert not any(isinstance(module, Select) for module in small)


def test_dtype_modes_and_requires_grad_are_kept():
    model = mlp(nn.ReLU()).float()
    model[0].weight.requires_grad_(False)
    model.train()
    small = compact(prune(model, fraction=0.5, groups="rows"))
    assert model.training
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert [p.requires_grad for p in small.parameters()][:2] == [False, True]
    state_of_generator = torch.get_rng_state()
    compact(model)
    assert torch.equal(torch.get_rng_state(), state_of_generator)


def test_a_compact_network_is_saved_loaded_and_trained():
    model, x = build("conv batch norm padded")
    prune(model, fraction=0.5, groups="rows")
    small = compact(model)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(small)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(torch.load(file))
    torch.testing.assert_close(again(x), small(x), rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(small))(x), small(x), rtol=0, atol=0)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    small[0].weight.data.zero_()
    assert model[0].weight.any()


# -- Negative controls: leave a step out and the equality fails --------------------------------------------------------


def test_without_folded_constants_the_outputs_differ():
    model, x = build("mlp sigmoid")
    prune(model, fraction=0.5, groups="rows", skip=["3", "5"])
    small = assert_compact(model, x)
    with torch.no_grad():
        next(m for m in small if getattr(m, "out_features", 0) == 7).bias.copy_(model[3].bias)
        assert (small(x) - model(x)).abs().max() > 1e-2


def test_without_regard_for_padding_the_outputs_differ(monkeypatch):
    torch.manual_seed(0)
    model = conv_net(nn.Sigmoid(), second=conv(2, 4, 5, 3, padding=1), size=6).eval()
    prune(model, fraction=0.5, groups="rows", skip=["2", "6"])
    x = torch.randn(2, 2, 8, 8)
    assert_compact(model, x)
    monkeypatch.setattr(Stage, "pads_zeros", lambda self: False)
    with torch.no_grad():
        assert (compact(model)(x) - model(x)).abs().max() > 1e-3


# -- What cannot be compacted ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two linear layers in whatever `call` makes of them."""

    def __init__(self, call, inputs=4):
        super().__init__()
        self.a, self.b, self.call = linear(4, 4), linear(inputs, 4), call

    def forward(self, x):
        return self.call(self, x)


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class OwnLayer(mnvi.MNLinear):
    def forward(self, input):
        return 2 * super().forward(input)


def with_hook():
    model = mlp(nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)
    return model


def shared(*between, kind=None):
    layer = kind(4) if kind else linear(4, 4)
    return nn.Sequential(*([linear(4, 4)] if kind else []), layer, *between, layer)


# fmt: off
def converted_encoder_layer():
    return mnvi.to_bayesian(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), skip=["self_attn"])


UNSUPPORTED = {
    "branch": (lambda: Net(lambda m, x: m.b(m.a(x)) + x), "'x' feeds a, add"),
    "twice": (lambda: Net(lambda m, x: m.a(m.a(x))), "layer 'a' .MNLinear. occurs twice"),
    "shared": (lambda: shared(nn.ReLU()), "layer '0' .MNLinear. occurs twice"),
    "shared norm": (lambda: shared(nn.ReLU(), kind=nn.BatchNorm1d), "layer '1' .BatchNorm1d. occurs twice"),
    "function": (lambda: Net(lambda m, x: m.b(torch.sin(m.a(x)))), "sin .'sin' in the model's forward. is not"),
    "operator": (lambda: Net(lambda m, x: m.b(m.a(x) * 2)), "mul"),
    "always dropout": (lambda: Net(lambda m, x: m.b(F.dropout(m.a(x)))), "dropout .* is not supported"),
    "flatten all": (lambda: Net(lambda m, x: m.b(m.a(x).flatten())), "flatten dimensions 1 to -1"),
    "keyword": (lambda: Net(lambda m, x: m.b(input=m.a(x))), "must be called with one tensor"),
    "view": (lambda: Net(lambda m, x: m.b(m.a(x).view(2, -1))), "view"),
    "view of another": (lambda: Net(lambda m, x: m.b(m.a(x).view(x.size(1), -1))), "feeds"),
    "softmax function": (lambda: Net(lambda m, x: m.b(m.a(x).softmax(1))), "softmax.*Softmax.* not supported"),
    "data": (lambda: Net(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x)), "torch.fx cannot trace"),
    "outputs": (lambda: Net(lambda m, x: (m.a(x), 1)), "one output"),
    "unused": (lambda: Net(lambda m, x: 1), "uses 0"),
    "inputs": (TwoInputs, "one input"),
    "no weights": (lambda: nn.Sequential(nn.ReLU()), "linear or convolutional layer"),
    "layer norm": (lambda: nn.Sequential(mlp(nn.LayerNorm(9))), "'0.1' .LayerNorm. between .*supported are Linear"),
    "softmax": (lambda: mlp(nn.Softmax(1)), "layer '1' .Softmax. between"),
    "own Bayesian": (lambda: mnvi.Sequential(OwnLayer(2, 2), linear(2, 2)), "'0' .OwnLayer. is or holds a Bayesian"),
    "inside torch's": (
        lambda: nn.Sequential(linear(4, 4), converted_encoder_layer()),
        "'1' .TransformerEncoderLayer. is or holds a Bayesian",
    ),
    "hooks": (with_hook, "layer '0' .MNLinear. has forward hooks"),
    "pool after linear": (lambda: mlp(nn.MaxPool1d(2)), "'1' .MaxPool1d. after a linear layer"),
    "other norm": (lambda: conv_net(nn.BatchNorm1d(4)), "'1' .BatchNorm1d. after values with 2 spatial"),
    "norm of another width": (lambda: mlp(nn.BatchNorm1d(8)), "'1' .BatchNorm1d. is for 8 units and gets 9"),
    "no flatten": (lambda: nn.Sequential(conv(1, 2, 4, 2), linear(4, 2)), "a Flatten belongs between"),
    "wrong width": (lambda: nn.Sequential(conv(1, 2, 4, 2), nn.Flatten(), linear(6, 2)), "with 6 inputs cannot follow"),
    "flatten of more dimensions": (lambda: nn.Sequential(linear(4, 3), nn.Flatten(), linear(6, 2)), "cannot follow"),
    "flatten from 2": (lambda: nn.Sequential(conv(2, 2, 4, 2), nn.Flatten(2), linear(4, 2)), "flatten dimensions 1"),
}
# fmt: on


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_compact_says_what_it_cannot_do(case):
    make, message = UNSUPPORTED[case]
    model = make()
    before, modes = state(model), [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        compact(model)
    assert_state(model, before)
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize("indices", [[], [[1, 2]], [-1], [0.5]])
def test_select_checks_its_indices(indices):
    with pytest.raises(ValueError, match="indices must be a non-empty list"):
        Select(indices)


def test_a_view_that_may_change_the_batch_is_refused():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, x):
            return self.layer(x).view(-1, 5)

    with pytest.raises(ValueError, match=r"flatten\(1\)"):
        compact(Viewed())
