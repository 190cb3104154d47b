"""Conversion of whole networks to Bayesian ones, and back."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import mnvi
from mnvi import MNConv2d, MNLinear, to_bayesian, to_deterministic
from mnvi.covariance import Diagonal, Kronecker, LowRank
from mnvi.layers import BayesianLayer
from mnvi.posteriors import MatrixNormal
from mnvi.priors import GroupARD, Normal
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, randomise
from tests.models import draws

pytestmark = pytest.mark.usefixtures("float64")


def convnet():
    """A plain network with every kind of thing around the layers that a conversion replaces."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Dropout(0.5), nn.Flatten()),
        nn.Linear(2 * 8 * 8, 3),
    )


IMAGES = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def plain_types(model):
    return [type(module) for module in model.modules()]


def test_conversion_keeps_the_function_and_the_names():
    plain = convnet().eval()
    expected, state = plain(IMAGES), copy.deepcopy(plain.state_dict())
    model = to_bayesian(plain)
    assert model is plain
    assert plain_types(model)[1] is MNConv2d
    assert sum(isinstance(m, BayesianLayer) for m in model.modules()) == 3
    assert_close(model(IMAGES), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert_close(model.kl(), mnvi.kl(model))
    assert draws(model.train(), IMAGES)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_posterior_starts_at_a_tenth_of_the_size_of_the_weights(scale):
    plain = nn.Linear(6, 4)
    nn.init.normal_(plain.weight, std=scale)
    size = plain.weight.square().mean().sqrt().item()
    model = to_bayesian(plain)
    assert_close(model.distribution().variance.sqrt(), torch.full((4, 6), 0.1 * size))


@pytest.mark.parametrize("exponent", [-100, -40, 40])  # whose squares are no numbers of float32 but for the last
def test_the_size_of_weights_of_single_precision_may_be_extreme(exponent):
    plain = nn.Linear(6, 4).float()
    size = plain.weight.square().mean().sqrt().item()
    with torch.no_grad():
        plain.weight.mul_(2.0**exponent)
    model = to_bayesian(plain, posterior=mnvi.posteriors.Diagonal())
    expected = torch.full((4, 6), math.log(0.1 * size) + exponent * math.log(2)).float()
    torch.testing.assert_close(model.posterior.log_scale.detach(), expected, rtol=1e-6, atol=0)
    assert model.kl().isfinite()


def test_weights_without_a_kl_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).float()
    with torch.no_grad():
        model[1].weight.fill_(1e20)
    with pytest.raises(ValueError, match=r"layer '1' has a root mean square of 1e\+20, .* overflows in torch\.float32"):
        to_bayesian(model)
    assert type(model[0]) is nn.Linear
    to_bayesian(model, skip=["1"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_weight_without_entries_is_refused(sizes):
    with pytest.raises(ValueError, match=r"layer '1' has no entries, shape .*; name it in skip"):
        to_bayesian(nn.Sequential(nn.Linear(2, 2), nn.Linear(*sizes)))


def test_a_layer_of_zeros_gets_a_posterior_too():
    plain = nn.Linear(6, 4)
    nn.init.zeros_(plain.weight)
    variance = to_bayesian(plain).distribution().variance
    assert variance.isfinite().all()
    assert (variance > 0).all()


def test_converting_a_layer_returns_its_replacement():
    plain = nn.Linear(4, 3)
    layer = to_bayesian(plain, prior=GroupARD(), estimator="weight")
    assert type(layer) is MNLinear
    assert layer.estimator == "weight"
    assert type(layer.prior).__name__ == "GroupARDPrior"
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)


CONVERTIBLE = {
    "linear": nn.Linear(3, 4, bias=False),
    "conv1d": nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="circular"),
    "conv2d": nn.Conv2d(2, 3, (3, 1), padding="same", bias=False),
    "conv3d": nn.Conv3d(2, 3, (1, 2, 3), padding=1, padding_mode="replicate"),
    "transposed1d": nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2),
    "transposed2d": nn.ConvTranspose2d(2, 3, (3, 2), dilation=2, bias=False),
    "transposed3d": nn.ConvTranspose3d(2, 3, 2, padding=1),
}


