"""Natural gradient: direction against a numerical Fisher matrix, retraction, conjugate regression, the optimiser."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mnvi
from mnvi import posteriors, priors
from mnvi.covariance import BlockDiagonal, Dense, Diagonal, Identity, Kronecker, LowRank
from mnvi.linalg.contraction import contract
from mnvi.optim import NaturalGradient, other_parameters
from tests.cases import FACTORS, cases
from tests.laws import assert_close, randomise

pytestmark = pytest.mark.usefixtures("float64")

SIZE = 6
NATURAL = {name: each for name, each in FACTORS.items() if each.build(SIZE).natural_parts(1) and "kron" not in name}
PAIRS = {
    "dense-dense": (Dense(), Dense()),
    "dense-diagonal": (Dense(), Diagonal()),
    "diagonal-dense": (Diagonal(), Dense()),
    "blocks-dense": (BlockDiagonal(2), Dense()),
    "identity-dense": (Identity(), Dense()),
    "dense-kronecker": (Dense(), Kronecker()),
}


def gradients(factor, weight):
    """Of ⟨weight, F Fᵀ⟩ with respect to the factor's parameters, as a backward pass gives them."""
    return torch.autograd.grad((weight * factor.covariance()).sum(), list(factor.parameters()))


def in_structure(description, matrix):
    """The entries of a dense matrix that a factor's step has; zeros elsewhere."""
    if isinstance(description, Diagonal):
        return matrix.diagonal().diag_embed()
    if isinstance(description, BlockDiagonal):
        block = torch.arange(len(matrix)) // description.block_size
        return matrix * (block[:, None] == block)
    return matrix


def dense_step(description, step, size=SIZE):
    if isinstance(description, Diagonal):
        return step.diag_embed()
    return torch.block_diag(*step)[:size, :size] if isinstance(description, BlockDiagonal) else step


@cases("description", NATURAL)
def test_whitened_gradient_is_the_symmetric_gradient_in_whitened_coordinates(description):
    factor = randomise(description.build(SIZE))
    weight = torch.randn(SIZE, SIZE)
    step = factor.whitened_gradient(*gradients(factor, weight))
    f = factor.matrix().detach()
    assert_close(dense_step(description, step), in_structure(description, f.mT @ (weight + weight.mT) @ f))


@cases("description", NATURAL)
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_contraction_divides_the_covariance_by_the_precision_step(description, size):
    factor = randomise(description.build(SIZE))
    zeros = {name: p == 0 for name, p in factor.named_parameters()}
    before = factor.covariance().detach()
    f = factor.matrix().detach()
    step = size * 0.2 * factor.whitened_gradient(*gradients(factor, torch.randn(SIZE, SIZE)))
    factor.contract_(step)
    s, identity = dense_step(description, step), torch.eye(SIZE)
    expected = f @ torch.linalg.inv(identity + s + s @ s / 2) @ f.mT
    if (torch.linalg.eigvalsh(s) > -1).all():
        assert_close(factor.covariance(), expected, 1e4)
    assert not torch.allclose(factor.covariance(), before)
    for name, p in factor.named_parameters():
        if name == "off_diagonal":
            assert (p[zeros[name]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 30.0, 1e4, 1e10, 1e18])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_of_any_size_keeps_factors_finite_and_invertible(dtype, scale, sign):
    for size in (1, 5, 40):
        factor = torch.randn(3, size, size, dtype=dtype).tril(-1) + torch.eye(size, dtype=dtype)
        step = torch.randn(3, size, size, dtype=dtype)
        new = contract(factor, sign * scale * (step + step.mT))
        assert new.isfinite().all()
        assert (new.diagonal(dim1=-2, dim2=-1) > 0).all()
        assert_close(new, new.tril())
        spread = torch.linalg.svdvals(new)
        assert (spread[:, 0] <= 1.4143 * torch.linalg.svdvals(factor)[:, 0] * (1 + 1e-5)).all()  # grows by √2 at most


