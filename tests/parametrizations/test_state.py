"""Maps and recurrent layers in the hands of torch's own tools: transforms, exports, averages, copies, dtypes."""

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils import parametrize
from torch.optim import swa_utils

import mnvi
from mnvi.manifolds import (
    SPD,
    CholeskySPD,
    Euclidean,
    GeneralLinear,
    Grassmann,
    Orthogonal,
    SpecialLinear,
    SpecialOrthogonal,
    Stiefel,
    Unitary,
)
from mnvi.optim import AveragedModel
from mnvi.parametrizations import (
    CWY,
    EUNN,
    OWN,
    TCWY,
    URNN,
    Cayley,
    Exponential,
    Householder,
    ScaledCayley,
    Trivialization,
    multiply,
)
from mnvi.rnn import ConvLSTM, ConvNERU, OrthogonalRNN

torchs_own = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.func.hessian uses it too


def trivialization(manifold):
    return lambda: Trivialization(manifold, rebase_every=None)


REAL = {
    "exponential": (Exponential, (4, 4)),
    "cayley": (Cayley, (4, 4)),
    "scaled-cayley": (ScaledCayley, (4, 4)),
    "householder": (lambda: Householder(3), (4, 4)),
    "cwy": (CWY, (4, 4)),
    "cwy-2": (lambda: CWY(2), (4, 4)),
    "tcwy": (TCWY, (5, 3)),
    "own": (OWN, (5, 3)),
    "own-plain": (lambda: OWN(center=False), (3, 5)),
    "own-square": (lambda: OWN(center=False), (4, 4)),
    "eunn": (EUNN, (5, 5)),
    "dtriv-exp": (trivialization(SpecialOrthogonal("exp")), (4, 4)),
    "dtriv-cayley": (trivialization(SpecialOrthogonal("cayley")), (4, 4)),
    "dtriv-qr": (trivialization(SpecialOrthogonal("qr")), (4, 4)),
    "dtriv-polar": (trivialization(Orthogonal("polar")), (4, 4)),
    "dtriv-stiefel": (trivialization(Stiefel()), (5, 3)),
    "dtriv-stiefel-exp": (trivialization(Stiefel("euclidean", "exp")), (5, 3)),
    "dtriv-stiefel-polar": (trivialization(Stiefel(retraction="polar")), (5, 3)),
    "dtriv-stiefel-cayley": (trivialization(Stiefel(retraction="cayley")), (5, 3)),
    "dtriv-grassmann": (trivialization(Grassmann()), (5, 3)),
    "dtriv-gl": (trivialization(GeneralLinear()), (4, 4)),
    "dtriv-sl": (trivialization(SpecialLinear()), (4, 4)),
    "dtriv-cholesky": (trivialization(CholeskySPD()), (4, 4)),
    "dtriv-euclidean": (trivialization(Euclidean()), (4, 4)),
}
ONCE = {
    "dtriv-spd": (trivialization(SPD()), (4, 4)),
    "dtriv-log-euclidean": (trivialization(SPD("log-euclidean")), (4, 4)),
}
COMPLEX = {
    "exponential": (Exponential, (4, 4)),
    "cayley": (Cayley, (4, 4)),
    "scaled-cayley": (ScaledCayley, (4, 4)),
    "eunn": (EUNN, (4, 4)),
    "urnn": (URNN, (4, 4)),
    "own": (OWN, (5, 3)),
    "dtriv": (trivialization(Unitary("exp")), (4, 4)),
    "dtriv-qr": (trivialization(Unitary()), (4, 4)),
}
SECOND = [(row, torch.float64) for row in REAL.values()]
FIRST = [
    *SECOND,
    *((row, torch.float64) for row in ONCE.values()),
    *((row, torch.complex128) for row in COMPLEX.values()),
]
FIRST_IDS = [*REAL, *ONCE, *(f"complex-{name}" for name in COMPLEX)]


def each_but(*names):
    rows = [name for name in REAL if name not in names]
    return pytest.mark.parametrize("row", [REAL[name] for name in rows], ids=rows)