@cases("plain", CONVERTIBLE)
@cases("family", SOME_FAMILIES)
def test_every_kind_of_layer_converts_there_and_back(family, plain):
    plain = copy.deepcopy(plain).double().eval()
    x = torch.randn(2, plain.weight.shape[1] if plain.weight.dim() == 2 else plain.in_channels, 5, 5, 5)
    x = x[(slice(None), slice(None), *[0] * (5 - plain.weight.dim()))]
    expected = plain(x)
    layer = to_bayesian(nn.Sequential(copy.deepcopy(plain)), posterior=family)[0]
    assert type(layer).__name__ == "MN" + type(plain).__name__
    assert_close(layer(x), expected)
    back = to_deterministic(layer)
    assert type(back) is type(plain)
    assert torch.equal(back(x), expected)
    assert back.extra_repr() == plain.extra_repr()


def test_shared_layers_stay_shared():
    shared = nn.Linear(4, 4)
    model = to_bayesian(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)))
    assert model[0] is model[2][0]
    assert_close(model.kl(), model[0].kl())
    back = to_deterministic(model)
    assert back[0] is back[2][0]


def converted(model):
    return {name for name, module in model.named_modules() if isinstance(module, BayesianLayer)}


CHOICES = {
    "everything": ({}, {"0", "3.0", "4"}),
    "skip a layer": ({"skip": ["0"]}, {"3.0", "4"}),
    "skip a container by a string": ({"skip": "3"}, {"0", "4"}),
    "skip from an iterator": ({"skip": ("3.0", "4")}, {"0"}),
    "skip what is not converted": ({"skip": ["2"]}, {"0", "3.0", "4"}),
    "only a container": ({"only": ["3"]}, {"3.0"}),
    "only a layer by a string": ({"only": "4"}, {"4"}),
    "only from an iterator": ({"only": ("0", "3.0")}, {"0", "3.0"}),
    "only what is skipped": ({"only": ["3", "4"], "skip": ["4"]}, None),
}


@cases("row", CHOICES)
def test_names_choose_what_is_converted(row):
    options, expected = row
    options = {name: iter(given) if isinstance(given, tuple) else given for name, given in options.items()}
    model = convnet()
    if expected is None:  # asked for and refused at once
        with pytest.raises(ValueError, match="4"):
            to_bayesian(model, **options)
        assert converted(model) == set()
    else:
        assert converted(to_bayesian(model, **options)) == expected


class CustomLinear(nn.Linear):
    pass


def test_subclasses_are_left_alone():
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 2), "custom": CustomLinear(4, 4), "fc": nn.Linear(4, 4)}
    )
    with pytest.warns(UserWarning, match=r"attention \(Multihead.*attention.out_proj.*custom \(CustomLinear\)"):
        assert converted(to_bayesian(model)) == {"fc"}
    assert type(model["custom"]) is CustomLinear


def test_converting_twice_converts_the_rest():
    model = to_bayesian(convnet(), only="0")
    first = model[0]
    to_bayesian(model)
    assert model[0] is first
    assert converted(model) == {"0", "3.0", "4"}


BAD_CONVERSIONS = {
    "unknown skip": ({"skip": ["fc"]}, ValueError, "fc"),
    "unknown only": ({"only": ["4", "5"]}, ValueError, "5"),
    "only something else": ({"only": ["1"]}, ValueError, "BatchNorm2d"),
    "posterior class": ({"posterior": MatrixNormal}, TypeError, "posterior"),
    "prior class": ({"prior": GroupARD}, TypeError, "prior"),
    "estimator": ({"estimator": "both"}, ValueError, "estimator"),
    "empty estimator": ({"estimator": ""}, ValueError, "estimator"),
    "prior that does not fit": ({"prior": mnvi.priors.Normal(torch.ones(3, 128))}, ValueError, "scale"),
    "bias posterior": ({"bias_posterior": "normal"}, TypeError, "bias_posterior"),
    "unknown keyword": ({"posteriors": None}, TypeError, "posteriors"),
}


@cases("row", BAD_CONVERSIONS)
def test_errors_leave_the_model_as_it_was(row):
    options, error, message = row
    model = convnet()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(error, match=message):
        to_bayesian(model, **options)
    assert list(model.modules()) == modules
    assert "kl" not in vars(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3)), CustomLinear(2, 2), nn.Sequential()])
def test_nothing_to_convert(model):
    with pytest.raises(ValueError, match="convert"):
        to_bayesian(model)


