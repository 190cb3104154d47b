"""Posteriors of biases and of norms: their KL, their draws, their modes, and what becomes of them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import vmap

import mnvi
from mnvi import frozen_sample, sampling, to_bayesian, to_deterministic
from tests.cases import cases
from tests.laws import assert_close, assert_moments, randomise

pytestmark = pytest.mark.usefixtures("float64")

# A torch layer, and the shape of its input.
LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv": (lambda: nn.Conv2d(2, 4, 2), (3, 2, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 4, 2), (3, 2, 3)),
}
NORMS = {
    "batch": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "batch2d": (lambda: nn.BatchNorm2d(4), (2, 4, 3, 2)),
    "batch3d": (lambda: nn.BatchNorm3d(4), (2, 4, 3, 2, 1)),
    "layer": (lambda: nn.LayerNorm((2, 4)), (5, 2, 4)),
    "layer without bias": (lambda: nn.LayerNorm(4, bias=False), (5, 4)),
    "group": (lambda: nn.GroupNorm(2, 4), (3, 4, 2)),
}
WITHOUT = {
    "batch": lambda: nn.BatchNorm1d(4, affine=False),
    "layer": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
}


def convnet():
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)]
    return nn.Sequential(*body, nn.LayerNorm(6), nn.Linear(6, 3, bias=False))


IMAGES = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def converted(plain, **options):
    """Converted with posteriors of biases, its weights without noise, all numbers arbitrary."""
    model = to_bayesian(nn.Sequential(plain, nn.Linear(1, 1)), bias_posterior=True, **options)[0]
    randomise(model, 0.5)
    for part in model.modules():
        if isinstance(part, mnvi.BayesianLayer):
            part.posterior.set_scale_(1e-20)
    return model


def vectors(layer):
    """Name → (mean, standard deviation, the prior's mean) of every vector with a posterior."""
    names = [name.removesuffix("_posterior") for name, _ in layer.named_children() if name.endswith("_posterior")]
    scales = {name: layer.get_parameter(f"{name}_posterior.posterior.log_scale").exp() for name in names}
    ones = 1.0 if not isinstance(layer, mnvi.BayesianLayer) else None
    return {name: (getattr(layer, name), scales[name], ones if name == "weight" else 0.0) for name in names}


def divergence(layer):
    """Of the vectors, by torch's distributions."""
    terms = [
        kl_divergence(Normal(mean.flatten(), scale.flatten()), Normal(loc, 1.0)).sum()
        for mean, scale, loc in vectors(layer).values()
    ]
    return torch.stack(terms).sum()


# Laws -----------------------------------------------------------------------------------------------------------------


@cases("row", LAYERS | NORMS)
def test_the_divergence_is_that_of_torchs_normals(row):
    layer = converted(row[0]())
    assert vectors(layer)
    of_weight = 0.0
    if isinstance(layer, mnvi.BayesianLayer):
        of_weight = layer.prior.kl(layer.weight.flatten(1), layer.posterior)
    assert_close(layer.kl(), of_weight + divergence(layer))


@cases("row", LAYERS)
def test_draws_of_a_bias_move_outputs_by_it(row):
    """One draw a call, the same for every example and location: the output's deviation is that of the bias."""
    make, shape = row
    layer, x = converted(make(), estimator="weight"), torch.randn(shape)
    (_, scale, _) = vectors(layer)["bias"]
    mean = copy.deepcopy(layer).eval()(x)
    draws = vmap(lambda _: layer(x) - mean, randomness="different")(torch.arange(20_000)).detach()
    draws = draws.movedim(2, -1).flatten(1, -2)  # (draws, examples and locations, channels)
    assert_close(draws, draws[:, :1].expand_as(draws), c=1e4)
    assert_moments(draws[:, 0], torch.zeros(4), scale.detach().flatten().square().diag())


@cases("row", NORMS)
def test_draws_of_a_norm_have_the_moments_of_its_weight_and_bias(row):
    """y = x̂∘w + b, so Var y = x̂²∘Var w + Var b; x̂ is torch's, of a norm with w = 1 and b = 0."""
    make, shape = row
    layer, x = converted(make()), torch.randn(shape)
    plain = make().train()
    normalized = plain(x).detach()
    per_channel = (-1, *[1] * (x.dim() - 2)) if not isinstance(plain, nn.LayerNorm) else plain.normalized_shape
    found = {name: [each.detach().view(per_channel) for each in row[:2]] for name, row in vectors(layer).items()}
    (w, sd_w), (b, sd_b) = found["weight"], found.get("bias", (torch.tensor(0.0), torch.tensor(0.0)))
    mean, variance = normalized * w + b, (normalized * sd_w).square() + sd_b.square()
    with torch.no_grad():
        draws = torch.stack([layer(x) for _ in range(4000)]).flatten(1)
    covariance = torch.full((draws.shape[1],) * 2, float("nan"))
    covariance.diagonal().copy_(variance.expand_as(mean).flatten())
    assert_moments(draws, mean.flatten(), covariance)


@cases("row", LAYERS | NORMS)
def test_gradients_reach_means_and_scales_and_nothing_stays_on_the_layer(row):
    make, shape = row
    layer, x = converted(make(), estimator="weight"), torch.randn(shape)
    before = set(vars(layer))
    layer(x).square().sum().backward()
    assert set(vars(layer)) == before
    for name, (mean, _, _) in vectors(layer).items():
        assert mean.grad.abs().sum() > 0
        assert layer.get_parameter(f"{name}_posterior.posterior.log_scale").grad.abs().sum() > 0


@cases("row", LAYERS | NORMS)
def test_the_start_is_a_tenth_of_the_vectors_size(row):
    make, _ = row
    plain = make()
    weight, bias = plain.weight.detach().clone(), None if plain.bias is None else plain.bias.detach().clone()
    layer = to_bayesian(nn.Sequential(plain, nn.Linear(1, 1)), bias_posterior=True)[0]
    size = (bias if isinstance(layer, mnvi.BayesianLayer) else weight).square().mean().sqrt()
    for _, scale, _ in vectors(layer).values():
        assert_close(scale, (0.1 * size).expand_as(scale))


def test_a_bias_of_zeros_starts_as_that_of_a_new_layer():
    nn.init.zeros_((plain := nn.Linear(12, 4)).bias)
    ((_, scale, _),) = vectors(to_bayesian(plain, bias_posterior=True)).values()
    assert_close(scale, torch.full((1, 4), 0.1 / 36**0.5))


# Modes ----------------------------------------------------------------------------------------------------------------


@cases("row", LAYERS | NORMS)
def test_modes_are_those_of_every_bayesian_layer(row):
    make, shape = row
    layer, x = converted(make()), torch.randn(shape)

    def draws():
        return not torch.equal(layer(x), layer(x))

    assert draws()
    layer.eval()
    mean = layer(x)
    assert not draws()
    with sampling(layer):
        assert draws()
        assert not torch.equal(layer(x), mean)
    with frozen_sample(layer):
        assert not draws()
        assert not torch.equal(layer(x), mean)
    with pytest.raises(RuntimeError, match="inside"), frozen_sample(layer):
        raise RuntimeError("inside")
    assert torch.equal(layer(x), mean)


def test_a_draw_that_fails_leaves_the_norm_as_it_was():
    layer = converted(nn.BatchNorm1d(4))
    before = set(vars(layer))
    with pytest.raises(ValueError, match="2D or 3D"):
        layer(torch.randn(4))
    assert set(vars(layer)) == before
    assert layer.weight is layer._parameters["weight"]


# Whole models ---------------------------------------------------------------------------------------------------------


def test_a_model_counts_every_posterior_once():
    model = to_bayesian(convnet(), bias_posterior=True)
    layers = [model[i] for i in (1, 4, 5)]
    of_weights = sum(model[i].prior.kl(model[i].weight.flatten(1), model[i].posterior) for i in (0, 4, 6))
    assert_close(model.kl(), of_weights + sum(divergence(layer) for layer in layers))
    shared = nn.Sequential(model[1], model[1])
    assert_close(mnvi.kl(shared), divergence(model[1]))


def test_groups_copies_pickles_and_states_have_them():
    model = randomise(to_bayesian(convnet(), bias_posterior=True), 0.1)
    (scales,) = (each for each in mnvi.parameter_groups(model) if each["name"] == "log_diagonals")
    own = {p for name, p in model.named_parameters() if "_posterior.posterior.log_scale" in name}
    assert len(own) == 5
    assert own <= set(scales["params"])
    assert own <= set(mnvi.other_parameters(model))
    twin = to_bayesian(convnet(), bias_posterior=True)
    twin.load_state_dict(model.state_dict())
    for other in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other.kl(), model.kl())


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_predictions_and_fit_draw_them():
    """By vmap and one by one; all weights are without noise, so what varies is that of the biases and norms."""
    torch.manual_seed(1)
    model = to_bayesian(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), bias_posterior=True)
    for _, layer in mnvi.bayesian_layers(model):
        layer.posterior.set_scale_(1e-20)
    x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
    assert (mnvi.predict(model, x, 16).mutual_information > 0).all()
    models = [model, copy.deepcopy(model)]
    before = copy.deepcopy(model.state_dict())
    mnvi.fit(models, (x, y), epochs=1, kl_weight=1.0, validation=0.0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed >= {name for name in before if name.endswith("_posterior.posterior.log_scale")}


def test_it_goes_back_to_torch():
    plain = convnet()
    types, state = [type(each) for each in plain.modules()], set(plain.state_dict())
    model = randomise(to_bayesian(plain, bias_posterior=True), 0.1).eval()
    back = to_deterministic(model)
    assert [type(each) for each in back.modules()] == types
    assert set(back.state_dict()) == state
    assert_close(back(IMAGES), model(IMAGES))
    assert isinstance(model[1], nn.BatchNorm2d)
    assert model[1].kl() > 0


def test_a_sampled_copy_is_the_function_of_a_frozen_sample():
    plain = convnet()
    types, state = [type(each) for each in plain.modules()], set(plain.state_dict())
    model = randomise(to_bayesian(plain, bias_posterior=True), 0.3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    copies = [to_deterministic(model, sample=True) for _ in range(2)]
    assert [type(each) for each in copies[0].modules()] == types
    assert set(copies[0].state_dict()) == state
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    torch.manual_seed(1)
    for drawn in copies:
        with mnvi.frozen_sample(model):
            assert_close(drawn(IMAGES), model(IMAGES))
    assert (copies[0](IMAGES) - copies[1](IMAGES)).abs().max() > 0.01


def test_compaction_takes_the_means():
    plain = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model = mnvi.sparsity.prune(to_bayesian(plain, bias_posterior=True), fraction=0.5, groups="rows", skip="3").eval()
    small, x = mnvi.sparsity.compact(model), torch.randn(5, 3)
    assert [type(each) for each in small] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert small[0].out_features == 3
    assert_close(small(x), model(x))


def test_without_it_biases_and_norms_stay_deterministic():
    model = to_bayesian(convnet())
    assert type(model[1]) is nn.BatchNorm2d
    assert not any("bias_posterior" in name for name, _ in model.named_modules())


CHOICES = {
    "skipped": ({"skip": ["1", "4"]}, {"5"}),
    "a layer and a norm": ({"only": ["4", "5"]}, {"4", "5"}),
    "a norm": ({"only": "1"}, {"1"}),
    "a layer": ({"only": ["4"]}, {"4"}),
    "a layer before a batch norm": ({"only": ["0"]}, set()),
}


@cases("row", CHOICES)
def test_names_choose_norms_too(row):
    options, names = row
    model = to_bayesian(convnet(), bias_posterior=True, **options)
    assert {name.split(".")[0] for name, _ in model.named_modules() if name.endswith("_posterior")} == names


def test_data_say_nothing_of_a_bias_before_a_batch_norm_so_it_has_no_posterior():
    """Which is so in training: the output does not depend on it. Any other bias has one."""
    plain = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)]
    model = to_bayesian(nn.Sequential(*plain), bias_posterior=True).train()
    assert [hasattr(layer, "bias_posterior") for layer in model.children()] == [False, True, True, False, True]
    hidden = nn.functional.linear(torch.randn(8, 3), plain[0].weight)
    normed = [nn.functional.batch_norm(hidden + bias, None, None, training=True) for bias in (0.0, 5.0)]
    assert_close(*normed)