def random(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(row, dtype=torch.float64, seed=0):
    """A constrained linear layer, at no special point."""
    make, shape = row
    torch.manual_seed(seed)
    linear = mnvi.constrain(nn.Linear(shape[1], shape[0], dtype=dtype), "weight", make())
    with torch.no_grad():
        for parameter in linear.parametrizations.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return linear


def of(module, x):
    """A loss of the module's output, as a function of its parameters; and these."""

    def loss(parameters):
        output = functional_call(module, parameters, (x,))
        output = output[0] if isinstance(output, tuple) else output
        return (output.abs() ** 3).sum() + output[0].real.sum()

    return loss, {name: parameter.detach() for name, parameter in module.named_parameters()}


def assert_gradients(module, loss, parameters, atol=1e-10):
    """Those of torch.func.grad are those of backward()."""
    module.zero_grad()
    loss({}).backward()
    found = grad(loss)(parameters)
    for name, parameter in module.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, atol=atol, rtol=1e-9)


def assert_hessian(loss, parameters, name, step=1e-5):
    """Along a direction, it is the difference of gradients."""
    at, direction = parameters[name], random(*parameters[name].shape, seed=2)
    ahead, behind = (grad(loss)({**parameters, name: at + sign * step * direction})[name] for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    found = torch.tensordot(hessian(loss)(parameters)[name][name], direction, at.dim())
    assert float((found - expected).abs().max()) < 1e-6 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize(("row", "dtype"), FIRST, ids=FIRST_IDS)
def test_gradients_of_a_map_by_torch_func(row, dtype):
    module = layer(row, dtype)
    assert_gradients(module, *of(module, random(3, row[1][1], dtype=dtype)))


@torchs_own
@pytest.mark.parametrize("row", REAL.values(), ids=REAL)
def test_hessians_of_a_map_are_differences_of_gradients(row):
    module = layer(row)
    loss, parameters = of(module, random(3, row[1][1]))
    for name in parameters:
        assert_hessian(loss, parameters, name)


@torchs_own
@pytest.mark.parametrize("row", ONCE.values(), ids=ONCE)
def test_a_map_that_is_differentiable_once_refuses_a_hessian(row):
    loss, parameters = of(layer(row), random(3, 4))
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        hessian(loss)(parameters)


@torchs_own
@pytest.mark.parametrize(("row", "dtype"), FIRST, ids=FIRST_IDS)
def test_forward_mode_derivatives_of_a_map(row, dtype):
    module, x = layer(row, dtype), random(3, row[1][1], dtype=dtype)
    call = lambda parameters: functional_call(module, parameters, (x,))  # noqa: E731
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    direction = {name: random(*each.shape, dtype=each.dtype) for name, each in parameters.items()}
    found = jvp(call, (parameters,), (direction,))[1]
    moved = [{name: at + sign * 1e-6 * direction[name] for name, at in parameters.items()} for sign in (1, -1)]
    expected = (call(moved[0]) - call(moved[1])).detach() / 2e-6
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)


@torchs_own
@pytest.mark.parametrize(("row", "dtype"), FIRST, ids=FIRST_IDS)
def test_a_traced_map_gives_the_same_output(row, dtype):
    module, x = layer(row, dtype), random(3, row[1][1], dtype=dtype)
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(2 * x), module(2 * x), atol=1e-12, rtol=0)


@each_but("dtriv-cholesky")  # which chooses its way by the numbers
def test_an_ensemble_of_maps_by_vmap(row):
    modules, x = [layer(row, seed=seed) for seed in (0, 1)], random(3, row[1][1])
    states = [
        {name: each.clone() for name, each in module.state_dict().items() if each.numel() and "_extra" not in name}
        for module in modules
    ]
    outputs = vmap(lambda state: functional_call(modules[0], state, (x,)))(
        {name: torch.stack([state[name] for state in states]) for name in states[0]}
    )
    torch.testing.assert_close(outputs, torch.stack([each(x) for each in modules]).detach(), atol=1e-12, rtol=0)