def test_a_large_layer_says_how_much_memory_its_factors_take():
    model = nn.Sequential(nn.Linear(2, 5000, bias=False, dtype=torch.float32))
    mebibytes = 4 * MatrixNormal().num_parameters((5000, 2)) / 2**20
    assert mebibytes > 32
    with pytest.warns(UserWarning, match=f"'0' take {mebibytes:.0f} MiB"):
        to_bayesian(model, posterior=MatrixNormal())
    assert sum(p.numel() for p in model[0].posterior.parameters()) * 4 / 2**20 == mebibytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_bayesian(nn.Linear(2, 5000), posterior=MatrixNormal(Kronecker(), Kronecker()))
        to_bayesian(nn.Linear(2, 5000), posterior=MatrixNormal(LowRank(4), Diagonal()))
        to_bayesian(nn.Linear(3000, 5000, device="meta"), posterior=mnvi.posteriors.Diagonal())
        to_bayesian(nn.Linear(2, 5000))


def test_without_arguments_a_conversion_fits_the_priors_scale_to_each_layer():
    torch.nn.init.normal_((plain := nn.Linear(6, 4)).weight, std=0.01)
    layer = to_bayesian(plain)
    second_moment = layer.distribution().mean.square() + layer.distribution().variance
    assert_close(layer.kl(), Normal(second_moment.mean().sqrt().item()).build((4, 6)).kl(layer.weight, layer.posterior))
    assert type(MNLinear(6, 4).prior) is type(Normal(1.0).build((4, 6)))


def test_a_conversion_says_in_the_log_what_it_chose(caplog):
    with caplog.at_level("INFO", logger="mnvi"):
        to_bayesian(nn.Sequential(nn.Linear(600, 99), nn.Linear(99, 10), nn.Linear(600, 10)), prior=GroupARD())
    (line,) = caplog.messages
    assert "2 × MatrixNormal(Dense(), Diagonal()) under GroupARDPrior" in line


def test_conversion_keeps_modes_and_what_is_trained():
    model = convnet()
    model[4].eval()
    for parameter in (model[0].weight, model[3][0].weight, model[3][0].bias):
        parameter.requires_grad_(False)
    to_bayesian(model)
    assert [model[0].training, model[3][0].training, model[4].training] == [True, True, False]
    assert not model[0].weight.requires_grad
    assert not model[3][0].weight.requires_grad
    assert not model[3][0].bias.requires_grad
    assert model[4].weight.requires_grad
    back = to_deterministic(model)
    assert not back[3][0].weight.requires_grad
    assert not back[3][0].bias.requires_grad


def test_back_to_torch_is_plain_and_a_copy():
    plain = convnet()
    types, state = plain_types(plain), set(plain.state_dict())
    model = randomise(to_bayesian(plain), 0.1).eval()
    back = to_deterministic(model)
    assert plain_types(back) == types
    assert set(back.state_dict()) == state
    assert "kl" not in vars(back)
    assert_close(back(IMAGES), model(IMAGES))
    with torch.no_grad():
        back[0].weight.zero_()
    assert model[0].weight.abs().sum() > 0
    assert converted(model) == {"0", "3.0", "4"}


def test_a_sampled_copy_of_a_pruned_and_a_constrained_layer():
    model = to_bayesian(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).eval()
    mnvi.constrain(model[0], "weight", mnvi.parametrizations.Cayley())
    mnvi.sparsity.prune(model[1:], fraction=0.5)
    torch.manual_seed(2)
    drawn = to_deterministic(model, sample=True)
    assert not parametrize.is_parametrized(drawn[0])
    assert parametrize.is_parametrized(model[0])
    assert torch.equal(drawn[1].weight == 0, model[1].pruned != 0)
    torch.manual_seed(2)
    with mnvi.frozen_sample(model):
        assert_close(drawn(torch.eye(4)), model(torch.eye(4)))


def test_draws_with_statistics_of_their_own_predict_together():
    model = randomise(to_bayesian(convnet()), 0.3).eval()
    networks = [to_deterministic(model, sample=True) for _ in range(4)]
    for network in networks:
        torch.optim.swa_utils.update_bn([IMAGES], network)
        entering = network[0](IMAGES)
        assert_close(network[1].running_mean, entering.mean((0, 2, 3)))
        assert_close(network[1].running_var, entering.var((0, 2, 3)))
    expected = torch.stack([network.eval()(IMAGES).softmax(-1) for network in networks]).mean(0)
    assert_close(mnvi.predict(networks, IMAGES, num_samples=1).mean, expected)