@cases("pair", PAIRS)
def test_small_steps_follow_the_inverse_fisher_matrix(pair):
    """dθ = −lr·F⁺∇, with F the Hessian of KL(q ‖ q_θ) over dense M and Cholesky factors, gauge and all."""
    layer = mnvi.MNLinear(4, 3, bias=False, posterior=posteriors.MatrixNormal(*pair), prior=priors.ARD())
    randomise(layer.posterior, 0.3)
    q = layer.posterior
    names = [name for name, _ in layer.named_parameters()]
    theta = [p.detach().clone() for p in layer.parameters()]
    sizes = [p.numel() for p in theta]

    def parts(flat):
        return [each.view_as(p) for each, p in zip(flat.split(sizes), theta, strict=True)]

    class Moments(nn.Module):  # the mean and the covariance of the flattened weight
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, _):
            u, v = q.row.covariance(), q.column.covariance()
            return layer.weight.flatten(), torch.kron(u.contiguous(), v.contiguous())

    module = Moments()

    def moments(flat):
        named = {f"layer.{name}": each for name, each in zip(names, parts(flat), strict=True)}
        return torch.func.functional_call(module, named, (None,))

    at = torch.cat([p.flatten() for p in theta])
    mean, cov = moments(at)

    def divergence(flat):  # KL(N(mean, cov) ‖ N(moments))
        m, c = moments(flat)
        d = m - mean
        return 0.5 * (torch.linalg.solve(c, cov).trace() + d @ torch.linalg.solve(c, d) + torch.logdet(c))

    fisher = torch.autograd.functional.hessian(divergence, at)
    loss = (layer.weight * torch.arange(12.0).view(3, 4).cos()).sum() + layer.kl()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in layer.parameters()])
    direction = torch.linalg.pinv(fisher, rtol=1e-9, hermitian=True) @ gradient
    lr = 1e-5
    expected_mean, expected_cov = (
        (moments(at - lr * direction)[i] - moments(at + lr * direction)[i]) / (2 * lr) for i in (0, 1)
    )
    NaturalGradient(layer, lr).step()
    after = module(None)
    torch.testing.assert_close((after[0] - mean) / lr, expected_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((after[1] - cov) / lr, expected_cov, rtol=1e-3, atol=1e-3)


def regression(seed, num_data=200, inputs=8, outputs=3, noise=0.3):
    """Ill-conditioned inputs, the expected NLL in closed form, and the analytic log evidence."""
    torch.manual_seed(seed)
    x = (
        torch.randn(num_data, inputs)
        * torch.logspace(0, -1.5, inputs)
        @ torch.linalg.qr(torch.randn(inputs, inputs))[0]
    )
    y = x @ torch.randn(inputs, outputs) + noise * torch.randn(num_data, outputs)

    def loss(layer):
        u, v = layer.posterior.row.covariance(), layer.posterior.column.covariance()
        error = (y - x @ layer.weight.mT).square().sum() + u.trace() * ((x @ v) * x).sum()
        return error / (2 * noise**2) + y.numel() * math.log(noise * math.sqrt(2 * math.pi)) + layer.kl()

    evidence = torch.distributions.MultivariateNormal(torch.zeros(num_data), x @ x.mT + noise**2 * torch.eye(num_data))
    return loss, evidence.log_prob(y.mT).sum()


def steps_to_evidence(layer, optimiser, loss, evidence, most):
    for step in range(most + 1):
        value = loss(layer)
        if value + evidence < 0.01:
            return step
        layer.zero_grad()
        value.backward()
        optimiser.step()
    return None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("start", [0.01, 1.0, 1000.0])
def test_conjugate_regression_reaches_the_evidence_in_thirty_steps_from_any_start(seed, start):
    loss, evidence = regression(seed)
    layer = mnvi.MNLinear(8, 3, bias=False, posterior=posteriors.MatrixNormal())
    layer.posterior.set_scale_(0.02 * start)
    steps = steps_to_evidence(layer, NaturalGradient(layer, lr=1.0), loss, evidence, 30)
    assert steps is not None
    assert loss(layer) + evidence > -1e-9  # a bound it stays


def test_adam_takes_ten_times_as_many_steps():
    loss, evidence = regression(0)
    best = min(
        steps_to_evidence(layer, torch.optim.Adam(layer.parameters(), lr), loss, evidence, 1500) or 1500
        for lr in (0.01, 0.03, 0.1)
        for layer in [mnvi.MNLinear(8, 3, bias=False, posterior=posteriors.MatrixNormal())]
    )
    layer = mnvi.MNLinear(8, 3, bias=False, posterior=posteriors.MatrixNormal())
    assert best >= 10 * steps_to_evidence(layer, NaturalGradient(layer, lr=1.0), loss, evidence, 30)


LAYERS = {
    "linear": (lambda **k: mnvi.MNLinear(8, 4, **k), (5, 8)),
    "conv1d": (lambda **k: mnvi.MNConv1d(4, 6, 3, **k), (5, 4, 7)),
    "conv2d": (lambda **k: mnvi.MNConv2d(4, 6, 3, groups=2, **k), (5, 4, 7, 7)),
    "conv2d-local": (lambda **k: mnvi.MNConv2d(4, 6, 3, estimator="local", **k), (5, 4, 7, 7)),
    "transposed": (lambda **k: mnvi.MNConvTranspose2d(4, 6, 3, **k), (5, 4, 5, 5)),
}
SOME = {name: posteriors.MatrixNormal(*pair) for name, pair in PAIRS.items()} | {"diagonal": posteriors.Diagonal()}


@cases("made", LAYERS)
@cases("family", SOME)
@pytest.mark.parametrize("prior", [priors.Normal(), priors.Normal(None), priors.ARD(), priors.GroupARD()])
def test_training_with_every_layer_family_and_prior_lowers_the_loss(made, family, prior):
    make, shape = made
    layer, x = make(posterior=family, prior=prior), torch.randn(shape)
    target = torch.randn_like(layer(x))
    natural = NaturalGradient(layer, lr=0.1, momentum=0.5, second_moment=0.9, covariance_momentum=0.5, num_data=50)
    adam = torch.optim.Adam(other_parameters(layer), 1e-2)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(layer(x), target) + layer.kl() / 50
        natural.zero_grad()
        adam.zero_grad()
        loss.backward()
        natural.step()
        adam.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(p.isfinite().all() for p in layer.parameters())


def model():
    return mnvi.Sequential(
        mnvi.MNLinear(6, 5, posterior=posteriors.MatrixNormal()),
        nn.ReLU(),
        mnvi.MNLinear(5, 4, posterior=posteriors.MatrixNormal(LowRank(1), Kronecker())),
        mnvi.MNLinear(4, 4, posterior=posteriors.MatrixNormalPlusDiagonal()),
        mnvi.MNLinear(4, 4, posterior=posteriors.Diagonal()),
        nn.Linear(4, 2),
    )


def backward(net, seed=0):
    torch.manual_seed(seed)
    net.zero_grad()
    loss = F.cross_entropy(net(torch.randn(8, 6)), torch.randint(2, (8,))) + net.kl() / 100
    loss.backward()
    return loss


def test_other_parameters_are_all_the_rest_once():
    net = model()
    natural = [p for group in NaturalGradient(net).param_groups for p in group["params"]]
    rest = other_parameters(net)
    assert {*natural} | {*rest} == {*net.parameters()}
    assert len(natural) + len(rest) == len(list(net.parameters()))
    names = {name for name, p in net.named_parameters() if any(p is each for each in rest)}
    assert {"0.bias", "2.posterior.row.loading", "5.weight", "3.weight"} <= names
    assert "2.posterior.column.left.log_diagonal" not in names


def test_the_gauge_is_fixed_after_every_step():
    net = model()
    backward(net)
    NaturalGradient(net, lr=0.3, num_data=100).step()
    q = net[0].posterior
    assert_close(q.row.log_det() / 5, q.column.log_det() / 6)


def test_num_data_undoes_the_division_of_the_loss_and_every_averages_gradients():
    nets = [mnvi.MNLinear(6, 5, posterior=posteriors.MatrixNormal()) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    scales = (1.0, 1 / 50)
    for net, scale in zip(nets, scales, strict=False):
        (scale * (net.weight.sum() + net.kl())).backward()
        NaturalGradient(net, 0.1, num_data=round(1 / scale)).step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert_close(a, b)
    optimiser = NaturalGradient(nets[2], 1e-12, covariance_lr=0.1, every=2)
    for factor in (0.5, 1.5):
        nets[2].zero_grad()
        (factor * nets[2].kl() + nets[2].weight.sum()).backward()
        optimiser.step()
    assert_close(nets[2].posterior.row.matrix(), nets[0].posterior.row.matrix(), 1e6)


def test_a_resumed_run_takes_the_same_steps():
    def steps(net, optimiser, first, last):
        for i in range(first, last):
            backward(net, i)
            optimiser.step()

    options = {"momentum": 0.9, "second_moment": 0.99, "covariance_momentum": 0.5, "every": 3, "num_data": 100}
    net = model()
    straight = copy.deepcopy(net)
    optimiser = NaturalGradient(straight, 0.1, **options)
    steps(straight, optimiser, 0, 10)
    optimiser = NaturalGradient(net, 0.1, **options)
    steps(net, optimiser, 0, 5)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimiser.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    fresh = model()
    fresh.load_state_dict(weights)
    optimiser = NaturalGradient(fresh, 0.5, **options)
    optimiser.load_state_dict(state)
    steps(fresh, optimiser, 5, 10)
    for a, b in zip(fresh.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_is_named_and_changes_nothing(value):
    net = model()
    optimiser = NaturalGradient(net, 0.1, momentum=0.9)
    backward(net)
    optimiser.step()
    before = copy.deepcopy([net.state_dict(), optimiser.state_dict()])
    backward(net)
    net[4].posterior.log_scale.grad[0, 0] = value
    with pytest.raises(ValueError, match=r"4\.posterior\.log_scale"):
        optimiser.step()
    for a, b in zip(
        *(torch.utils._pytree.tree_leaves(each) for each in (before, [net.state_dict(), optimiser.state_dict()])),
        strict=True,
    ):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_layers_without_gradients_stay_and_pruned_means_do_not_move():
    net = model()
    mnvi.sparsity.prune(net, fraction=0.5)
    before = copy.deepcopy(net)
    backward(net)
    net[4].zero_grad()
    NaturalGradient(net, 0.1, num_data=100).step()
    assert torch.equal(net[4].weight, before[4].weight)
    pruned = net[0].pruned == 1
    assert torch.equal(net[0].weight[pruned], before[0].weight[pruned])
    assert not torch.equal(net[0].weight, before[0].weight)


def test_schedulers_and_closures_work():
    net = model()
    optimiser = NaturalGradient(net, 0.1, covariance_lr=0.01, num_data=100)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5**step)
    assert optimiser.step(lambda: backward(net)).item() > 0
    schedule.step()
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.005]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"second_moment": -0.1}, ValueError, "second_moment"),
        ({"covariance_lr": math.nan}, ValueError, "covariance_lr"),
        ({"num_data": 0}, ValueError, "num_data"),
        ({"every": 1.5}, TypeError, "every"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        NaturalGradient(model(), **options)


def test_a_model_without_matrix_normal_layers_is_refused():
    with pytest.raises(ValueError, match="to_bayesian"):
        NaturalGradient(nn.Linear(3, 2))


def test_copies_are_refused_because_they_would_lose_the_model():
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(NaturalGradient(model()))


def test_layers_that_share_a_parameter_are_refused_and_a_shared_layer_is_stepped_once():
    a, b = mnvi.MNLinear(4, 4, bias=False), mnvi.MNLinear(4, 4, bias=False)
    b.weight = a.weight
    with pytest.raises(ValueError, match=r"share 0\.weight"):
        NaturalGradient(mnvi.Sequential(a, b))
    once, twice = mnvi.Sequential(mnvi.MNLinear(4, 4)), mnvi.Sequential()
    twice.extend([copy.deepcopy(once)[0]] * 2)
    for net in (once, twice):
        net.kl().backward()
        NaturalGradient(net, 0.1).step()
    assert_close(once[0].weight, twice[0].weight)


def test_a_frozen_factor_stays_and_the_others_are_stepped():
    net = model()
    net[0].posterior.row.requires_grad_(False)
    before = copy.deepcopy(net)
    backward(net)
    NaturalGradient(net, 0.1, num_data=100).step()
    for (name, old), new in zip(before[0].named_parameters(), net[0].parameters(), strict=True):
        assert torch.equal(old, new) == (".row." in name or name == "bias")
    net[0].posterior.column.off_diagonal.requires_grad_(False)
    with pytest.raises(ValueError, match=r"0\.posterior\.column"):
        NaturalGradient(net)


def test_a_step_that_overflows_changes_nothing():
    net = model()
    optimiser = NaturalGradient(net, 0.1, momentum=0.9, covariance_momentum=0.9, num_data=10**9)
    backward(net)
    optimiser.step()
    before = copy.deepcopy([net.state_dict(), optimiser.state_dict()])
    backward(net)  # the layers before the last one have gradients of ordinary size
    for p in net[4].parameters():
        p.grad.fill_(1e300)  # finite, but not when num_data multiplies it
    with pytest.raises(ValueError, match="overflows"):
        optimiser.step()
    leaves = torch.utils._pytree.tree_leaves
    for a, b in zip(leaves(before), leaves([net.state_dict(), optimiser.state_dict()]), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def changed_gradient(net, value):
    backward(net)
    net[0].weight.grad[1, 2] = value
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e306])
def test_a_step_that_cannot_be_taken_says_what_helps(value):
    net = model()
    before = changed_gradient(net, value)
    with pytest.raises(ValueError, match=r"0\.weight") as raised:
        NaturalGradient(net, lr=0.3, covariance_lr=0.08, num_data=500).step()
    text = str(raised.value)
    assert "second_moment=0.99" in text
    assert "ten times smaller rates (now means 0.3, covariances 0.08)" in text
    assert "num_data=500 must be what the loss was divided by" in text
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_a_second_moment_that_is_there_is_not_advised():
    net = model()
    changed_gradient(net, float("nan"))
    with pytest.raises(ValueError, match="what helps is ten times smaller rates"):
        NaturalGradient(net, second_moment=0.9).step()


def test_what_cannot_be_stepped_is_refused():
    net = model()
    optimiser = NaturalGradient(net)
    with pytest.raises(ValueError, match="other_parameters"):
        optimiser.add_param_group({"params": [net[0].bias]})
    with pytest.raises(TypeError, match="model"):
        NaturalGradient(net.parameters())
    with pytest.raises(ValueError, match=r"bfloat16"):
        NaturalGradient(model().bfloat16())
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    backward(net)
    with pytest.raises(ValueError, match="replaced"):
        optimiser.step()


def test_num_data_and_every_come_back_with_the_state():
    net = model()
    state = NaturalGradient(net, num_data=50, every=4).state_dict()
    optimiser = NaturalGradient(net, num_data=1)
    optimiser.load_state_dict(state)
    assert [group["num_data"] for group in optimiser.param_groups] == [50, 50]
    assert optimiser.param_groups[1]["every"] == 4


def test_schedulers_of_the_momentum_work():
    optimiser = NaturalGradient(model(), momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, 10)
    before = optimiser.param_groups[0]["momentum"]
    backward(model())
    optimiser.step()
    schedule.step()
    assert optimiser.param_groups[0]["momentum"] != before