@cases("make", WITHOUT)
def test_norms_of_other_kinds_and_without_weights_stay_as_they_are(make):
    norm = make()
    to_bayesian(nn.Sequential(norm, nn.Linear(4, 4)), bias_posterior=True)
    assert type(norm) is type(make())


def test_a_bias_in_two_places_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'0\.bias' and '1\.bias' are one parameter"):
        to_bayesian(model, bias_posterior=True)
    assert model.state_dict().keys() == state.keys()
    to_bayesian(model)  # one bias without a posterior may serve two layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_computed_in_32(dtype):
    model = to_bayesian(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), bias_posterior=True).float()
    exact, narrow = model.kl(), model.to(dtype)
    assert narrow.kl().dtype == torch.float32
    torch.testing.assert_close(narrow.kl(), exact, rtol=0.02, atol=0)
    assert narrow(torch.randn(2, 3, dtype=dtype)).dtype == dtype


def test_a_model_of_the_meta_device_is_ready_after_a_reset():
    model = to_bayesian(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("meta"), bias_posterior=True)
    model.to_empty(device="cpu")
    for module in model.children():
        module.reset_parameters()
    assert model(torch.randn(5, 3)).isfinite().all()
    assert_close(model[1].kl(), divergence(model[1]))
    assert_close(vectors(model[1])["bias"][1], torch.full((1, 4), 0.1))


def test_it_compiles_whole_and_draws_anew_at_every_call():
    model, x = to_bayesian(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), bias_posterior=True), torch.randn(5, 3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert not torch.equal(compiled(x), compiled(x))
    model.eval()
    assert_close(compiled(x), model(x))
    assert_close(model(x), F.layer_norm(model[0](x), (4,), model[1].weight, model[1].bias))


def test_no_warning_of_vectors_without_posteriors_on_a_second_conversion():
    model = to_bayesian(convnet(), bias_posterior=True, skip=["6"])
    to_bayesian(model)  # warnings are errors in tests
    assert isinstance(model[6], mnvi.MNLinear)
