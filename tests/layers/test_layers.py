"""Every layer against torch's own with the same weight, and its noise against the linear map from weight to output."""

import copy
import inspect
import io
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.modules.conv import _ConvNd

import mnvi
from mnvi.covariance import Dense, Kronecker
from mnvi.layers.kinds import KINDS
from mnvi.posteriors import Diagonal, MatrixNormal
from tests.cases import PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close, assert_moments, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")
BAYESIAN = {kind.plain: kind.bayesian for kind in KINDS if kind.plain}
EVERYTHING_1D = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2, "bias": False}
EVERYTHING_2D = {"stride": (1, 2), "padding": (1, 0), "output_padding": (0, 1), "groups": 2, "bias": False}
REFLECTED = {"stride": (2, 1), "padding": (2, 1), "padding_mode": "reflect"}
# torch's class, its arguments, its keywords, the shape of two examples.
LAYERS = {
    "linear": (nn.Linear, (6, 4), {}, (2, 6)),
    "linear-no-bias": (nn.Linear, (3, 5), {"bias": False}, (2, 3)),
    "linear-sequence": (nn.Linear, (6, 4), {}, (2, 3, 6)),
    "conv1d": (nn.Conv1d, (2, 3, 4), {}, (2, 2, 6)),
    "conv1d-everything": (nn.Conv1d, (4, 6, 3), EVERYTHING_1D, (2, 4, 7)),
    "conv1d-depthwise": (nn.Conv1d, (4, 4, 2), {"groups": 4}, (2, 4, 3)),
    "conv2d": (nn.Conv2d, (2, 3, (3, 2)), {"stride": (1, 2), "padding": (1, 0)}, (2, 2, 3, 5)),
    "conv2d-same": (nn.Conv2d, (2, 3, (3, 2)), {"padding": "same", "dilation": (1, 2)}, (2, 2, 3, 3)),
    "conv2d-reflect": (nn.Conv2d, (2, 3, 3), REFLECTED, (2, 2, 3, 3)),
    "conv2d-replicate": (nn.Conv2d, (2, 4, 2), {"padding": 1, "padding_mode": "replicate", "groups": 2}, (2, 2, 1, 2)),
    "conv2d-circular": (nn.Conv2d, (2, 3, (1, 3)), {"padding": (0, 2), "padding_mode": "circular"}, (2, 2, 1, 3)),
    "conv3d": (nn.Conv3d, (2, 3, (2, 1, 3)), {"stride": (1, 2, 1)}, (2, 2, 3, 3, 4)),
    "conv3d-circular": (nn.Conv3d, (2, 3, 2), {"padding": 1, "padding_mode": "circular"}, (2, 2, 1, 1, 1)),
    "transposed1d": (nn.ConvTranspose1d, (2, 3, 4), {}, (2, 2, 3)),
    "transposed1d-everything": (nn.ConvTranspose1d, (4, 6, 3), EVERYTHING_1D | {"output_padding": 1}, (2, 4, 2)),
    "transposed2d": (nn.ConvTranspose2d, (2, 3, (3, 2)), {"stride": (1, 2), "padding": (1, 0)}, (2, 2, 2, 2)),
    "transposed2d-everything": (nn.ConvTranspose2d, (4, 4, (3, 2)), EVERYTHING_2D, (2, 4, 2, 2)),
    "transposed3d": (nn.ConvTranspose3d, (2, 3, (2, 1, 2)), {"stride": (1, 2, 1)}, (2, 2, 1, 2, 1)),
}
ONE_OF_EACH = {name: row for name, row in LAYERS.items() if name in [k.__name__.lower() for k in BAYESIAN]}
ONE_OF_EACH |= {name: LAYERS[name] for name in ("transposed1d", "transposed2d", "transposed3d")}
ESTIMATORS = pytest.mark.parametrize("estimator", ["local", "weight", "flipout"])


def pair(row, **options):
    """A torch layer and the Bayesian one with its weights, an input for both."""
    kind, arguments, keywords, shape = row
    plain = kind(*arguments, **keywords)
    layer = BAYESIAN[kind](*arguments, **keywords, **options)
    layer.load_state_dict(plain.state_dict(), strict=False)
    randomise(layer.posterior, 0.4)
    return plain, layer, torch.randn(shape)