def test_back_to_torch_of_a_converted_part():
    model = nn.Sequential(to_bayesian(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2))
    back = to_deterministic(model)
    assert all("kl" not in vars(module) for module in back.modules())
    assert "kl" in vars(model[0])


def test_a_subclass_cannot_go_back_and_says_so():
    class Custom(MNLinear):
        pass

    with pytest.raises((ValueError, TypeError), match="Custom"):
        to_deterministic(nn.Sequential(Custom(4, 3)))


def test_a_converted_model_copies_and_pickles():
    model = to_bayesian(convnet())
    model.kl().backward()
    twin = copy.deepcopy(model)
    randomise(twin)
    assert_close(twin.kl(), mnvi.kl(twin))  # its own KL, not that of the original
    assert not torch.equal(twin.kl(), model.kl())
    loaded = pickle.loads(pickle.dumps(model))
    assert_close(loaded.kl(), model.kl())
    assert torch.equal(loaded.eval()(IMAGES), model.eval()(IMAGES))


def test_the_output_layer_of_an_attention_is_never_converted():
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Linear(4, 4)  # read by a function whatever its class is
    with pytest.warns(UserWarning, match=r"0.out_proj \(Linear\)"):
        model = to_bayesian(nn.Sequential(attention, nn.Linear(4, 4)))
    assert type(attention.out_proj) is nn.Linear
    assert isinstance(model[1], MNLinear)


def test_complex_layers_stay_as_they_are():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.complex64), torch.nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="deterministic"):
        to_bayesian(model)
    assert type(model[0]) is torch.nn.Linear


class WithOwnKL(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def kl(self, z):
        return z


def test_a_model_keeps_a_kl_of_its_own():
    model = to_bayesian(WithOwnKL())
    assert model.kl(3) == 3
    assert mnvi.kl(model) > 0


def test_only_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to convert"):
        to_bayesian(nn.Sequential(nn.Linear(2, 2)), only=[])


@pytest.mark.parametrize("options", [{}, {"only": ["0"]}, {"skip": ["1"]}, {"only": ["0", "1"]}], ids=str)
def test_a_second_conversion_says_that_the_layers_are_bayesian_already(options):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    to_bayesian(model, skip=["1"] if "skip" in options else ())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"nothing to convert.*Bayesian already; .*mnvi\.to_deterministic\(model\)"):
        to_bayesian(model, **options)
    assert_same_state(model, state)


def assert_same_state(model, state):
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "first",
    [
        lambda model: to_bayesian(model, skip=["1", "2"]),
        lambda model: to_bayesian(model[0]),
        lambda model: model.__setitem__(0, mnvi.MNLinear(3, 4)),
    ],
    ids=["the model without a part", "a part", "a layer of ours"],
)
def test_a_model_that_is_bayesian_in_part_is_converted_in_what_is_left(first):
    """What was there keeps its posterior; all draw, and all have gradients."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    first(model)
    kept = dict(model[0].named_parameters())
    state = copy.deepcopy(model[0].state_dict())
    assert to_bayesian(model, posterior=mnvi.posteriors.Diagonal(), only=["2"]) is model
    assert dict(model[0].named_parameters()) == kept
    assert_same_state(model[0], state)
    assert [name for name, _ in mnvi.bayesian_layers(model)] == ["0", "2.0", "2.1"]
    (model(torch.ones(5, 3)).sum() + model.kl() / 10).backward()
    assert all(p.grad is not None for p in model.parameters())
    for _, layer in mnvi.bayesian_layers(model):
        with mnvi.sampling(layer.eval()):
            assert not torch.equal(*(layer(torch.ones(1, layer.in_features)) for _ in range(2)))
    assert mnvi.predict(model, torch.ones(5, 3), 3).mutual_information.shape == (5,)
    plain = mnvi.to_deterministic(model)
    assert not any(mnvi.bayesian_layers(plain))


def test_hooks_of_a_converted_layer_stay():
    calls = []
    hooked = nn.Sequential(nn.Linear(3, 2))
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    to_bayesian(hooked)(torch.randn(1, 3))
    assert calls == [1]


def test_a_normed_layer_stays_as_it_is():
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    assert type(to_bayesian(normed, skip="0")[0]).__name__ == "ParametrizedLinear"