def test_the_exponential_in_a_transform_is_right_for_small_matrices():
    layer = mnvi.constrain(nn.Linear(2, 2, bias=False), "weight", Exponential())
    angle = torch.full((1,), 0.58)
    weight = grad(
        lambda at: (
            functional_call(layer, {"parametrizations.weight.original": at}, (torch.eye(2),)) * torch.eye(2)
        ).sum()
    )
    assert float(weight(angle) + 2 * angle.sin()) < 1e-6


# --- priors and Bayesian layers ---------------------------------------------------------------------------------------

covariance, posteriors, priors = mnvi.covariance, mnvi.posteriors, mnvi.priors
POSTERIORS = {
    "matrix-normal": posteriors.MatrixNormal(),
    "diagonal": posteriors.Diagonal(),
    "plus-diagonal": posteriors.MatrixNormalPlusDiagonal(),
    "blocks": posteriors.MatrixNormal(row=covariance.BlockDiagonal(2), column=covariance.Diagonal()),
    "low-rank": posteriors.MatrixNormal(row=covariance.LowRank(1), column=covariance.LowRank(2)),
    "identity": posteriors.MatrixNormal(row=covariance.Identity(), column=covariance.Dense()),
}
PRIORS = {
    "normal": lambda: priors.Normal(),
    "fitted": lambda: priors.Normal(None),
    "scales": lambda: priors.Normal(torch.full((4, 1), 0.7, dtype=torch.float64)),
    "ard": lambda: priors.ARD(),
    "group-ard": lambda: priors.GroupARD(),
    "learnt": lambda: priors.GroupARD(learn=True),
    "matrix-normal": lambda: priors.MatrixNormal(
        torch.zeros(4, 4, dtype=torch.float64), *torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    ),
}
LAYERS = {
    "linear": (lambda **options: mnvi.MNLinear(4, 4, **options), (3, 4)),
    "conv": (lambda **options: mnvi.MNConv1d(4, 4, 1, **options), (2, 4, 5)),
    "transposed": (lambda **options: mnvi.MNConvTranspose1d(4, 4, 1, **options), (2, 4, 5)),
}
BAYESIAN = [
    *(
        (posterior, "ard", kind, estimator)
        for posterior in POSTERIORS
        for kind in LAYERS
        for estimator in ("weight", "local")
    ),
    *(("matrix-normal", prior, "linear", "local") for prior in PRIORS if prior != "ard"),
]