def output_covariance(plain, posterior, x):
    """J Cov Jᵀ with J = d output / d weight of the torch layer, which is linear in its weight."""
    jacobian = jacrev(lambda weight: functional_call(plain, {"weight": weight}, (x,)))(plain.weight)
    jacobian = jacobian.reshape(-1, plain.weight.numel()).detach()
    return jacobian @ dense_covariance(posterior).detach() @ jacobian.mT


@torch.no_grad()
def draw(layer, x, count):
    return vmap(lambda _: layer(x).flatten(), randomness="different")(torch.arange(count))


# The mean: torch's layer ----------------------------------------------------------------------------------------------


@cases("row", LAYERS)
@ESTIMATORS
def test_eval_is_the_torch_layer(row, estimator):
    plain, layer, x = pair(row, estimator=estimator)
    assert_close(layer.eval()(x), plain(x))
    assert_close(layer(x[0]), plain(x[0]))
    assert torch.equal(layer(x), layer(x))


@cases("row", LAYERS)
def test_weight_and_bias_have_the_names_and_shapes_of_torch(row):
    plain, layer, _ = pair(row)
    assert {name: p.shape for name, p in plain.named_parameters()} == {
        name: p.shape for name, p in layer.named_parameters() if "." not in name
    }
    assert isinstance(layer, row[0])
    assert layer.distribution().mean.shape == plain.weight.flatten(1).shape
    assert_close(layer.distribution().mean, plain.weight.flatten(1))


@pytest.mark.parametrize("output_size", [None, (7, 8), (8, 9)])
@pytest.mark.parametrize("training", [True, False])
@ESTIMATORS
def test_transposed_convolutions_take_an_output_size(output_size, training, estimator):
    row = (nn.ConvTranspose2d, (2, 3, (3, 2)), {"stride": (2, 3)}, (2, 2, 3, 3))
    plain, layer, x = pair(row, estimator=estimator)
    expected = plain(x, output_size)
    assert layer.train(training)(x, output_size).shape == expected.shape
    assert layer(x[0], output_size).shape == expected.shape[1:]
    if not training:
        assert_close(layer(x, output_size), expected)
        assert_close(layer(x, output_size=output_size), expected)


@cases("row", {name: row for name, row in LAYERS.items() if issubclass(row[0], _ConvNd)})
def test_kronecker_columns_are_channels_by_kernel_positions(row):
    plain, layer, _ = pair(row, posterior=MatrixNormal(Dense(), Kronecker()))
    column = layer.posterior.column
    assert (column.left.size, column.right.size) == (plain.weight.shape[1], plain.weight[0, 0].numel())


# Drawing --------------------------------------------------------------------------------------------------------------


@cases("row", LAYERS)
@ESTIMATORS
def test_training_draws_a_tensor_like_that_of_torch(row, estimator):
    plain, layer, x = pair(row, estimator=estimator)
    for argument in (x, x[0], x[:0]):
        output, expected = layer(argument), plain(argument)
        assert type(output) is torch.Tensor
        assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    assert not torch.equal(layer(x), layer(x))


@cases("row", LAYERS)
@cases("family", SOME_FAMILIES)
def test_a_drawn_weight_is_the_torch_layer_with_that_weight(family, row):
    plain, layer, x = pair(row, posterior=family)
    with mnvi.frozen_sample(layer):
        output, weight = layer(x), layer.draw_weight()
    assert weight.shape == plain.weight.shape
    assert not torch.equal(weight, plain.weight)
    assert_close(output, functional_call(plain, {"weight": weight}, (x,)))


@cases("row", ONE_OF_EACH)
@ESTIMATORS
def test_a_frozen_layer_is_one_linear_function_of_its_input(row, estimator):
    _, layer, x = pair((*row[:2], {"bias": False}, row[3]), estimator=estimator)
    with mnvi.frozen_sample(layer):
        assert_close(layer(2 * x[:1] + 3 * x[1:]), 2 * layer(x[:1]) + 3 * layer(x[1:]))


