"""Convolutional recurrent layers: plain loops as oracles, the norm bound, gradients, states, bad input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mnvi
from mnvi.manifolds import Stiefel
from mnvi.parametrizations import Trivialization
from mnvi.rnn import ConvLSTM, ConvNERU
from tests.cases import cases
from tests.laws import assert_close

pytestmark = pytest.mark.usefixtures("float64")

T, B, C, FEATURES, H, W = 4, 2, 3, 5, 6, 7
SIGMAS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "modrelu": lambda z, b: torch.where(z.abs() + b > 0, z + b * z.sign(), torch.zeros_like(z)),
}
KERNELS = {
    "default": lambda f, q: None,
    "trivialization": lambda f, q: Trivialization(Stiefel(), rebase_every=2),
    "unconstrained": lambda f, q: nn.Conv2d(f, f, q, padding=q // 2, bias=False),
    "constrained-layer": lambda f, q: mnvi.constrain(
        nn.Conv2d(f, f, q, padding="same", bias=False), "weight", Trivialization(Stiefel())
    ),
    "bayesian": lambda f, q: mnvi.MNConv2d(f, f, q, padding=q // 2, bias=False),
}
ORTHONORMAL = {name: KERNELS[name] for name in ("default", "trivialization", "constrained-layer")}
LAYERS = {
    "neru": lambda **options: ConvNERU(C, FEATURES, **options),
    "neru-modrelu": lambda **options: ConvNERU(C, FEATURES, nonlinearity="modrelu", **options),
    "lstm": lambda **options: ConvLSTM(C, FEATURES, **options),
    "lstm-norm": lambda **options: ConvLSTM(C, FEATURES, instance_norm=True, **options),
}


def images(time=T):
    return torch.randn(time, B, C, H, W)


def state(layer):
    one = torch.randn(B, FEATURES, H, W)
    return one if isinstance(layer, ConvNERU) else (one, torch.randn_like(one))


def tensors(state):
    return (state,) if isinstance(state, torch.Tensor) else state


# --- against a plain loop ---


@cases("kernel", KERNELS)
@pytest.mark.parametrize("nonlinearity", SIGMAS)
@pytest.mark.parametrize("q", [1, 3, 5])
def test_neru_is_a_loop_of_convolutions(kernel, nonlinearity, q):
    layer = ConvNERU(C, FEATURES, q, kernel=kernel(FEATURES, q), nonlinearity=nonlinearity).eval()
    for parameter in (layer.input.bias, layer.threshold):
        if parameter is not None:
            nn.init.normal_(parameter)
    x, g = images(), torch.randn(B, FEATURES, H, W)
    output, g_n = layer(x, g)
    for t in range(T):
        z = F.conv2d(x[t], layer.input.weight, layer.input.bias, padding=q // 2)
        z = z + F.conv2d(g, layer.transition(), padding=q // 2)
        bias = () if layer.threshold is None else (layer.threshold.view(-1, 1, 1),)
        g = SIGMAS[nonlinearity](z, *bias)
        assert_close(output[t], g)
    assert torch.equal(output[-1], g_n)


@cases("kernel", ORTHONORMAL)
def test_the_kernel_times_q_has_orthonormal_columns(kernel):
    for q in (1, 3):
        layer = ConvNERU(C, FEATURES, q, kernel=kernel(FEATURES, q))
        matrix = q * layer.transition().flatten(1).mT
        assert matrix.shape == (q * q * FEATURES, FEATURES)
        assert_close(matrix.mT @ matrix, torch.eye(FEATURES))


def test_a_layer_is_the_kernel_as_it_is():
    kernel = nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False)
    assert torch.equal(ConvNERU(C, FEATURES, kernel=kernel).transition(), kernel.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_is_a_loop_of_lstm_cells_where_kernels_are_single_pixels(bias):
    """torch orders the gates i, f, g, o."""
    layer = ConvLSTM(C, FEATURES, 1, bias=bias)
    cell = nn.LSTMCell(C, FEATURES, bias=bias)
    order = torch.cat([torch.arange(4 * FEATURES).chunk(4)[k] for k in (0, 1, 3, 2)])
    with torch.no_grad():
        cell.weight_ih.copy_(layer.input.weight.flatten(1)[order])
        cell.weight_hh.copy_(layer.kernel.weight.flatten(1)[order])
        if bias:
            cell.bias_ih.copy_(layer.input.bias[order])
            cell.bias_hh.zero_()
    x, (h, c) = images(), state(layer)
    output, (h_n, c_n) = layer(x, (h, c))

    def rows(image):
        return image.movedim(1, -1).flatten(0, 2)

    h, c = rows(h), rows(c)
    for t in range(T):
        h, c = cell(rows(x[t]), (h, c))
        assert_close(rows(output[t]), h)
    assert_close(rows(h_n), h)
    assert_close(rows(c_n), c)


def test_lstm_is_a_loop_of_convolutions():
    layer = ConvLSTM(C, FEATURES, 3)
    x, (h, c) = images(), state(layer)
    output, (h_n, c_n) = layer(x, (h, c))
    weight = torch.cat([layer.input.weight, layer.kernel.weight], 1)
    for t in range(T):
        gates = F.conv2d(torch.cat([x[t], h], 1), weight, layer.input.bias, padding=1).chunk(4, 1)
        c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[3].tanh()
        h = gates[2].sigmoid() * c.tanh()
        assert_close(output[t], h)
    assert_close(c_n, c)
    assert torch.equal(output[-1], h_n)


def test_instance_norm_forgets_the_scale_of_the_input():
    layer = ConvLSTM(C, FEATURES, instance_norm=True)
    x = images(1)
    larger = layer(1000 * x)[0]
    torch.testing.assert_close(layer(100 * x)[0], larger, rtol=1e-6, atol=1e-6)  # torch adds 1e-5 to the variance
    plain = ConvLSTM(C, FEATURES)
    assert not torch.allclose(plain(100 * x)[0], plain(1000 * x)[0], rtol=1e-2, atol=1e-2)


# --- laws ---


@cases("kernel", ORTHONORMAL)
def test_the_transition_does_not_make_states_grow(kernel):
    """‖K * G‖ ≤ ‖G‖, which an image of a single pixel, where K is one matrix of the q², shows to be no accident."""
    for q in (1, 3, 5):
        layer = ConvNERU(C, FEATURES, q, kernel=kernel(FEATURES, q))
        for size in (1, 2, 9):
            g = torch.randn(8, FEATURES, size, size)
            after = F.conv2d(g, layer.transition(), padding=q // 2)
            assert (after.flatten(1).norm(dim=1) <= (1 + 1e-12) * g.flatten(1).norm(dim=1)).all()


def test_without_the_division_states_may_grow():
    """A state that is even over the image, seen by a kernel that has the same matrix at every place, grows by q."""
    kernel = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(kernel.weight, 1 / 3)  # the matrix (9, 1) is a unit vector
    g = torch.ones(1, 1, 30, 30)
    mnvi.constrain(kernel, "weight", Trivialization(Stiefel()), start="weight")
    layer = ConvNERU(1, 1, kernel=kernel)
    ratio = F.conv2d(g, kernel.weight, padding=1).norm() / g.norm()
    assert 2.8 < ratio < 3
    assert 2.8 / 3 < F.conv2d(g, layer.transition(), padding=1).norm() / g.norm() < 1


def test_states_and_gradients_stay_bounded_over_a_long_sequence():
    layer = ConvNERU(C, FEATURES, bias=False)
    x = torch.cat([images(1), torch.zeros(200, B, C, H, W)])
    g_0 = torch.randn(B, FEATURES, H, W, requires_grad=True)
    output, g_n = layer(x, g_0)
    norms = output.flatten(1).norm(dim=1)
    assert (norms[1:] <= (1 + 1e-12) * norms[:-1]).all()
    (gradient,) = torch.autograd.grad(g_n, g_0, grad := torch.randn_like(g_n))
    assert gradient.norm() <= (1 + 1e-12) * grad.norm()


def test_a_zero_transition_has_no_memory():
    kernel = nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False)
    nn.init.zeros_(kernel.weight).requires_grad_(False)
    layer = ConvNERU(C, FEATURES, kernel=kernel)
    x = images()
    assert_close(layer(x, torch.randn(B, FEATURES, H, W))[0], F.relu(layer.input(x.flatten(0, 1))).view(T, B, -1, H, W))
    assert not layer.kernel.weight.requires_grad


@cases("layer", LAYERS)
def test_a_sequence_may_be_given_in_parts(layer):
    layer = layer()
    x, start = images(), state(layer)
    output, last = layer(x, start)
    first, between = layer(x[:1], start)
    second, end = layer(x[1:], between)
    assert_close(torch.cat([first, second]), output)
    for actual, expected in zip(tensors(end), tensors(last), strict=True):
        assert_close(actual, expected)


@cases("layer", LAYERS)
def test_batch_first_and_zero_states(layer):
    torch.manual_seed(1)
    first = layer(batch_first=True)
    torch.manual_seed(1)
    second = layer()
    second.load_state_dict(first.state_dict())
    x = images()
    zeros = torch.zeros(B, FEATURES, H, W)
    output, last = first(x.transpose(0, 1))
    expected, end = second(x, zeros if isinstance(second, ConvNERU) else (zeros, zeros))
    assert torch.equal(output.transpose(0, 1), expected)
    for actual, wanted in zip(tensors(last), tensors(end), strict=True):
        assert torch.equal(actual, wanted)


def test_the_kernel_is_mapped_once_a_call():
    layer, calls = ConvNERU(C, FEATURES), []
    parametrization = layer.kernel.parametrizations.weight[0]
    parametrization.register_forward_hook(lambda *_: calls.append(1))
    layer(images())
    assert calls == [1]


def test_a_bayesian_kernel_is_drawn_once_a_sequence():
    layer = ConvNERU(C, FEATURES, kernel=KERNELS["bayesian"](FEATURES, 3))
    x, g = images(), torch.randn(B, FEATURES, H, W)
    torch.manual_seed(3)
    output = layer(x, g)[0]
    torch.manual_seed(3)
    weight = layer.kernel.draw_weight()
    for t in range(T):
        g = F.relu(layer.input(x[t]) + F.conv2d(g, weight, padding=1))
        assert_close(output[t], g)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert mnvi.kl(layer) > 0
    with mnvi.frozen_sample(layer):
        assert torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


# --- gradients, copies, training ---


@cases("layer", LAYERS)
def test_gradients(layer):
    layer = layer(kernel_size=3)
    inputs = [torch.randn(2, 1, C, 3, 2, requires_grad=True)]
    inputs += [torch.randn(1, FEATURES, 3, 2, requires_grad=True) for _ in tensors(state(layer))]
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *rest):
        count = len(inputs) - 1
        given = rest[0] if count == 1 else rest[:count]
        output, last = torch.func.functional_call(layer, dict(zip(names, rest[count:], strict=True)), (x, given))
        return output, *tensors(last)

    assert torch.autograd.gradcheck(function, (*inputs, *parameters), fast_mode=True)


@cases("layer", LAYERS)
def test_copies_and_state_dicts(layer):
    layer_a, layer_b = layer(), layer()
    x = images()
    before = layer_a(x)[0]
    layer_b.load_state_dict(layer_a.state_dict())
    assert torch.equal(layer_b(x)[0], before)
    twin = copy.deepcopy(layer_a)
    with torch.no_grad():
        for parameter in layer_a.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.equal(twin(x)[0], before)
    assert not torch.allclose(layer_a(x)[0], before)


@cases("kernel", KERNELS)
def test_training_lowers_the_loss_and_keeps_the_constraint(kernel):
    layer = ConvNERU(C, FEATURES, kernel=kernel(FEATURES, 3))
    x, y = images(), torch.rand(T, B, FEATURES, H, W)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(layer(x)[0], y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    if kernel in ORTHONORMAL.values():
        matrix = 3 * layer.transition().flatten(1).mT
        assert_close(matrix.mT @ matrix, torch.eye(FEATURES))


def test_the_given_kernel_is_copied():
    kernel = nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False)
    layer = ConvNERU(C, FEATURES, kernel=kernel)
    assert layer.kernel is not kernel
    parametrization = Trivialization(Stiefel())
    ConvNERU(C, FEATURES, kernel=parametrization)
    ConvNERU(C, FEATURES, kernel=parametrization)
    assert parametrization.layout is None


@cases("layer", LAYERS)
def test_states_keep_full_precision_under_autocast(layer):
    layer = layer().float()
    x = images().float()
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, last = layer(x.bfloat16().float())
        assert output.dtype == tensors(last)[0].dtype == torch.float32
        assert torch.equal(layer(x)[0], expected)


# --- bad input ---

BAD_SIZES = {
    "even": ({"kernel_size": 4}, ValueError, "kernel_size must be odd, .* got 4"),
    "zero": ({"hidden_channels": 0}, ValueError, "hidden_channels must be at least 1, got 0"),
    "float": ({"input_channels": 2.0}, TypeError, "input_channels must be an int"),
}
BAD_NERU = {
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'relu', .* got 'gelu'"),
    "kernel": ({"kernel": "tcwy"}, TypeError, "kernel must be a parametrization such as .* got 'tcwy'"),
    "linear": ({"kernel": nn.Linear(2, 2)}, TypeError, "kernel must be a parametrization"),
    "channels": ({"kernel": nn.Conv2d(2, 5, 3, padding=1, bias=False)}, ValueError, r"must be Conv2d\(5, 5, 3, pad"),
    "bias": ({"kernel": nn.Conv2d(5, 5, 3, padding=1)}, ValueError, "bias=False"),
    "padding": ({"kernel": nn.Conv2d(5, 5, 3, bias=False)}, ValueError, "padding=1"),
    "stride": ({"kernel": nn.Conv2d(5, 5, 3, 2, 1, bias=False)}, ValueError, "a kernel that is a layer must be"),
}


@cases("options, error, message", BAD_SIZES)
@pytest.mark.parametrize("layer", [ConvNERU, ConvLSTM])
def test_bad_sizes(layer, options, error, message):
    with pytest.raises(error, match=message):
        layer(**{"input_channels": C, "hidden_channels": FEATURES, **options})


@cases("options, error, message", BAD_NERU)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ConvNERU(C, FEATURES, **options)


BAD_INPUT = {
    "no-steps": (lambda: torch.zeros(0, B, C, H, W), r"needs at least one step, .* got shape \(0, 2, 3, 6, 7\)"),
    "no-batch": (lambda: torch.zeros(T, 0, C, H, W), "none of its sizes 0"),
    "no-time": (lambda: torch.zeros(B, C, H, W), r"expected \(time, batch, channels, height, width\) with 3 channels"),
    "channels": (lambda: torch.zeros(T, B, 4, H, W), r"with 3 channels, got shape \(4, 2, 4, 6, 7\)"),
    "nan": (lambda: images().fill_(torch.nan), "must be finite"),
}


@cases("x, message", BAD_INPUT)
@cases("layer", LAYERS)
def test_bad_input(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer()(x())


@cases("layer", LAYERS)
def test_bad_states(layer):
    layer = layer()

    def given(one):
        return one if isinstance(layer, ConvNERU) else (one, one)

    with pytest.raises(ValueError, match=r"[gh]_0 must have shape \(2, 5, 6, 7\), got \(1, 5, 6, 7\)"):
        layer(images(), given(torch.zeros(1, FEATURES, H, W)))
    with pytest.raises(ValueError, match=r"[gh]_0 must be finite"):
        layer(images(), given(torch.full((B, FEATURES, H, W), torch.inf)))


@pytest.mark.parametrize("layer", [ConvNERU, ConvLSTM])
def test_complex_inputs_are_refused(layer):
    with pytest.raises(TypeError, match=r"this layer is real, got an input of torch.complex64"):
        layer(1, 2)(torch.ones(1, 1, 1, 3, 3, dtype=torch.complex64))