class Loss(nn.Module):
    """A layer's output and KL as one number."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return (self.layer(x) ** 2).sum() + self.layer.kl()


@torchs_own
@pytest.mark.parametrize(("posterior", "prior", "kind", "estimator"), BAYESIAN, ids=map("-".join, BAYESIAN))
def test_derivatives_of_a_bayesian_layer_and_its_kl(posterior, prior, kind, estimator):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    options = {"posterior": POSTERIORS[posterior], "prior": PRIORS[prior](), "estimator": estimator}
    module, x = Loss(make(dtype=torch.float64, **options)), random(*shape)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def loss(parameters):
        start = {name: buffer.clone() for name, buffer in buffers.items()}  # which a KL may change in place
        return functional_call(module, {**start, **parameters}, (x,))

    with mnvi.frozen_sample(module):
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        assert_gradients(module, loss, parameters)
        if prior == "group-ard":  # whose precisions are constants in every derivative
            return
        for name in list(parameters)[:3]:
            assert_hessian(loss, parameters, name)


@torchs_own
def test_the_hessian_of_group_ard_holds_its_precisions_fixed():
    module = Loss(
        mnvi.MNLinear(3, 2, prior=priors.GroupARD(), posterior=posteriors.Diagonal(), dtype=torch.float64)
    ).eval()
    x = torch.zeros(1, 3, dtype=torch.float64)
    for _ in range(200):
        module.layer.kl()
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    prior = module.layer.prior
    before = prior.log_row_precision.clone()
    found = hessian(lambda p: functional_call(module, p, (x,)))(parameters)["layer.weight"]["layer.weight"]
    assert torch.equal(prior.log_row_precision, before)
    precisions = prior.log_row_precision.exp()[:, None] * prior.log_column_precision.exp()
    torch.testing.assert_close(found.reshape(6, 6), precisions.flatten().diag(), rtol=1e-6, atol=1e-9)


# --- recurrent layers -------------------------------------------------------------------------------------------------

KERNELS = {
    "default": None,
    "exponential": Exponential(),
    "cayley": Cayley(),
    "scaled-cayley": ScaledCayley(),
    "householder": Householder(3),
    "cwy": CWY(),
    "cwy-thin": CWY(2),
    "own": OWN(center=False),
    "eunn": EUNN(3),
    "stiefel": Trivialization(Stiefel()),
    "linear": nn.Linear(6, 6, bias=False),
    "bayesian": mnvi.MNLinear(6, 6, bias=False),
    "urnn": URNN(),
    "scurnn": ScaledCayley(),
}
kernels = pytest.mark.parametrize("kernel", KERNELS)


def recurrent(kernel, nonlinearity="tanh", **options):
    torch.manual_seed(0)
    dtype = torch.complex128 if kernel in ("urnn", "scurnn") else torch.float64
    rnn = OrthogonalRNN(3, 6, 2, kernel=KERNELS[kernel], nonlinearity=nonlinearity, dtype=dtype, **options)
    return rnn.eval(), random(4, 2, 3), random(2, 2, 6, dtype=dtype)


@kernels
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_an_exported_recurrent_layer_gives_the_same_output(kernel, nonlinearity):
    rnn, x, h_0 = recurrent(kernel, nonlinearity)
    program = torch.export.export(rnn, (x, h_0)).module()
    for other in (x, 2 * x):
        for found, expected in zip(program(other, h_0), rnn(other, h_0), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@kernels
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_gradients_of_a_recurrent_layer_by_torch_func(kernel, nonlinearity):
    rnn, x, _ = recurrent(kernel, nonlinearity)
    assert_gradients(rnn, *of(rnn, x), atol=1e-6 if nonlinearity == "modrelu" else 1e-10)


@torchs_own
@pytest.mark.parametrize("kernel", ["exponential", "cwy", "cwy-thin", "eunn", "linear", "bayesian"])
def test_hessians_of_a_recurrent_layer_are_differences_of_gradients(kernel):
    rnn, x, _ = recurrent(kernel)
    loss, parameters = of(rnn, x)
    assert_hessian(loss, parameters, "inputs.0.weight")


@torchs_own
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that it holds for this length
@kernels
def test_a_traced_recurrent_layer_gives_the_same_output(kernel):
    rnn, x, h_0 = recurrent(kernel)
    traced = torch.jit.trace(rnn, (x, h_0))
    for found, expected in zip(traced(2 * x, h_0), rnn(2 * x, h_0), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_plain_steps_are_those_of_packed_sequences_too():
    rnn, *_ = recurrent("cwy")
    packed = nn.utils.rnn.pack_sequence([random(length, 3) for length in (5, 3, 1)])
    call = lambda parameters: functional_call(rnn, parameters, (packed,))[0].data  # noqa: E731
    parameters = {name: parameter.detach() for name, parameter in rnn.named_parameters()}
    output = jvp(call, (parameters,), (parameters,))[0]
    torch.testing.assert_close(output, rnn(packed)[0].data.detach(), atol=1e-12, rtol=0)


def copies(tensors, devices, detach=False):
    return [[tensor.detach() if detach else tensor.clone() for tensor in tensors] for _ in devices]


def replicas(module, monkeypatch):
    """What DataParallel makes of a module, on one device."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, *_: device)
    return replicate.replicate(module, [0, 1])