@cases("row", LAYERS)
@cases("family", SOME_FAMILIES)
def test_weight_estimator_has_the_joint_covariance_of_all_outputs(family, row):
    plain, layer, x = pair(row, posterior=family, estimator="weight")
    assert_moments(draw(layer, x, 2000), plain(x).flatten().detach(), output_covariance(plain, layer.posterior, x))


def local_covariance(plain, exact, shape):
    """What the local estimator promises of ``exact``; NaN where it promises nothing (see the layers' docstrings)."""
    channel_axis = -1 if isinstance(plain, nn.Linear) else 1
    place = torch.arange(exact.shape[0]).view(shape).movedim(channel_axis, -1)  # (example, *location, channel)
    location = torch.empty_like(place)
    location.copy_(torch.arange(place[..., 0].numel()).view(place.shape[:-1]).unsqueeze(-1))
    location = location.movedim(-1, channel_axis).flatten()
    together = location.unsqueeze(0) == location.unsqueeze(1)
    if isinstance(plain, nn.Linear) or (plain.transposed is False and plain.groups == 1):
        return torch.where(together, exact, 0)
    unknown = torch.where(together, float("nan"), 0.0) if not plain.transposed else torch.zeros_like(exact)
    return unknown.fill_diagonal_(0) + exact.diagonal().diag_embed()


def law_local(plain, layer, x, posterior, count=3000):
    """Many copies of the two examples in one batch: exact moments, and nothing between examples or locations."""
    with torch.no_grad():
        draws = layer(x.repeat(count, *[1] * (x.dim() - 1))).view(count, -1)
        mean = plain(x)
    exact = output_covariance(plain, posterior, x)
    assert_moments(draws, mean.flatten(), local_covariance(plain, exact, mean.shape))


@cases("row", LAYERS)
@cases("family", SOME_FAMILIES)
def test_local_estimator_has_the_exact_marginals_and_independent_places(family, row):
    plain, layer, x = pair(row, posterior=family, estimator="local")
    if layer.posterior.provides(layer.local_estimator):  # else it draws weights
        law_local(plain, layer, x, layer.posterior)


@cases("row", ONE_OF_EACH)
def test_local_estimator_for_one_example_without_a_batch(row):
    plain, layer, x = pair(row, estimator="local")
    exact = output_covariance(plain, layer.posterior, x[0])
    draws = draw(layer, x[0], 3000)
    shape = plain(x[0]).unsqueeze(0).shape
    assert_moments(draws, plain(x[0]).flatten().detach(), local_covariance(plain, exact, shape))


