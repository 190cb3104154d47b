"""Conversion of whole networks, and what optimisers, schedules, replicas and checkpointing do with the result."""

import copy
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import SWALR
from torch.utils.checkpoint import checkpoint

import mnvi
from mnvi import MNConv2d, MNLinear, frozen_sample, sampling, to_bayesian, to_deterministic
from mnvi.covariance import Diagonal, Kronecker, LowRank
from mnvi.layers import BayesianLayer
from mnvi.posteriors import MatrixNormal
from mnvi.priors import GroupARD
from tests.cases import PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def mlp(**options):
    return mnvi.Sequential(MNLinear(4, 6, **options), nn.Tanh(), MNLinear(6, 3, **options))


def draws(model, x=X):
    """Whether two calls differ."""
    return not torch.equal(model(x), model(x))


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


# Conversion -----------------------------------------------------------------------------------------------------------


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
        to_bayesian(model)
    assert sum(p.numel() for p in model[0].posterior.parameters()) * 4 / 2**20 == mebibytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_bayesian(nn.Linear(2, 5000), posterior=MatrixNormal(Kronecker(), Kronecker()))
        to_bayesian(nn.Linear(2, 5000), posterior=MatrixNormal(LowRank(4), Diagonal()))


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


# Learning rates -------------------------------------------------------------------------------------------------------