@kernels
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_replicas_of_a_recurrent_layer_run_and_send_gradients_back(kernel, nonlinearity, monkeypatch):
    rnn, x, h_0 = recurrent(kernel, nonlinearity)
    rnn(x, h_0)[0].abs().sum().backward()
    expected = [parameter.grad for parameter in rnn.parameters()]
    rnn.zero_grad()
    for replica in replicas(rnn, monkeypatch):
        assert torch.equal(replica(x, h_0)[0], rnn(x, h_0)[0])
    replica(x, h_0)[0].abs().sum().backward()
    for parameter, each in zip(rnn.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (each is None)
        assert each is None or torch.allclose(parameter.grad, each, rtol=1e-9)


@pytest.mark.parametrize("make", [ConvNERU, lambda *sizes: ConvNERU(*sizes, nonlinearity="modrelu"), ConvLSTM])
def test_convolutional_recurrent_layers_are_replicated_and_exported(make, monkeypatch):
    unit, x = make(3, 4), random(2, 2, 3, 5, 5, dtype=torch.float32)
    assert torch.equal(replicas(unit, monkeypatch)[1](x)[0], unit(x)[0])
    torch.testing.assert_close(torch.export.export(unit, (x,)).module()(x)[0], unit(x)[0], atol=1e-5, rtol=0)


# --- averages ---------------------------------------------------------------------------------------------------------

MANIFOLDS = {
    "rotations": (None, (5, 5)),
    "tall": (Stiefel(), (6, 3)),
    "wide": (Stiefel(), (3, 6)),
    "spd": (SPD(), (4, 4)),
    "grassmann": (Grassmann(), (6, 2)),
}
AVERAGES = {
    "swa": {},
    "swa-buffers": {"use_buffers": True},
    "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.7)},
    "ema-one": {"avg_fn": swa_utils.get_ema_avg_fn(0.7)},
}
every = pytest.mark.parametrize("every", [1, 3])


def trained(manifold, every, averages, steps=7):
    """A model with a trivialized weight, its averages over so many steps, and the weights."""
    space, shape = MANIFOLDS[manifold]
    torch.manual_seed(0)
    weight = mnvi.constrain(nn.Linear(*shape[::-1], dtype=torch.float64), "weight", Trivialization(space, every))
    model, x, weights = nn.Sequential(nn.Linear(*[shape[1]] * 2, dtype=torch.float64), weight), random(8, shape[1]), []
    averages = [kind(model, **options) for kind, options in averages]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(x).square().sum() - model(x).sum()).backward()
        optimiser.step()
        weights.append(weight.weight.detach())
        for each in averages:
            each.update_parameters(model)
    return model, averages, weights


@pytest.mark.parametrize("manifold", MANIFOLDS)
@every
@pytest.mark.parametrize("average", AVERAGES)
def test_averages_of_a_trivialization_are_projected_means_of_its_weights(manifold, every, average):
    options = AVERAGES[average]
    model, (ours, torchs), weights = trained(
        manifold, every, [(AveragedModel, options), (swa_utils.AveragedModel, options)]
    )
    layout, space = model[1].parametrizations.weight[0].layout, model[1].parametrizations.weight[0].space
    mean = layout.matrix(weights[0])
    for count, weight in enumerate(weights[1:], 1):
        share = 0.3 if "ema" in average else 1 / (count + 1)
        mean = space.project((1 - share) * mean + share * layout.matrix(weight))
    torch.testing.assert_close(ours.module[1].weight.detach(), layout.weight(mean), atol=1e-12, rtol=0)
    for found, expected in zip(ours.module[0].parameters(), torchs.module[0].parameters(), strict=True):
        assert torch.equal(found, expected)
    other = AveragedModel(model, **options)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.module[1].weight, ours.module[1].weight)


@every
@pytest.mark.parametrize("average", AVERAGES)
def test_torchs_average_of_coordinates_at_different_base_points_is_refused(every, average):
    model, (torchs,), _ = trained("tall", every, [(swa_utils.AveragedModel, AVERAGES[average])])
    averaged = torchs.module[1]
    for use in (lambda: averaged.weight, torchs.state_dict, lambda: multiply(averaged, "weight", random(2, 3))):
        with pytest.raises(RuntimeError, match=r"use mnvi.optim.AveragedModel, or rebase_every=None"):
            use()
    _ = model[1].weight, model.state_dict()