def flipout_covariance(plain, exact, shape):
    """What flipout promises of ``exact``: all of it within an example, nothing between two."""
    examples = torch.arange(shape[0] if plain.weight.dim() > 2 else math.prod(shape[:-1]))
    of_output = examples.repeat_interleave(exact.shape[0] // len(examples))
    return torch.where(of_output.unsqueeze(0) == of_output.unsqueeze(1), exact, 0)


@cases("row", LAYERS)
@cases("family", SOME_FAMILIES)
def test_flipout_has_the_joint_covariance_within_examples_and_none_between(family, row):
    plain, layer, x = pair(row, posterior=family, estimator="flipout")
    exact = output_covariance(plain, layer.posterior, x)
    flips = layer.posterior.provides("flip_parts") and layer.channel_axis is not None  # else it draws one weight
    expected = flipout_covariance(plain, exact, plain(x).shape) if flips else exact
    # Two examples share |noise|, so that E[y²y'²] is up to 3 where it is 1 for independent ones: √3 wider errors.
    assert_moments(draw(layer, x, 3000), plain(x).flatten().detach(), expected, limit=5 * 3**0.5)


@cases("row", ONE_OF_EACH)
@cases("family", SOME_FAMILIES)
def test_the_signs_of_flipout_leave_the_covariance_of_an_example_as_it_is(family, row):
    """Exactly so for any signs: the output is linear in the noise, so its covariance is a sum over a basis of it."""
    plain, layer, x = pair((*row[:2], {"bias": False}, row[3]), posterior=family, estimator="flipout")
    torch.nn.init.zeros_(layer.weight)
    noise = layer.posterior.draw_noise()
    covariance = 0
    for k in range(sum(each.numel() for each in noise)):
        basis = torch.zeros(sum(each.numel() for each in noise)).index_fill(0, torch.tensor(k), 1.0)
        parts = [each.view_as(like) for each, like in zip(basis.split([e.numel() for e in noise]), noise, strict=True)]
        layer.posterior.draw_noise = lambda parts=parts: tuple(parts)
        torch.manual_seed(1)  # the same signs for every part of the noise
        output = layer(x[:1]).flatten()
        covariance = covariance + torch.outer(output, output)
    assert_close(covariance, output_covariance(plain, layer.posterior, x[:1]))


SQUARE = {
    "linear": (nn.Linear, (4, 4), {}, (2, 4)),
    "conv2d": (nn.Conv2d, (1, 4, 2), {}, (2, 1, 3, 3)),
    "transposed2d": (nn.ConvTranspose2d, (4, 1, 2), {}, (2, 4, 2, 2)),
}


@cases("row", SQUARE)
def test_negative_control_of_the_local_law(row):
    """Row and column factor exchanged; the weight matrix is square, so that only the law can tell."""
    plain, layer, x = pair(row, estimator="local")
    law_local(plain, layer, x, layer.posterior)
    wrong = copy.deepcopy(layer)
    wrong.posterior.row, wrong.posterior.column = wrong.posterior.column, wrong.posterior.row
    with pytest.raises(AssertionError):
        law_local(plain, wrong, x, layer.posterior)


# Gradients and numerics -----------------------------------------------------------------------------------------------


@cases("row", ONE_OF_EACH)
@cases("family", SOME_FAMILIES)
@ESTIMATORS
def test_an_all_zero_input_gives_finite_gradients(family, row, estimator):
    _, layer, x = pair(row, posterior=family, estimator=estimator)
    x = torch.zeros_like(x).requires_grad_()
    (layer(x).square().sum() + layer.kl()).backward()
    assert all(p.grad.isfinite().all() for p in [x, *layer.parameters()])


@cases("row", ONE_OF_EACH)
@cases("family", SOME_FAMILIES)
@ESTIMATORS
def test_gradients_reach_weight_posterior_and_input(family, row, estimator):
    _, layer, x = pair(row, posterior=family, estimator=estimator)
    layer(x.requires_grad_()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [x, *layer.parameters()])


class Loss(nn.Module):
    """A layer's output and KL for the noise of one seed, so that functional_call can reach the parameters."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        torch.manual_seed(1)
        return self.layer(x).sin().sum() + self.layer.kl()


@pytest.mark.parametrize("inputs", [6, 700])
@pytest.mark.parametrize("prior", [mnvi.priors.Normal(), mnvi.priors.ARD()])
@cases("family", SOME_FAMILIES)
@ESTIMATORS
def test_autograd_and_torch_func_agree(family, prior, estimator, inputs):
    """Hand-written derivatives are used by one and not always by the other; 700 inputs are stored in pieces."""
    layer = randomise(mnvi.MNLinear(inputs, 4, posterior=family, prior=prior, estimator=estimator), 0.1)
    loss, x = Loss(layer), torch.randn(3, inputs)
    parameters = {name: p.detach() for name, p in loss.named_parameters()}
    expected = torch.func.grad(lambda parameters: functional_call(loss, parameters, (x,)))(parameters)
    loss(x).backward()
    for name, parameter in loss.named_parameters():
        assert_close(parameter.grad, expected[name], 100 * max(1, inputs / parameter.numel()))  # sums over inputs


@pytest.mark.parametrize("estimator", ["local", "weight"])
@cases("family", SOME_FAMILIES)
def test_twenty_layers_start_like_those_of_torch(family, estimator):
    def network(make):
        torch.manual_seed(1)
        return nn.Sequential(*(m for _ in range(20) for m in (make(100, 100), nn.ReLU())))

    plain = network(nn.Linear)
    bayesian = network(lambda *size: mnvi.MNLinear(*size, posterior=family, estimator=estimator))
    bayesian.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(64, 100)
    with torch.no_grad():
        ratio = bayesian(x).square().mean() / plain(x).square().mean()
    assert 0.5 < ratio < 2.0


@cases("row", ONE_OF_EACH)
def test_initial_scale_is_a_tenth_of_that_of_the_weights(row):
    kind, (inputs, outputs, *kernel), *_ = row
    layer = BAYESIAN[kind](10 * inputs, 12 * outputs, *kernel)
    expected = 0.1 * layer.weight.std().item()
    assert layer.distribution().variance.sqrt().mean().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed2d"])
@cases("family", SOME_FAMILIES)
@ESTIMATORS
def test_bf16_autocast(name, family, estimator):
    kind, arguments, keywords, shape = LAYERS[name]
    options = {"dtype": torch.float32}
    plain = kind(*arguments, **keywords, **options)
    layer = BAYESIAN[kind](*arguments, **keywords, **options, posterior=family, estimator=estimator)
    x = torch.randn(shape, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, kl = layer(x), layer.kl()
        assert mnvi.kl(layer).dtype == torch.float32
        assert output.dtype == plain(x).dtype
        following = layer(x.bfloat16())  # what a layer gets from the one before it
        assert following.dtype == plain(x.bfloat16()).dtype
        assert following.isfinite().all()
    assert kl.dtype == torch.float32
    assert torch.equal(kl, layer.kl())
    assert output.isfinite().all()
    (output.float().square().sum() + kl).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in layer.parameters())


@cases("prior", PRIORS)
def test_kl_is_the_same_under_autocast(prior):
    layer = mnvi.MNLinear(6, 4, prior=prior, dtype=torch.float32)
    for _ in range(50):
        expected = layer.kl()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(layer.kl(), expected)


COMPILED = {
    "linear": (nn.Linear, (6, 4), {}, (3, 6)),
    "conv2d": (nn.Conv2d, (2, 3, 2), {"padding": 1}, (3, 2, 4, 4)),
}


@pytest.fixture
def clean_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch's own: tracing an autograd Function instantiates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("clean_compiler")
@cases("row", COMPILED)
@pytest.mark.parametrize(("family", "estimator"), [("dense-plus-diagonal", "local"), ("dense", "weight")])
def test_compiles_without_a_graph_break(row, family, estimator):
    plain, layer, x = pair(row, posterior=SOME_FAMILIES[family], estimator=estimator)
    loss = lambda x: (layer(x), layer.kl())  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    output, kl = compiled(x)
    (output.square().sum() + kl).backward()
    assert not torch.equal(output, compiled(x)[0])
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert_close(kl, layer.kl())
    layer.eval()
    assert_close(compiled(x)[0], plain(x))


# Copies and checkpoints -----------------------------------------------------------------------------------------------


def attached(module):
    """Names of the tensors with a graph that a module holds, anywhere in its attributes."""

    def walk(name, value):
        if isinstance(value, torch.Tensor) and value.grad_fn is not None:
            yield name
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from walk(f"{name}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from walk(name, item)

    return [found for part in module.modules() for found in walk(type(part).__name__, vars(part))]


@cases("prior", PRIORS)
@cases("family", SOME_FAMILIES)
@ESTIMATORS
def test_a_call_leaves_nothing_graph_attached_and_the_layer_copies(family, prior, estimator):
    layer = mnvi.MNLinear(6, 4, posterior=family, prior=prior, estimator=estimator)
    x = torch.randn(5, 6)
    loss = layer(x).square().sum() + layer.kl()
    assert not attached(layer)
    with mnvi.frozen_sample(layer):
        layer(x)
        assert not attached(layer)
    loss.backward()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    assert torch.equal(twin.kl(), layer.kl())
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in layer.parameters()}


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@cases("prior", PRIORS)
@cases("family", SOME_FAMILIES)
def test_state_dict_round_trip(family, prior):
    make = lambda: mnvi.Sequential(mnvi.MNConv1d(2, 3, 2, posterior=family, prior=prior), nn.ReLU())  # noqa: E731
    layer, twin, x = randomise(make()), make(), torch.randn(2, 2, 4)
    layer.kl()
    twin.load_state_dict(saved_and_loaded(layer.state_dict()))
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    assert torch.equal(twin.kl(), layer.kl())
    assert torch.equal(twin[0].distribution().variance, layer[0].distribution().variance)


@cases("row", LAYERS)
def test_a_torch_checkpoint_lacks_only_the_posterior_and_the_prior(row):
    kind, arguments, keywords, _ = row
    plain = nn.Sequential(kind(*arguments, **keywords))
    model = mnvi.Sequential(BAYESIAN[kind](*arguments, **keywords, prior=mnvi.priors.GroupARD()))
    keys = model.load_state_dict(saved_and_loaded(plain.state_dict()), strict=False)
    assert not keys.unexpected_keys
    assert keys.missing_keys
    assert all(key.startswith(("0.posterior.", "0.prior.")) for key in keys.missing_keys)
    assert torch.equal(model[0].weight, plain[0].weight)


def test_a_checkpoint_of_another_architecture_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        mnvi.MNLinear(3, 4).load_state_dict(mnvi.MNLinear(4, 3).state_dict())
    with pytest.raises(RuntimeError, match="log_scale"):
        mnvi.MNLinear(3, 4).load_state_dict(mnvi.MNLinear(3, 4, posterior=Diagonal()).state_dict())


@cases("row", ONE_OF_EACH)
@cases("family", SOME_FAMILIES)
def test_dtype_and_device_are_taken_and_followed(family, row):
    kind, arguments, keywords, shape = row
    layer = BAYESIAN[kind](*arguments, **keywords, posterior=family, dtype=torch.float32)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert layer(torch.randn(shape, dtype=torch.float32)).dtype == torch.float32
    assert layer.double()(torch.randn(shape)).dtype == torch.float64
    assert layer.kl().dtype == torch.float64
    meta = BAYESIAN[kind](*arguments, **keywords, posterior=family, device="meta")
    assert all(p.is_meta for p in meta.parameters())


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["Local", "", "Flipout"])
@cases("row", ONE_OF_EACH)
def test_unknown_estimators(row, estimator):
    with pytest.raises(ValueError, match="estimator"):
        BAYESIAN[row[0]](*row[1], estimator=estimator)


BAD_KEYWORDS = [
    {"posterior": MatrixNormal},
    {"posterior": Dense()},
    {"posterior": "matrix-normal"},
    {"posterior": mnvi.priors.Normal()},
    {"prior": mnvi.priors.ARD},
    {"prior": MatrixNormal()},
    {"prior": 1.0},
    {"dropout": 0.5},
]


@pytest.mark.parametrize("keywords", BAD_KEYWORDS, ids=str)
@cases("row", ONE_OF_EACH)
def test_wrong_keywords(row, keywords):
    with pytest.raises(TypeError, match=next(iter(keywords))):
        BAYESIAN[row[0]](*row[1], **keywords)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError)])
@pytest.mark.parametrize("position", [0, 1])
@cases("row", ONE_OF_EACH)
def test_wrong_sizes(row, position, value, error):
    arguments = list(row[1])
    arguments[position] = value
    name = list(inspect.signature(row[0]).parameters)[position]
    with pytest.raises(error, match=name):
        BAYESIAN[row[0]](*arguments)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation", "groups"])
@cases("row", {name: row for name, row in ONE_OF_EACH.items() if issubclass(row[0], _ConvNd)})
def test_sizes_of_a_convolution_are_positive(row, name, value):
    kernel = {"kernel_size": row[1][2]} | {name: value}
    with pytest.raises(ValueError, match=name):
        BAYESIAN[row[0]](*row[1][:2], **kernel)


@pytest.mark.parametrize("keywords", [{"groups": 3}, {"padding_mode": "mirror"}])
def test_wrong_arguments_that_torch_finds(keywords):
    with pytest.raises(ValueError):
        mnvi.MNConv2d(4, 6, 3, **keywords)


@pytest.mark.parametrize("training", [True, False])
@cases("row", ONE_OF_EACH)
@ESTIMATORS
def test_an_input_of_the_wrong_width_is_refused_as_torch_refuses_it(row, training, estimator):
    _, layer, x = pair(row, estimator=estimator)
    wrong = torch.cat([x, x], 1)
    with pytest.raises(ValueError):
        layer.train(training)(wrong)