@cases("family", SOME_FAMILIES)
def test_weight_decay_shrinks_means_and_nothing_else(family):
    """With gradients of zero a step of AdamW is its decay alone: θ ← (1 − lr·decay)·θ."""
    model = randomise(mlp(posterior=family, prior=GroupARD(learn=True)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(mnvi.parameter_groups(model, lr=0.1), weight_decay=0.5).step()
    for name, p in model.named_parameters():
        decayed = "posterior" not in name and "prior" not in name
        assert_close(p.detach(), 0.95 * before[name] if decayed else before[name])


def test_the_default_decay_of_the_optimiser_stays_for_means():
    groups = torch.optim.AdamW(mnvi.parameter_groups(mlp())).param_groups
    default = torch.optim.AdamW([torch.zeros(1)]).param_groups[0]["weight_decay"]
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "means": default,
        "log_diagonals": 0,
        "off_diagonals": 0,
    }


def one_cycle(optimiser, rates):
    return OneCycleLR(optimiser, max_lr=[10 * rate for rate in rates], total_steps=9)


def averaging(optimiser, rates):
    return SWALR(optimiser, swa_lr=[0.5 * rate for rate in rates], anneal_epochs=4)


@pytest.mark.parametrize("schedule", [one_cycle, averaging])
def test_schedules_with_a_rate_for_each_group_keep_the_ratios(schedule):
    groups = mnvi.parameter_groups(mlp(), lr=0.1, log_diagonals=0.5)
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.SGD(groups)
    schedule = schedule(optimiser, rates)
    seen = set()
    for _ in range(8):
        optimiser.step()
        schedule.step()
        now = [group["lr"] for group in optimiser.param_groups]
        assert [rate / now[0] for rate in now] == pytest.approx([rate / rates[0] for rate in rates])
        seen.add(now[0])
    assert len(seen) > 3


# Replicas -------------------------------------------------------------------------------------------------------------


def replica(model):
    """What ``DataParallel`` makes of a model on each device: modules without parameters, whose tensors are copies."""
    copies = {parameter: parameter.clone() for parameter in model.parameters()}
    modules = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in modules.items():
        for name, child in module._modules.items():
            setattr(twin, name, modules[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, copies[parameter])
    return modules[model]


REPLICATED = {
    "conv": (lambda **options: MNConv2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "transposed": (lambda **options: mnvi.MNConvTranspose2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "linear": (lambda **options: MNLinear(4, 3, **options), (7, 4)),
}


def test_the_scale_of_a_likelihood_is_a_group_of_its_own_without_decay():
    model = mnvi.Sequential(MNLinear(3, 2))
    elbo = mnvi.ELBO(10, likelihood=mnvi.likelihoods.Gaussian())
    groups = {group["name"]: group for group in mnvi.parameter_groups(torch.nn.ModuleList([model, elbo]), lr=0.5)}
    assert [id(p) for p in groups["likelihoods"]["params"]] == [id(p) for p in elbo.parameters()]
    assert (groups["likelihoods"]["lr"], groups["likelihoods"]["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("estimator", ["local", "weight"])
@cases("layer", REPLICATED)
@cases("family", SOME_FAMILIES)
def test_replicas_draw_as_their_model_and_send_it_gradients(family, layer, estimator):
    build, shape = layer
    model, x = build(posterior=family, estimator=estimator), torch.randn(shape)
    twin = replica(model)
    assert not list(twin.parameters())
    draws = []
    for module in (model, twin):
        torch.manual_seed(1)
        draws.append(module(x))
    assert torch.equal(*draws)
    assert_close(twin.kl(), model.kl().detach())
    with frozen_sample(twin):
        assert torch.equal(twin(x), twin(x))
    (draws[1].square().sum() + twin.kl()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@cases("prior", PRIORS)
def test_replicas_have_the_kl_of_every_prior(prior):
    model = MNLinear(4, 3, prior=prior)
    if not model.kl().isclose(model.kl()):  # precisions that a call improves
        for _ in range(50):
            model.kl()
    assert_close(replica(model).kl(), model.kl().detach())


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_replicas_of_orthogonal_recurrent_layers_run(nonlinearity):
    model = mnvi.rnn.OrthogonalRNN(3, 4, nonlinearity=nonlinearity, num_layers=2)
    x = torch.randn(5, 2, 3)
    expected, _ = model(x)
    output, _ = replica(model)(x)
    assert_close(output, expected.detach())
    output.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(TypeError, match="complex"):
        replica(model)(x.to(torch.complex128))


# One parameter in two places ------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """An embedding whose weight is that of the output layer too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embedding(tokens))))


def two_linears():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


def aliased():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model.register_parameter("alias", model[0].weight)
    return model


TIED = {
    "embedding": (
        LanguageModel,
        {"skip": "embedding"},
        r"'embedding.weight' and 'head.weight'.*=\['embedding', 'head'\]",
    ),
    "linears": (two_linears, {}, r"'0.weight' and '2.weight'"),
    "one of two linears": (two_linears, {"skip": "0"}, r"'0.weight' and '2.weight'"),
    "the other of two linears": (two_linears, {"only": ["0", "3"]}, r"'0.weight' and '2.weight'"),
    "alias": (aliased, {}, r"'alias' and '0.weight'"),
}


@pytest.mark.filterwarnings("ignore:no posterior for")
@cases("row", TIED)
def test_a_weight_that_stands_in_two_places_is_refused_and_nothing_changes(row):
    build, options, message = row
    model = build()
    kinds, state = [type(module) for module in model.modules()], list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        to_bayesian(model, **options)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == state
    assert not model._forward_hooks


def test_skipping_every_place_of_a_tied_weight_converts_the_rest():
    model = to_bayesian(LanguageModel(), skip=["embedding", "head"])
    assert [name for name, module in model.named_modules() if isinstance(module, BayesianLayer)] == ["hidden"]
    assert model.head.weight is model.embedding.weight
    model = to_bayesian(two_linears(), skip=["0", "2"])
    assert [isinstance(module, BayesianLayer) for module in model.children()] == [False, False, False, True]


def test_a_bias_may_be_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    assert to_bayesian(model)[1].bias is model[0].bias


def test_pruning_refuses_a_weight_that_was_tied_later():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": MNLinear(4, 5), "other": MNLinear(4, 4)})
    model["embedding"].weight = model["head"].weight
    before = model["head"].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'embedding.weight' and 'head.weight'"):
        mnvi.sparsity.prune(model, fraction=0.9)
    assert torch.equal(model["embedding"].weight, before)
    mnvi.sparsity.prune(model, fraction=0.5, skip=["head"])
    assert torch.equal(model["embedding"].weight, before)
    assert (model["other"].weight == 0).sum() == 8


def test_the_kl_counts_no_mean_twice():
    model = mnvi.Sequential(MNLinear(4, 4), MNLinear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="'0' and '1' have one parameter as their mean"):
        model.kl()


# What stays deterministic ---------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A module of one's own with a matrix and a vector."""

    def __init__(self):
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.ones(4))


def assorted():
    return nn.ModuleDict(
        {
            "fc": nn.Linear(4, 4),
            "embedding": nn.Embedding(5, 4),
            "rnn": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "bilinear": nn.Bilinear(2, 2, 3),
            "positions": Positions(),
            "norm": nn.ModuleList([nn.LayerNorm((2, 4)), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "lazy": nn.LazyLinear(3),
            "prelu": nn.PReLU(4),
        }
    )


LEFT = {
    "embedding": "Embedding",
    "rnn": "LSTM",
    "attention": "MultiheadAttention",
    "attention.out_proj": "NonDynamicallyQuantizableLinear",
    "bilinear": "Bilinear",
    "positions": "Positions",
    "normed": "ParametrizedLinear",
    "lazy": "LazyLinear",
}


def test_what_stays_deterministic_is_named_in_one_warning_and_in_the_report():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = to_bayesian(assorted())
    expected = [f"{name} ({kind})" for name, kind in LEFT.items()]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message).startswith(f"no posterior for {', '.join(expected)}:")
    del model["lazy"], model["normed"]
    report = mnvi.sparsity.report(model)
    assert list(report.deterministic) == expected[:-2]
    assert report.to_dict()["deterministic"] == expected[:-2]
    assert str(report).splitlines()[-1] == f"deterministic: {', '.join(expected[:-2])}"


def test_what_skip_names_and_only_leaves_out_is_meant():
    to_bayesian(assorted(), skip=[name for name in LEFT if "." not in name])
    to_bayesian(assorted(), only=["fc"])
    with pytest.warns(UserWarning, match=r"no posterior for 1.1 \(Embedding\):"):
        to_bayesian(nn.Sequential(nn.Embedding(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4))), only="1")


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))
    with pytest.raises(UserWarning, match="Embedding"):
        to_bayesian(model)
    assert type(model[1]) is nn.Linear
    assert not model._forward_hooks


def test_the_report_of_a_plain_model_names_nothing():
    assert mnvi.sparsity.report(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))).deterministic == ()


# Hugging Face's Conv1D ------------------------------------------------------------------------------------------------


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


# Weights that are read past the forward of their layer ----------------------------------------------------------------


class FusedAttention(nn.Module):
    """As torchvision's Swin: the weights of two layers go to a function, a third is called."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.gate = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v) * self.gate(x).sigmoid()
        return F.linear(mixed, self.proj.weight, self.proj.bias)


class OnlyProjection(FusedAttention):
    def forward(self, x):
        return self.qkv(x)[..., :4] @ self.proj.weight.T + self.gate(x)


class InDictionary(FusedAttention):
    def forward(self, x):
        return {"loss": super().forward(x).sum(), "none": None, "pair": (x,)}


@dataclass
class Output:
    """What a model of one's own may return."""

    hidden: torch.Tensor
    extra: None = None


class InDataclass(FusedAttention):
    def forward(self, x):
        return [Output(super().forward(x))]


PAST = {
    "fused": (FusedAttention, ["qkv", "proj"]),
    "projection": (OnlyProjection, ["proj"]),
    "dictionary": (InDictionary, ["qkv", "proj"]),
    "dataclass": (InDataclass, ["qkv", "proj"]),
}


@cases("row", PAST)
def test_a_weight_read_past_its_layer_is_refused_by_name_in_the_first_training_pass(row):
    build, names = row
    model = to_bayesian(nn.Sequential(build()))
    x = torch.randn(2, 5, 4)
    model.eval()(x)  # nothing to see in eval mode
    model.train()
    with torch.no_grad():
        model(x)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"weight of {', '.join(f'.0.{name}.' for name in names)}, but"):
            model(x)
    rest = to_bayesian(nn.Sequential(build()), skip=[f"0.{name}" for name in names])
    rest(x)
    assert not rest._forward_hooks


class Reading(nn.Module):
    """Reads a weight that it also draws, sums all parameters, and leaves a layer out of some passes."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.expert = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, expert=False):
        if self.used.weight.dtype != x.dtype:
            x = x.to(self.used.weight.dtype)
        y = F.linear(self.used(x), self.used.weight.mT)
        penalty = sum(p.square().sum() for p in self.parameters())
        return (self.expert(y) if expert else y).sum() + penalty


@pytest.mark.parametrize("expert", [False, True])
def test_layers_that_draw_or_take_no_part_are_not_refused(expert):
    model = to_bayesian(Reading())
    assert model._forward_hooks
    model(X, expert)
    assert not model._forward_hooks
    frozen = to_bayesian(FusedAttention())
    for layer in (frozen.qkv, frozen.proj):
        layer.eval()
    frozen(torch.randn(2, 5, 4))
    assert not frozen._forward_hooks


def test_variances_given_from_outside_are_not_missed():
    model = to_bayesian(nn.Sequential(nn.Linear(4, 4)))
    scale = torch.ones((), requires_grad=True)
    given = {name: scale * p.detach() for name, p in model.named_parameters() if "posterior" in name}
    torch.func.functional_call(model, given, (X,)).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_that_draw_are_not_refused(reentrant):
    model = to_bayesian(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=reentrant)

    model = to_bayesian(Checkpointed())
    model(X.clone().requires_grad_()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # torch's tracer of functions
def test_a_converted_model_compiles_copies_and_pickles_before_its_first_pass():
    model = to_bayesian(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(X)
        assert not twin._forward_hooks
    assert not to_deterministic(model)._forward_hooks
    assert not mnvi.sparsity.compact(model)._forward_hooks
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(X).shape == (7, 3)
    assert torch.equal(torch.export.export(model.eval(), (X,)).module()(X), model(X))
    model.train()(X)
    assert not model._forward_hooks


def test_the_output_layer_of_an_attention_is_never_converted():
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Linear(4, 4)  # read by a function whatever its class is
    with pytest.warns(UserWarning, match=r"0.out_proj \(Linear\)"):
        model = to_bayesian(nn.Sequential(attention, nn.Linear(4, 4)))
    assert type(attention.out_proj) is nn.Linear
    assert isinstance(model[1], MNLinear)


# Optimisers made before the conversion --------------------------------------------------------------------------------


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


# Activation checkpointing ---------------------------------------------------------------------------------------------


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


class WithPenalty(torch.nn.Module):
    """Returns its output and the squares of all weights, also of a layer that does not run."""

    def __init__(self):
        super().__init__()
        self.a, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        output = {"logits": self.a(x), "penalty": self.a.weight.square().sum() + self.unused.weight.norm()}
        output["self"] = output
        return output


def test_a_penalty_of_the_weights_is_no_reading_past_the_layer():
    model = to_bayesian(WithPenalty())
    assert model(torch.randn(2, 3))["logits"].shape == (2, 3)


def test_complex_layers_stay_as_they_are():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.complex64), torch.nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="deterministic"):
        to_bayesian(model)
    assert type(model[0]) is torch.nn.Linear