def test_torchs_average_around_one_base_point_is_allowed():
    _, (ours, torchs), _ = trained("tall", None, [(AveragedModel, {}), (swa_utils.AveragedModel, {})])
    weights = [each.module[1].weight.detach() for each in (ours, torchs)]
    space = Stiefel()
    for weight in weights:
        assert float(space.residual(weight)) < 1e-13
    assert float((weights[0] - weights[1]).abs().max()) < 0.01


@pytest.mark.parametrize("row", [REAL[name] for name in ("exponential", "cayley", "cwy", "tcwy", "own", "eunn")])
def test_torchs_averages_of_other_maps_are_on_the_manifold(row):
    module = layer(row)
    average = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    for seed in (1, 2, 3):
        average.update_parameters(layer(row, seed=seed))
    parametrization, weight = module.parametrizations.weight[0], average.module.weight.detach()
    assert float(parametrization.manifold(weight.dtype).residual(parametrization.layout.matrix(weight))) < 1e-13


def test_the_same_base_point_written_again_is_no_average():
    module = layer((lambda: Trivialization(rebase_every=1), (4, 4)))
    weight, base = module.weight.detach(), module.parametrizations.weight[0].base
    base.copy_(base.clone())  # as DistributedDataParallel does at every pass
    assert torch.equal(module.weight, weight)
    base.mul_(0.5)
    with pytest.raises(RuntimeError, match="base point"):
        _ = module.weight
    module.weight = weight  # what assigns a weight mends it
    assert torch.allclose(module.weight, weight)


# --- copies, devices, dtypes ------------------------------------------------------------------------------------------

STATEFUL = {
    **REAL,
    **ONCE,
    "exponential-det": (lambda: Exponential(-1), (4, 4)),
    "eunn-det": (lambda: EUNN(determinant=-1), (4, 4)),
}


@pytest.mark.parametrize("row", STATEFUL.values(), ids=STATEFUL)
@pytest.mark.parametrize("assign", [False, True])
def test_from_the_meta_device_a_state_dict_gives_the_saved_weight(row, assign):
    source, target = layer(row), layer(row, seed=1).to("meta")
    if not assign:
        target.to_empty(device="cpu")
        for tensor in (*target.parameters(), *target.buffers()):
            tensor.data.fill_(7)
    target.load_state_dict(source.state_dict(), assign=assign)
    assert torch.equal(target.weight, source.weight)
    target.weight.sum().backward()
    again = source.weight.detach()
    target.weight = again
    torch.testing.assert_close(target.weight, again, atol=1e-9, rtol=0)


@pytest.mark.parametrize("make", [URNN, EUNN, ScaledCayley, Exponential])
def test_of_complex_weights_too(make):
    row = make, (4, 4)
    source, target = layer(row, torch.complex64), layer(row, torch.complex64, seed=1).to("meta").to_empty(device="cpu")
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight, source.weight)


def test_what_is_known_of_the_weights_size_is_no_part_of_a_checkpoint():
    assert set(layer(REAL["exponential"]).state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.signs",
    }


def test_first_used_in_inference_mode_a_map_can_still_be_trained():
    module = layer(REAL["exponential"])
    module.parametrizations.weight[0]._places = None
    with torch.inference_mode():
        _ = module.weight
    module.weight.sum().backward()


CONVERSIONS = {
    "to-complex": lambda module: module.to(torch.complex128),
    "double": lambda module: module.double(),
    "to-real": lambda module: module.to(torch.float64),
}
complex_modules = pytest.mark.filterwarnings("ignore:Complex modules")
conversions = pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)


