"""Recurrent layers: against torch's nn.RNN and plain loops, packing, gradients, kernels of every kind, bad input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import mnvi
from mnvi.parametrizations import CWY, EUNN, URNN, Cayley, Exponential, Householder, ScaledCayley, Trivialization
from mnvi.rnn import OrthogonalRNN

KERNELS = {
    "default": None,
    "exponential": Exponential(),
    "cayley": Cayley(),
    "householder": Householder(3),
    "cwy": CWY(6),
    "cwy-thin": CWY(2),
    "dtriv": Trivialization(rebase_every=None),
    "eunn": EUNN(3),
    "linear": nn.Linear(6, 6, bias=False),
}
COMPLEX = {"scurnn": ScaledCayley(), "urnn": URNN(), "eunn": EUNN(3), "exponential": Exponential()}
kernels = pytest.mark.parametrize("kernel", list(KERNELS.values()), ids=list(KERNELS))
sigmas = pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh", "relu", "abs"])


def build(**options):
    torch.manual_seed(0)
    return OrthogonalRNN(3, 6, **{"dtype": torch.float64, **options})


def data(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def by_loop(rnn, x, h_0):
    """The same layer as plain torch operations, (time, batch, features)."""
    sigma = {
        "tanh": lambda z, b: z.tanh(),
        "relu": lambda z, b: z.relu(),
        "abs": lambda z, b: z.abs(),
        "modrelu": lambda z, b: z / z.abs() * (z.abs() + b).relu(),
    }[rnn.nonlinearity]
    last = []
    for layer in range(rnn.num_layers):
        h, states = h_0[layer], []
        weight = rnn.kernels[layer].weight
        for step in x:
            z = F.linear(step.to(weight.dtype), rnn.inputs[layer].weight, rnn.inputs[layer].bias) + h @ weight.mT
            h = sigma(z, rnn.thresholds[layer] if rnn.thresholds else None)
            states.append(h)
        x = torch.stack(states)
        last.append(h)
    return x, torch.stack(last)


def gradients(rnn, outputs):
    rnn.zero_grad()
    sum((out.abs().square() * (i + 1)).sum() for i, out in enumerate(outputs)).backward()
    return [p.grad.clone() for p in rnn.parameters()]


@kernels
@sigmas
def test_states_and_gradients_are_those_of_a_loop(kernel, nonlinearity):
    rnn = build(kernel=kernel, nonlinearity=nonlinearity, num_layers=2)
    x, h_0 = data(5, 4, 3), data(2, 4, 6)
    outputs, expected = rnn(x, h_0), by_loop(rnn, x, h_0)
    for a, b in zip(outputs, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(gradients(rnn, outputs), gradients(rnn, expected), strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kernel", list(COMPLEX.values()), ids=list(COMPLEX))
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_complex_states_and_gradients_are_those_of_a_loop(kernel, nonlinearity):
    rnn = build(kernel=kernel, nonlinearity=nonlinearity, dtype=torch.complex128)
    x, h_0 = data(5, 4, 3), data(1, 4, 6, dtype=torch.complex128)
    outputs, expected = rnn(x, h_0), by_loop(rnn, x, h_0)
    assert outputs[0].is_complex()
    for a, b in zip(outputs, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(gradients(rnn, outputs), gradients(rnn, expected), strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_with_an_unconstrained_kernel_it_is_torchs_rnn(nonlinearity):
    rnn = build(kernel=nn.Linear(6, 6, bias=False), nonlinearity=nonlinearity, num_layers=2, batch_first=True)
    torchs = nn.RNN(3, 6, num_layers=2, nonlinearity=nonlinearity, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for i in range(2):
            getattr(torchs, f"weight_ih_l{i}").copy_(rnn.inputs[i].weight)
            getattr(torchs, f"weight_hh_l{i}").copy_(rnn.kernels[i].weight)
            getattr(torchs, f"bias_ih_l{i}").copy_(rnn.inputs[i].bias)
            getattr(torchs, f"bias_hh_l{i}").zero_()
    x, h_0 = data(4, 5, 3), data(2, 4, 6)
    for a, b in zip(rnn(x, h_0), torchs(x, h_0), strict=True):
        assert torch.allclose(a, b)
    for a, b in zip(rnn(x, hx=h_0), torchs(x, hx=h_0), strict=True):
        assert torch.allclose(a, b)
    for a, b in zip(rnn(x[0], h_0[:, 0]), torchs(x[0], h_0[:, 0]), strict=True):  # without a batch
        assert torch.allclose(a, b)
    packed = pack_sequence([data(k, 3) for k in (2, 5, 1, 5)], enforce_sorted=False)
    (ours, h), (theirs, g) = rnn(packed, h_0), torchs(packed, h_0)
    assert torch.allclose(h, g)
    for a, b in zip(pad_packed_sequence(ours), pad_packed_sequence(theirs), strict=True):
        assert torch.allclose(a, b)


@sigmas
def test_packed_sequences_are_those_alone(nonlinearity):
    rnn = build(nonlinearity=nonlinearity)
    sequences = [data(k, 3) for k in (4, 7, 1, 7, 3)]
    output, h_n = rnn(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(output)
    packed_gradients = gradients(rnn, (output.data, h_n))
    total = [torch.zeros_like(g) for g in packed_gradients]
    for i, sequence in enumerate(sequences):
        alone, last = rnn(sequence)
        assert torch.allclose(padded[: lengths[i], i], alone)
        assert torch.allclose(h_n[:, i], last)
        total = [a + b for a, b in zip(total, gradients(rnn, (alone, last)), strict=True)]
    for a, b in zip(packed_gradients, total, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("which", [0, 1])
def test_a_loss_of_the_outputs_or_of_the_last_state_alone(which):
    rnn = build()
    x, h_0 = data(5, 4, 3).requires_grad_(), data(1, 4, 6).requires_grad_()
    inputs = [x, h_0, *rnn.parameters()]
    ours = torch.autograd.grad(rnn(x, h_0)[which].square().sum(), inputs)
    loops = torch.autograd.grad(by_loop(rnn, x, h_0)[which].square().sum(), inputs)
    for a, b in zip(ours, loops, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [4, 2, 1, 1], [2]])
@sigmas
def test_the_backward_pass_by_finite_differences(sizes, nonlinearity):
    from mnvi.rnn._rollout import rollout
    from mnvi.rnn.nonlinearities import NONLINEARITIES

    sigma = NONLINEARITIES[nonlinearity]()
    bias = data(4).requires_grad_() if sigma.has_bias else None
    x, state = data(sum(sizes), 4).requires_grad_(), data(sizes[0], 4).requires_grad_()
    for kernel in ([data(4, 4)], [data(2, 4), data(2, 4)]):
        factors = [factor.requires_grad_() for factor in kernel]

        def run(x, state, bias, *factors):
            return rollout(x.clone(), state, bias, sizes, sigma, *factors)

        assert torch.autograd.gradcheck(run, (x, state, bias, *factors))


def test_norms_are_kept_over_a_long_time():
    rnn = OrthogonalRNN(1, 32, nonlinearity="abs", bias=False)
    h_0 = torch.randn(1, 5, 32).requires_grad_()
    h_n = rnn(torch.zeros(2000, 5, 1), h_0)[1]
    assert torch.allclose(h_n.norm(dim=-1), h_0.norm(dim=-1), rtol=1e-3)
    h_n.sum().backward()
    assert torch.allclose(h_0.grad.norm(dim=-1), torch.full((1, 5), 32**0.5), rtol=1e-3)


def test_the_kernel_is_mapped_once_a_sequence(monkeypatch):
    calls = []
    original = Exponential.phi
    monkeypatch.setattr(Exponential, "phi", lambda self, a: calls.append(1) or original(self, a))
    rnn = build(kernel=Exponential(), num_layers=3)
    calls.clear()
    rnn(data(20, 2, 3))[0].sum().backward()
    assert len(calls) == 3
    with parametrize.cached():
        rnn(data(20, 2, 3))
        rnn(data(20, 2, 3))
    assert len(calls) == 6


def test_a_bayesian_kernel_draws_once_a_sequence(monkeypatch):
    rnn = build(kernel=mnvi.MNLinear(6, 6, bias=False), num_layers=2)
    draws = []
    original = mnvi.MNLinear.draw_weight
    monkeypatch.setattr(mnvi.MNLinear, "draw_weight", lambda self: draws.append(original(self)) or draws[-1])
    x, h_0 = data(5, 2, 3), torch.zeros(2, 2, 6, dtype=torch.float64)
    output, _ = rnn(x)
    assert len(draws) == 2
    plain = copy.deepcopy(rnn)
    for kernel, draw in zip(plain.kernels, draws, strict=True):
        kernel.weight.data.copy_(draw.detach())
    plain.eval()
    assert torch.allclose(output, by_loop(plain, x, h_0)[0])
    (output.sum() + mnvi.kl(rnn)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rnn.parameters())
    with mnvi.frozen_sample(rnn):
        assert torch.equal(rnn(x)[0], rnn(x)[0])
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_a_bayesian_kernel_with_a_constrained_mean_draws_too():
    kernel = mnvi.constrain(mnvi.MNLinear(6, 6, bias=False, dtype=torch.float64), "weight", CWY(2))
    rnn = build(kernel=kernel)
    drawn, again, mean = rnn.kernel_factors(), rnn.kernel_factors(), rnn.kernels[0].weight
    assert len(drawn) == 1
    assert not torch.equal(*drawn, *again)
    assert not torch.equal(*drawn, mean)
    assert torch.equal(*rnn.eval().kernel_factors(), mean)


def test_the_factors_of_a_kernel_take_a_step():
    rnn = build(kernel=CWY(2), nonlinearity="tanh", num_layers=2, bias=False)
    x, h = data(1, 4, 3), data(2, 4, 6)
    _, expected = rnn(x, h)
    below = x[0]
    for layer in range(2):
        u, p = rnn.kernel_factors(layer)
        below = (rnn.inputs[layer](below) + h[layer] - (h[layer] @ p.mT) @ u).tanh()
        assert torch.allclose(below, expected[layer])


def test_dropout_is_between_layers_and_only_while_training():
    rnn = build(num_layers=2, dropout=0.5)
    x = data(5, 4, 3)
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_autocast_keeps_states_in_full_precision():
    rnn = build(dtype=torch.float32)
    x = data(5, 4, 3, dtype=torch.float32)
    expected = rnn(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rnn(x)[0], expected)


def test_saved_and_copied():
    rnn = build()
    x = data(5, 4, 3)
    rnn(x)[0].sum().backward()
    other = build(kernel=Trivialization(init="haar"))
    other.load_state_dict(rnn.state_dict())
    assert torch.equal(other(x)[0], rnn(x)[0])
    assert torch.equal(copy.deepcopy(rnn)(x)[0], rnn(x)[0])


def test_the_input_is_left_alone_and_a_second_pass_is_refused():
    rnn = build(num_layers=2)
    x, h_0 = data(5, 4, 3), data(2, 4, 6)
    before = x.clone(), h_0.clone()
    rnn(x, h_0)[0].sum().backward()
    assert torch.equal(x, before[0])
    assert torch.equal(h_0, before[1])


def test_bad_input_is_refused():
    rnn = build()
    with pytest.raises(ValueError, match="at least one step"):
        rnn(torch.zeros(0, 4, 3, dtype=torch.float64))
    for shape in ((5, 4, 2), (3,), (5, 4, 3, 1)):
        with pytest.raises(ValueError, match="features"):
            rnn(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="hx must have shape"):
        rnn(data(5, 4, 3), data(1, 3, 6))
    with pytest.raises(ValueError, match="hx must be finite"):
        rnn(data(5, 4, 3), torch.full((1, 4, 6), torch.nan, dtype=torch.float64))
    poisoned = data(5, 4, 3)
    poisoned[2, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="states of a recurrent layer must be finite"):
        rnn(poisoned)
    with pytest.raises(ValueError, match="features"):
        rnn(pack_padded_sequence(data(5, 4, 2), [5, 4, 3, 1]))
    assert rnn(torch.zeros(5, 0, 3, dtype=torch.float64))[0].shape == (5, 0, 6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": nn.Linear(6, 6)}, ValueError, "bias=False"),
        ({"kernel": nn.Linear(5, 6, bias=False)}, ValueError, "Linear\\(6, 6"),
        ({"kernel": "cwy"}, TypeError, "CWY"),
        ({"kernel": CWY}, TypeError, "CWY"),
        ({"kernel": CWY(7)}, ValueError, "7"),
        ({"nonlinearity": "sigmoid"}, ValueError, "modrelu"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"dropout": 0.5, "dtype": torch.complex64, "nonlinearity": "modrelu"}, ValueError, "dropout is for real"),
        ({"dropout": "a"}, TypeError, "dropout must be a number"),
        ({"nonlinearity": "relu", "dtype": torch.complex64}, ValueError, "complex"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        OrthogonalRNN(3, 6, **options)


def test_all_may_be_dropped_and_the_number_of_layers_come_third():
    rnn = OrthogonalRNN(3, 6, 2, dropout=1, kernel=CWY(2), nonlinearity="abs")
    assert rnn.num_layers == 2
    assert not rnn(torch.randn(4, 5, 3))[0].any()


def test_second_derivatives_raise():
    rnn, x = build(), data(4, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(rnn(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


def test_hooks_see_the_input_map_as_it_was():
    rnn, x, held = build(), data(4, 2, 3), []
    rnn.inputs[0].register_forward_hook(lambda module, inputs, output: held.append(output))
    rnn(x)
    assert torch.equal(held[0].view(4, 2, 6), F.linear(x, rnn.inputs[0].weight))


def test_further_and_foreign_parametrizations_of_a_kernel_count():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    chained = nn.Linear(6, 6, bias=False)
    mnvi.constrain(chained, "weight", CWY(2))
    parametrize.register_parametrization(chained, "weight", Half())
    foreign = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6, bias=False))
    for kernel in (chained, foreign):
        rnn, x = build(kernel=kernel), data(4, 2, 3)
        assert torch.allclose(rnn(x)[0], by_loop(rnn, x, torch.zeros(1, 2, 6, dtype=torch.float64))[0])


def test_complex_input_is_refused_by_a_real_layer():
    with pytest.raises(TypeError, match="complex"):
        build()(data(4, 2, 3, dtype=torch.complex128))


@pytest.mark.parametrize(("nonlinearity", "std"), [("tanh", (3 * 300) ** -0.5), ("modrelu", (2 / 200) ** 0.5)])
def test_the_variance_that_input_maps_start_with(nonlinearity, std):
    rnn = OrthogonalRNN(200, 300, kernel=CWY(2), nonlinearity=nonlinearity)
    assert rnn.inputs[0].weight.std().item() == pytest.approx(std, rel=0.02)
    assert not any(parameter.any() for name, parameter in rnn.inputs.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_modrelu_of_zero_is_zero(dtype):
    rnn = OrthogonalRNN(2, 3, kernel=Exponential(), dtype=dtype)
    nn.init.constant_(rnn.thresholds[0], 0.3)
    output, _ = rnn(torch.zeros(4, 1, 2, dtype=dtype))
    assert not output.any()


@pytest.mark.parametrize("nonlinearity", ["relu", "abs"])
def test_real_nonlinearities_are_refused_for_complex_states(nonlinearity):
    with pytest.raises(ValueError, match=f"'{nonlinearity}' is for real states"):
        OrthogonalRNN(2, 3, dtype=torch.complex64, nonlinearity=nonlinearity)


def test_an_initial_state_that_does_not_fit_the_layer():
    rnn, x = OrthogonalRNN(2, 3), torch.randn(4, 1, 2)
    with pytest.raises(TypeError, match=r"this layer is real, got an hx of torch.complex64"):
        rnn(x, torch.zeros(1, 1, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="expected a tensor or a PackedSequence, got list"):
        rnn([1.0, 2.0])
    with pytest.raises(ValueError, match=r"hx must have shape \(1, 3\), got \(1, 1, 3\)"):
        rnn(x[:, 0], torch.zeros(1, 1, 3))
    with pytest.raises(TypeError, match="hx must be a tensor"):
        rnn(x, (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)))