@complex_modules
@conversions
@pytest.mark.parametrize("row", COMPLEX.values(), ids=COMPLEX)
def test_a_complex_weight_converts_with_its_bias(row, convert):
    module, x = layer(row, torch.complex64), random(2, row[1][1], dtype=torch.complex64)
    before, kinds = (
        module(x).detach(),
        {name: each.is_complex() for name, each in module.state_dict().items() if each.numel()},
    )
    convert(module)
    assert module.weight.dtype == module.bias.dtype == torch.complex128
    assert {name: each.is_complex() for name, each in module.state_dict().items() if each.numel()} == kinds
    torch.testing.assert_close(module(x.to(torch.complex128)).to(torch.complex64), before, atol=1e-5, rtol=0)
    assert float((module.weight.mH @ module.weight - torch.eye(row[1][1])).detach().abs().max()) < 1e-13
    module(x.to(torch.complex128)).abs().sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    copied = copy.deepcopy(module).float()
    assert copied(x).dtype == torch.complex64
    assert copied.half()(x).dtype == torch.complex64  # there is no half precision here


@complex_modules
@conversions
def test_a_model_with_complex_weights_converts(convert):
    model = nn.Sequential(layer(COMPLEX["exponential"], torch.complex64), layer(COMPLEX["dtriv"], torch.complex64))
    assert convert(model)(random(2, 4, dtype=torch.complex128)).dtype == torch.complex128


@complex_modules
@conversions
@pytest.mark.parametrize(
    "kernel", [URNN(), ScaledCayley(), Trivialization(Unitary("exp")), nn.Linear(6, 6, bias=False)]
)
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_a_complex_recurrent_layer_converts(kernel, nonlinearity, convert):
    torch.manual_seed(0)
    rnn = OrthogonalRNN(3, 6, kernel=kernel, nonlinearity=nonlinearity, dtype=torch.complex64)
    x = random(4, 2, 3, dtype=torch.float32)
    before, kinds = rnn(x)[0].detach(), [each.is_complex() for each in rnn.parameters()]
    after = convert(rnn)(x)[0]
    assert after.dtype == torch.complex128
    assert [each.is_complex() for each in rnn.parameters()] == kinds
    torch.testing.assert_close(after.to(torch.complex64), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [CWY, Householder, EUNN])
def test_without_an_argument_there_are_as_many_as_rows(make):
    free = make()
    assert "None" in repr(free)
    counted = layer((lambda: pickle.loads(pickle.dumps(copy.deepcopy(free))), (5, 5)))
    given = layer((lambda: make(5), (5, 5)))
    assert torch.equal(counted.weight, given.weight)
    for each in (counted, copy.deepcopy(counted)):
        parametrization = each.parametrizations.weight[0]
        assert repr(parametrization) == repr(given.parametrizations.weight[0])
    counted.weight = given.weight.detach()
    assert torch.allclose(counted.weight, given.weight)
    with pytest.raises(ValueError, match="square"):
        mnvi.constrain(nn.Linear(4, 3), "weight", free)
    assert mnvi.constrain(nn.Linear(3, 3), "weight", free).weight.shape == (3, 3)  # a refusal took no size


@pytest.mark.parametrize("row", [*REAL.values()], ids=REAL)
def test_a_parametrization_is_transferred_to_a_module_with_the_same_weight(row):
    source = layer(row)
    target, weight = nn.Linear(*row[1][::-1], dtype=torch.float64), source.weight.detach()
    with torch.no_grad():
        target.weight.copy_(weight)
    parametrize.transfer_parametrizations_and_params(source, target)
    for module in (source, target):
        torch.testing.assert_close(module.weight, weight, atol=1e-12, rtol=0)


def test_a_transfer_to_another_weight_is_refused():
    source, target = layer(REAL["cwy"]), nn.Linear(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="not a point"):
        parametrize.transfer_parametrizations_and_params(source, target)
    assert not parametrize.is_parametrized(target)
    source = layer(REAL["dtriv-exp"])
    with torch.no_grad():
        target.weight.copy_(SpecialOrthogonal().random(4, 4))
    with pytest.raises(RuntimeError, match="give every weight its own"):
        _ = parametrize.transfer_parametrizations_and_params(source, target).weight
