"""The Riemannian optimisers: torch's steps on Euclidean groups, manifolds kept, state saved, bad input refused."""

import copy
import io
import math
import pickle

import pytest
import scipy.linalg
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mnvi.linalg.elementary import real_inner
from mnvi.linalg.shapes import matrix_shape
from mnvi.manifolds import SPD, Euclidean, Grassmann, Kronecker, Manifold, Orthogonal, Product, Stiefel, Unitary
from mnvi.manifolds.base import tensors
from mnvi.manifolds.retractions import RETRACTIONS
from mnvi.optim import RiemannianAdam, RiemannianSGD
from tests.cases import cases
from tests.laws import assert_close
from tests.manifolds.cases import MANIFOLDS

pytestmark = pytest.mark.usefixtures("float64")


class Sphere(Manifold):
    """Matrices of Frobenius norm 1: a manifold that the optimisers have never seen."""

    constant_norm = True
    order = 2

    def check_shape(self, *shapes):
        matrix_shape(shapes[0], f"a point of {self}")

    def project(self, x):
        return x / real_inner(x, x).sqrt()[..., None, None]

    def tangent(self, x, v):
        return v - real_inner(x, v)[..., None, None] * x

    def inner(self, x, u, v):
        return real_inner(u, v)

    def rgrad(self, x, euclidean_grad):
        return self.tangent(x, euclidean_grad)

    def retract(self, x, v):
        return self.project(x + v)

    def residual(self, x):
        return (real_inner(x, x) - 1).abs()

    def random(self, *shape, generator=None, dtype=None, device=None):
        return self.project(torch.randn(*shape, generator=generator, dtype=dtype, device=device))


PAIR = Product(Sphere(), Euclidean())
RULES = {
    "sgd": lambda params, **options: RiemannianSGD(params, **{"lr": 0.05} | options),
    "momentum": lambda params, **options: RiemannianSGD(params, **{"lr": 0.02, "momentum": 0.9} | options),
    "nesterov": lambda params, **options: RiemannianSGD(
        params, **{"lr": 0.02, "momentum": 0.9, "nesterov": True} | options
    ),
    "adam": lambda params, **options: RiemannianAdam(params, **{"lr": 0.05} | options),
    "amsgrad": lambda params, **options: RiemannianAdam(params, **{"lr": 0.05, "amsgrad": True} | options),
}
WITH_MOMENT = {name: rule for name, rule in RULES.items() if name != "sgd"}
SGD_OPTIONS = [
    {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": decay, "maximize": maximize}
    for momentum in (0, 0.9)
    for dampening in (0, 0.3)
    for nesterov in (False, True)
    for decay in (0, 0.1)
    for maximize in (False, True)
    if not nesterov or (momentum and not dampening)
]
ADAM_OPTIONS = [
    {"betas": betas, "eps": eps, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}
    for betas in ((0.9, 0.999), (0.0, 0.5))
    for eps in (1e-8, 0.1)
    for decay in (0, 0.1)
    for amsgrad in (False, True)
    for maximize in (False, True)
]


def ordinary_parameters():
    shapes = [(), (3,), (4, 3), (2, 4, 3), (0, 3)]
    parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return [*parameters, torch.randn(3, 2, dtype=torch.complex128, requires_grad=True)]


def spheres():
    """Groups of a sphere, a batch of spheres, a pair, and an ordinary parameter; and their parameters."""
    points = [Sphere().random(4, 3), Sphere().random(2, 4, 3), Sphere().random(3, 2), torch.randn(3), torch.randn(2)]
    params = [point.requires_grad_() for point in points]
    groups = [
        {"params": params[:2], "manifold": Sphere()},
        {"params": params[2:4], "manifold": PAIR},
        {"params": params[4:]},
    ]
    return groups, params


def loss_of(params):
    """Smooth, different for every parameter, and the same at every call."""
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return sum((w * p.abs() + (p - w).abs().square()).sum().div(20).sin() for w, p in zip(weights, params, strict=True))


def run(optimiser, params, steps, loss=loss_of):
    for _ in range(steps):
        optimiser.zero_grad()
        loss(params).backward()
        optimiser.step()


def assert_same(left, right):
    """Equal to the last bit, in every parameter or state."""
    if isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


# Ordinary parameters


@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_euclidean_sgd_is_torchs(options):
    ours, theirs = copies(ordinary_parameters())
    optimiser, reference = RiemannianSGD(ours, lr=0.05, **options), torch.optim.SGD(theirs, lr=0.05, **options)
    run(optimiser, ours, 5)
    run(reference, theirs, 5)
    assert_same(ours, theirs)


@pytest.mark.parametrize("options", ADAM_OPTIONS)
def test_euclidean_adam_is_torchs(options):
    ours, theirs = copies(ordinary_parameters())
    optimiser, reference = RiemannianAdam(ours, lr=0.05, **options), torch.optim.Adam(theirs, lr=0.05, **options)
    run(optimiser, ours, 5)
    run(reference, theirs, 5)
    assert_same(ours, theirs)
    assert_same(optimiser.state_dict()["state"], reference.state_dict()["state"])


def copies(params):
    return [[p.detach().clone().requires_grad_() for p in params] for _ in range(2)]


@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_sgd_on_a_product_of_flat_spaces_is_torchs(options):
    """The rule for points itself, not torch's function, on a manifold where both must agree."""
    ours, theirs = copies([torch.randn(4, 3), torch.randn(2, 5)])
    group = {"params": ours, "manifold": Product(Euclidean(), Euclidean())}
    run(RiemannianSGD([group], lr=0.05, **options), ours, 5)
    run(torch.optim.SGD(theirs, lr=0.05, **options), theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("options", ADAM_OPTIONS)
def test_adam_on_a_product_of_flat_spaces_is_torchs(options):
    ours, theirs = copies([torch.randn(4, 3), torch.randn(2, 5)])
    group = {"params": ours, "manifold": Product(Euclidean(), Euclidean())}
    run(RiemannianAdam([group], lr=0.05, **options), ours, 5)
    run(torch.optim.Adam(theirs, lr=0.05, **options), theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, 1e4)


# Points


@cases("rule", RULES)
def test_a_model_of_several_manifolds_descends_and_stays_on_them(rule):
    groups, params = spheres()
    optimiser = rule(groups)
    before = loss_of(params).item()
    run(optimiser, params, 150)
    assert loss_of(params).item() < before
    for p in params[:3]:
        assert Sphere().residual(p).max() < 1e-14


@cases("rule", WITH_MOMENT)
def test_momentum_is_tangent_after_every_step(rule):
    groups, params = spheres()
    optimiser = rule(groups, reproject_every=3)
    for _ in range(7):
        run(optimiser, params, 1)
        for p in params[:3]:
            moment = optimiser.state[p][optimiser.moment]
            assert moment.abs().max() > 0
            assert_close(Sphere().tangent(p, moment), moment)


@cases("rule", RULES)
def test_batches_step_as_their_matrices_do(rule):
    batch = Sphere().random(3, 4, 2).requires_grad_()
    single = [x.detach().clone().requires_grad_() for x in batch]
    target = torch.randn(3, 4, 2)
    run(rule([{"params": [batch], "manifold": Sphere()}]), batch, 20, lambda x: (x * target).sum().sin())
    several = rule([{"params": single, "manifold": Sphere()}])
    run(several, single, 20, lambda xs: sum((x * t).sum() for x, t in zip(xs, target, strict=True)).sin())
    assert_close(batch, torch.stack(single), 1e4)


def test_adam_takes_steps_of_the_learning_rate_whatever_the_scale():
    """On a batch whose gradients differ by 10⁶ each matrix moves by lr, in its own direction."""
    x = Sphere().random(2, 5, 3).requires_grad_()
    before, gradient = x.detach().clone(), torch.randn(2, 5, 3) * torch.tensor([1.0, 1e6])[:, None, None]
    x.grad = gradient.clone()
    RiemannianAdam([{"params": [x], "manifold": Sphere()}], lr=1e-3).step()
    moved = Sphere().tangent(before, x.detach() - before)
    assert_close(real_inner(moved, moved).sqrt(), torch.full((2,), 1e-3).atan().sin(), 1e9)
    assert_close(Sphere().project(moved), -Sphere().project(Sphere().tangent(before, gradient)), 1e9)


def test_weight_decay_acts_along_the_manifold_or_not_at_all():
    x, y = (Sphere().random(3, 2).requires_grad_() for _ in range(2))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    w = torch.randn(4).requires_grad_()
    w.grad = torch.zeros(4)
    groups = [{"params": [x], "manifold": Sphere()}, {"params": [y, w], "manifold": PAIR}]
    before = copy.deepcopy([x, y, w])
    RiemannianSGD(groups, lr=0.1, weight_decay=0.5).step()
    assert_close(x, before[0])
    assert_close(y, before[1])
    assert_close(w, 0.95 * before[2])


def test_maximize_ascends():
    x = Sphere().random(3, 2).requires_grad_()
    target = Sphere().random(3, 2)
    for rule in (RiemannianSGD, RiemannianAdam):
        optimiser = rule([{"params": [x], "manifold": Sphere()}], lr=0.1, maximize=True)
        run(optimiser, x, 200, lambda x: (x * target).sum())
        assert real_inner(x, target) > 0.99


class Drifting(Sphere):
    """Each step loses a little of the sphere and of its tangent space, as rounding does."""

    def retract(self, x, v):
        return 1.0001 * super().retract(x, v)

    def transport(self, x, y, v):
        return super().transport(x, y, v) + 1e-4 * y


@pytest.mark.parametrize("every", [0, None, 5])
def test_reprojection_undoes_drift_every_so_many_steps(every):
    x = Sphere().random(4, 3).requires_grad_()
    optimiser = RiemannianSGD([{"params": [x], "manifold": Drifting()}], lr=0.01, momentum=0.9, reproject_every=every)
    for i in range(1, 11):
        run(optimiser, x, 1, lambda x: x.sum())
        on_time = bool(every) and i % 5 == 0
        buffer = optimiser.state[x]["momentum_buffer"]
        assert (Sphere().residual(x) < 1e-12) == on_time
        assert (real_inner(x, buffer).abs() < 1e-12) == on_time


def test_momentum_that_a_schedule_switches_off_stays_tangent():
    x = Sphere().random(4, 3).requires_grad_()
    optimiser = RiemannianSGD([{"params": [x], "manifold": Sphere()}], lr=0.1, momentum=0.9)
    for momentum in (0.9, 0.9, 0.0, 0.0, 0.9):
        optimiser.param_groups[0]["momentum"] = momentum
        run(optimiser, x, 1, lambda x: x.sum().sin())
        buffer = optimiser.state[x]["momentum_buffer"]
        assert_close(real_inner(x, buffer), 0.0)


@cases("rule", RULES)
@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_parameters_are_updated_in_place_and_gradients_left_alone(rule, weight_decay):
    groups, params = spheres()
    optimiser = rule(groups, weight_decay=weight_decay)
    loss_of(params).backward()
    places = [p.data_ptr() for p in params]
    grads = [(p.grad, p.grad.clone()) for p in params]
    for _ in range(3):
        optimiser.step()
    assert [p.data_ptr() for p in params] == places
    for p, (grad, value) in zip(params, grads, strict=True):
        assert p.grad is grad
        assert_same(grad, value)
        states = [value for value in optimiser.state.get(p, {}).values() if torch.is_tensor(value)]
        assert all(state.data_ptr() != grad.data_ptr() for state in states)


class Watch(TorchDispatchMode):
    """Notes the host synchronisations and the sizes of all arrays that are made."""

    def __init__(self):
        super().__init__()
        self.synchronisations, self.sizes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.synchronisations += func is torch.ops.aten._local_scalar_dense.default
        parts = result if isinstance(result, (tuple, list)) else (result,)
        self.sizes |= {tuple(part.shape) for part in parts if isinstance(part, torch.Tensor)}
        return result


@cases("rule", RULES)
def test_the_host_waits_twice_however_many_parameters(rule):
    """Once for the gradients, once for the new points; a model without manifolds only for the gradients."""
    points = [Sphere().random(4, 3).requires_grad_() for _ in range(9)]
    weights = [torch.randn(3, requires_grad=True) for _ in range(9)]
    for groups, expected in (([{"params": points, "manifold": Sphere()}], 2), ([{"params": weights}], 1)):
        optimiser = rule(groups)
        params = groups[0]["params"]
        run(optimiser, params, 2)
        with Watch() as watch:
            optimiser.step()
        on_the_host = sum(torch.is_tensor(state.get("step")) for state in optimiser.state.values())  # torch's Adam's
        assert watch.synchronisations - on_the_host == expected


# Every manifold of the law suite, and problems with a known answer


@cases("case", MANIFOLDS)
@pytest.mark.parametrize("name", ["nesterov", "amsgrad"])
def test_every_manifold_descends_stays_saves_and_resumes(case, name):
    x, manifold = case.manifold.random(*case.shape, dtype=case.dtype), case.manifold
    weight = torch.randn_like(case.dense(x))
    leaves = [t.requires_grad_() for t in (x if isinstance(x, tuple) else (x,))]

    def loss(leaves):
        return (weight.conj() * case.dense(leaves[0] if len(leaves) == 1 else tuple(leaves))).real.sum().sin()

    optimiser = RULES[name]([{"params": leaves, "manifold": manifold}], lr=0.003, reproject_every=7)
    before = loss(leaves).item()
    run(optimiser, leaves, 10, loss)
    twin, others = copy.deepcopy((optimiser, leaves))
    twin.load_state_dict(reloaded(optimiser.state_dict()))
    run(optimiser, leaves, 10, loss)
    run(twin, others, 10, loss)
    assert_same(others, leaves)
    assert loss(leaves).item() < before
    point = tuple(t.detach() for t in leaves) if len(leaves) > 1 else leaves[0].detach()
    assert_close(manifold.residual(point), torch.zeros(()))
    moments = [optimiser.state[t][optimiser.moment] for t in leaves]
    moment = tuple(moments) if len(moments) > 1 else moments[0]
    for a, b in zip(moments, tensors(manifold.tangent(point, moment)), strict=True):
        assert_close(a, b, 1e4)


@cases("case", {name: case for name, case in MANIFOLDS.items() if case.any_length})
@cases("rule", {name: RULES[name] for name in ("momentum", "adam")})
def test_a_step_far_too_large_stays_on_the_manifold(case, rule):
    x = case.manifold.random(*case.shape, dtype=case.dtype)
    leaves = [t.requires_grad_() for t in tensors(x)]
    optimiser = rule([{"params": leaves, "manifold": case.manifold}], lr=1e8)
    for _ in range(2):
        for t in leaves:
            t.grad = torch.randn_like(t)
        optimiser.step()
        case.manifold.check(tuple(t.detach() for t in leaves) if len(leaves) > 1 else leaves[0].detach())


def reloaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


DESCENTS = {
    "momentum": lambda groups: RiemannianSGD(groups, lr=0.004, momentum=0.9),
    "nesterov": lambda groups: RiemannianSGD(groups, lr=0.004, momentum=0.9, nesterov=True),
    "adam": lambda groups: RiemannianAdam(groups, lr=0.3, betas=(0.9, 0.99)),
}


def solve(descent, params, manifold, loss, steps=400):
    """Descend; Adam with a rate that falls to a tenth of itself, which it needs to arrive."""
    optimiser = descent([{"params": params, "manifold": manifold}])
    fall = 1.0 if isinstance(optimiser, RiemannianSGD) else 10 ** (-1 / steps)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, fall)
    for _ in range(steps):
        run(optimiser, params, 1, loss)
        schedule.step()


def spectrum():
    q = Orthogonal().random(12, 12)
    return q @ torch.linspace(0.0, 11.0, 12).diag() @ q.mT


@pytest.mark.parametrize(
    ("manifold", "descent"),
    [
        *((Stiefel(metric, "qr"), descent) for metric in ("canonical", "euclidean") for descent in DESCENTS.values()),
        *((Stiefel(metric, "cayley"), DESCENTS["nesterov"]) for metric in ("canonical", "euclidean")),
        (Stiefel(retraction="polar"), DESCENTS["nesterov"]),
        (Stiefel(retraction="exp"), DESCENTS["adam"]),
    ],
)
def test_stiefel_finds_the_leading_eigenvectors(manifold, descent):
    """Brockett's function tr(xᵀ S x N) with N = diag(1, 2, 3) is largest at the three, each in its own column."""
    matrix, weights = spectrum(), torch.tensor([1.0, 2.0, 3.0])
    x = manifold.random(12, 3).requires_grad_()
    solve(descent, [x], manifold, lambda x: -(weights * x[0] * (matrix @ x[0])).sum(), 600)
    vectors = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
    assert_close((vectors.mT @ x).abs(), torch.eye(3), 1e8)


@cases("descent", DESCENTS)
def test_grassmann_finds_the_leading_subspace(descent):
    matrix = spectrum()
    x = Grassmann().random(12, 3).requires_grad_()
    solve(descent, [x], Grassmann(), lambda x: -2 * (x[0] * (matrix @ x[0])).sum(), 800)
    vectors = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
    assert_close(x @ x.mT, vectors @ vectors.mT, 1e8)


@cases("descent", DESCENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_procrustes_is_solved_by_the_polar_factor(descent, dtype):
    manifold = Unitary() if dtype.is_complex else Orthogonal()
    a, b = torch.randn(20, 5, dtype=dtype), torch.randn(20, 5, dtype=dtype)
    u, _, vh = torch.linalg.svd(a.mH @ b)
    with torch.no_grad():
        x = u @ vh @ torch.linalg.matrix_exp(manifold.tangent(torch.eye(5).to(dtype), torch.randn(5, 5, dtype=dtype)))
    solve(descent, [x.requires_grad_()], manifold, lambda x: (a @ x[0] - b).abs().square().sum() / 2)
    assert_close((x - u @ vh).abs(), torch.zeros(5, 5), 1e8)


@pytest.mark.parametrize("metric", ["affine-invariant", "log-euclidean", "bures-wasserstein", "euclidean"])
def test_the_mean_of_covariances_is_found_under_every_metric(metric):
    """The Karcher mean: the affine-invariant logarithms of the data at it sum to zero (scipy's logarithm)."""
    data = SPD().random(7, 4, 4)
    x = SPD().random(4, 4).requires_grad_()

    def loss(x):
        root = torch.linalg.cholesky(x[0]).expand(7, 4, 4)
        whitened = torch.linalg.solve_triangular(root, data, upper=False)
        whitened = torch.linalg.solve_triangular(root, whitened.mT, upper=False)
        return torch.linalg.eigvalsh(whitened).log().square().sum() / 2

    optimiser = RiemannianSGD([{"params": [x], "manifold": SPD(metric)}], lr=0.1, momentum=0.5)
    run(optimiser, [x], 300, loss)
    mean = x.detach().numpy()
    total = sum(scipy.linalg.logm(scipy.linalg.solve(mean, each.numpy())) for each in data)
    assert abs(total).max() < 1e-10


@cases(
    "descent",
    {
        "momentum": lambda groups: RiemannianSGD(groups, lr=0.2, momentum=0.7),
        "adam": lambda groups: RiemannianAdam(groups, lr=1.0, betas=(0.9, 0.99)),
    },
)
def test_the_nearest_kronecker_product_is_van_loans(descent):
    """The leading singular vectors of the matrix rearranged (Van Loan & Pitsianis, 1993)."""
    matrix = torch.randn(15, 8)
    u, s, vh = torch.linalg.svd(matrix.reshape(5, 3, 4, 2).transpose(1, 2).reshape(20, 6))
    best = s[0] * torch.kron(u[:, 0].reshape(5, 4), vh[0].reshape(3, 2))
    pair = [t.requires_grad_() for t in Kronecker().random((5, 4), (3, 2))]
    solve(descent, pair, Kronecker(), lambda pair: (torch.kron(*pair) - matrix).square().sum() / 2, 800)
    assert_close(torch.kron(*pair), best, 1e8)


def test_thin_points_need_no_square_array():
    n, p = 300, 4
    for retraction in RETRACTIONS:
        for metric in ("canonical", "euclidean"):
            manifold = Stiefel(metric, retraction)
            for rule in (RULES["nesterov"], RULES["amsgrad"]):
                x = manifold.random(n, p).requires_grad_()
                x.grad = torch.randn(n, p)
                optimiser = rule([{"params": [x], "manifold": manifold}], reproject_every=2)
                with Watch() as watch:
                    for _ in range(4):
                        optimiser.step()
                assert max(math.prod(size) for size in watch.sizes) <= 2 * n * p


def test_thousands_of_float32_steps_do_not_drift():
    matrix = torch.randn(64, 64, dtype=torch.float32)
    matrix = matrix @ matrix.mT / 64
    x = Stiefel().random(64, 16, dtype=torch.float32).requires_grad_()
    optimiser = RiemannianSGD([{"params": [x], "manifold": Stiefel()}], lr=0.01, momentum=0.9)
    for i in range(5000):
        x.grad = torch.randn(64, 16, dtype=torch.float32) - matrix @ x.detach()
        optimiser.step()
        if i % 100 in (98, 99):  # before and after a re-projection
            assert Stiefel().residual(x) < 1e-5


# torch's conventions


@cases("rule", RULES)
def test_a_resumed_run_continues_to_the_last_bit(rule):
    def fresh():
        torch.manual_seed(1)
        groups, params = spheres()
        return rule(groups, reproject_every=4), params

    optimiser, params = fresh()
    run(optimiser, params, 6)
    file = io.BytesIO()
    torch.save((optimiser.state_dict(), [p.detach() for p in params]), file)
    run(optimiser, params, 7)
    file.seek(0)
    state_dict, values = torch.load(file, weights_only=True)
    resumed, again = fresh()
    resumed.load_state_dict(state_dict)
    with torch.no_grad():
        for p, value in zip(again, values, strict=True):
            p.copy_(value)
    run(resumed, again, 7)
    assert_same(again, params)
    assert_same(resumed.state_dict(), optimiser.state_dict())


@cases("rule", RULES)
def test_copies_and_pickles_continue_alike(rule):
    groups, params = spheres()
    optimiser = rule(groups)
    run(optimiser, params, 3)
    for twin in (copy.deepcopy(optimiser), pickle.loads(pickle.dumps(optimiser))):
        others = [p for group in twin.param_groups for p in group["params"]]
        original, mine = copy.deepcopy((optimiser, params))
        run(original, mine, 3)
        run(twin, others, 3)
        assert_same(others, mine)


def test_loading_keeps_the_manifold_object_and_refuses_another_manifold():
    groups, params = spheres()
    optimiser = RiemannianAdam(groups)
    run(optimiser, params, 2)
    state_dict = copy.deepcopy(optimiser.state_dict())
    assert [group["manifold"] for group in state_dict["param_groups"]] == ["Sphere()", repr(PAIR), "Euclidean()"]
    manifold = optimiser.param_groups[1]["manifold"]
    optimiser.load_state_dict(state_dict)
    assert optimiser.param_groups[1]["manifold"] is manifold
    run(optimiser, params, 1)
    before = copy.deepcopy(optimiser.state_dict())
    state_dict["param_groups"][0]["manifold"] = "Stiefel()"
    with pytest.raises(ValueError, match=r"group 0 is on Sphere\(\), its saved state on Stiefel\(\)"):
        optimiser.load_state_dict(state_dict)
    assert_same(optimiser.state_dict(), before)


@pytest.mark.parametrize(
    ("rule", "kind"), [(RiemannianAdam, torch.optim.Adam), (RiemannianSGD, torch.optim.SGD)], ids=["adam", "sgd"]
)
def test_states_of_torch_load_and_continue(rule, kind):
    ours = torch.randn(3, 2, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    reference, optimiser = kind([theirs], lr=0.1), rule([ours], lr=0.5, reproject_every=7)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    reference.step()
    with torch.no_grad():
        ours.copy_(theirs)
    optimiser.load_state_dict(copy.deepcopy(reference.state_dict()))
    assert optimiser.param_groups[0]["reproject_every"] == 7
    reference.step()
    optimiser.step()
    assert torch.equal(ours, theirs)
    point = Stiefel().random(3, 2).requires_grad_()
    with pytest.raises(ValueError, match=r"its saved state on Euclidean\(\)"):
        rule([{"params": [point], "manifold": Stiefel()}]).load_state_dict(reference.state_dict())


def test_the_state_of_another_rule_is_refused():
    p = torch.randn(3, 2, requires_grad=True)
    adam, sgd = RiemannianAdam([p]), RiemannianSGD([p])
    before = copy.deepcopy(sgd.state_dict())
    with pytest.raises(ValueError, match="no momentum, dampening, nesterov"):
        sgd.load_state_dict(adam.state_dict())
    assert_same(sgd.state_dict(), before)
    with pytest.raises(ValueError, match="no betas, eps, amsgrad"):
        adam.load_state_dict(sgd.state_dict())


def test_learning_rate_schedules_drive_rates_and_momenta():
    groups, params = spheres()
    optimiser = RiemannianSGD(groups, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: 0.5**epoch)
    run(optimiser, params, 1)
    schedule.step()
    assert [group["lr"] for group in optimiser.param_groups] == [0.05] * 3
    for rule, name in ((RiemannianSGD, "momentum"), (RiemannianAdam, "betas")):
        groups, params = spheres()
        optimiser = rule(groups, lr=0.1, **({"momentum": 0.9} if rule is RiemannianSGD else {}))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=10)
        values = set()
        for _ in range(9):
            run(optimiser, params, 1)
            schedule.step()
            values.add(optimiser.param_groups[0][name])
        assert len(values) > 3


@cases("rule", RULES)
def test_accumulated_gradients_and_closures_step_alike(rule):
    results = []
    for how in ("closure", "accumulate", "zero"):
        torch.manual_seed(3)
        groups, params = spheres()
        optimiser = rule(groups)
        if how == "closure":

            def closure(optimiser=optimiser, params=params):
                optimiser.zero_grad()
                loss = loss_of(params)
                loss.backward()
                return loss

            for _ in range(3):
                assert optimiser.step(closure).requires_grad
        else:
            for _ in range(3):
                optimiser.zero_grad(set_to_none=how == "accumulate")
                for _ in range(2):
                    (0.5 * loss_of(params)).backward()
                optimiser.step()
        results.append(params)
    assert_same(results[0], results[1])
    assert_same(results[1], results[2])


@cases("rule", RULES)
def test_a_tensor_learning_rate_is_its_number(rule):
    results = []
    for lr in (0.03, torch.tensor(0.03), torch.tensor([0.03])):
        torch.manual_seed(3)
        groups, params = spheres()
        run(rule(groups, lr=lr), params, 3)
        results.append(params)
    for a, b, c in zip(*results, strict=True):
        assert_close(b, a)
        assert_close(c, a)


def test_points_without_a_gradient_are_left_alone():
    for rule in RULES.values():
        groups, params = spheres()
        optimiser = rule(groups)
        before = copy.deepcopy(params)
        params[0].grad = torch.randn_like(params[0])
        optimiser.step()
        assert_same(params[1:], before[1:])
        assert set(optimiser.state) <= {params[0]}
        assert (params[0] != before[0]).any()


def test_hooks_and_the_gradient_scaler_see_an_ordinary_optimiser():
    groups, params = spheres()
    optimiser = RiemannianSGD(groups, lr=0.1)
    calls = []
    optimiser.register_step_post_hook(lambda *args: calls.append(args))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(params)
    scaler.scale(loss_of(params)).backward()
    scaler.step(optimiser)
    scaler.update()
    assert len(calls) == 1
    for p in params:
        p.grad = torch.full_like(p, math.inf)
    after = copy.deepcopy(params)
    scaler.step(optimiser)  # finds the infinity and leaves the step out
    scaler.update()
    assert_same(params, after)
    assert scaler.get_scale() == 2.0**9
    reference = RiemannianSGD(spheres_of(before), lr=0.1)
    run(reference, before, 1)
    assert_same(before, after)


def spheres_of(params):
    return [
        {"params": params[:2], "manifold": Sphere()},
        {"params": params[2:4], "manifold": PAIR},
        {"params": params[4:]},
    ]


def test_groups_are_added_later_and_take_named_parameters():
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.copy_(Sphere().project(model.weight))
    optimiser = RiemannianSGD([{"params": [("weight", model.weight)], "manifold": Sphere()}], lr=0.1)
    optimiser.add_param_group({"params": [("bias", model.bias)], "lr": 0.5})
    run(optimiser, [model.weight, model.bias], 3)
    assert_close(Sphere().residual(model.weight), 0.0)
    assert optimiser.state_dict()["param_groups"][1]["lr"] == 0.5
    assert RiemannianSGD(model.named_parameters(), lr=0.1).param_groups[0]["param_names"] == ["weight", "bias"]


# Bad input


def groups_with(**bad):
    w = torch.randn(3, 2, requires_grad=True)
    return [{"params": [w]}, {"params": [torch.randn(3, 2)], **bad}]


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ({"manifold": Sphere}, TypeError, "did you mean Sphere"),
        ({"manifold": "sphere"}, TypeError, "'sphere'"),
        ({"manifolds": Sphere()}, TypeError, "by the key 'manifold'"),
        ({"manifold": PAIR}, ValueError, "the 2 tensors of one point, got 1: parameter 0 of group 1"),
        (
            {"manifold": Sphere(), "params": [torch.ones(3)]},
            ValueError,
            r"parameter 0 of group 1, shape \(3,\): .*needs",
        ),
        ({"manifold": Sphere(), "params": [("w", torch.ones(3, 2))]}, ValueError, "with/without names"),
        (
            {"manifold": Sphere(), "params": [torch.ones(3, 2)]},
            ValueError,
            r"group 1, shape \(3, 2\): not a point.*project",
        ),
        ({"manifold": Sphere(), "params": [torch.full((3, 2), math.nan)]}, ValueError, "not a point"),
        ({"lr": -0.1}, ValueError, "lr must be finite, at least 0, got -0.1"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"lr": torch.ones(2)}, ValueError, "one element"),
        ({"weight_decay": -1}, ValueError, "weight_decay"),
        ({"momentum": -1}, ValueError, "momentum"),
        ({"nesterov": True}, ValueError, "Nesterov"),
        ({"reproject_every": -3}, ValueError, "reproject_every"),
        ({"reproject_every": 2.5}, TypeError, "reproject_every"),
    ],
)
def test_bad_groups_are_refused(group, error, words):
    with pytest.raises(error, match=words):
        RiemannianSGD(groups_with(**group), lr=0.1)
    optimiser = RiemannianSGD(groups_with()[:1], lr=0.1)
    with pytest.raises(error):
        optimiser.add_param_group(groups_with(**group)[1])
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": -1}, {"eps": math.nan}]
)
def test_bad_options_of_adam_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RiemannianAdam([torch.ones(2)], **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        RiemannianAdam([{"params": [torch.ones(2)], **options}])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_one_tensor_as_both_factors_is_refused():
    p = torch.randn(3, 3, requires_grad=True)
    with pytest.raises(ValueError, match="one of them twice"):
        RiemannianSGD([{"params": [p, p], "manifold": Kronecker()}])


def test_options_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="dampening must be"):
        RiemannianSGD([torch.ones(2)], dampening=math.nan)
    with pytest.raises(TypeError, match="betas must be two numbers"):
        RiemannianAdam([torch.ones(2)], betas=0.9)


def test_messages_name_named_parameters():
    with pytest.raises(ValueError, match=r"parameter 'kernel', shape \(3, 2\): not a point of Sphere\(\)"):
        RiemannianSGD([{"params": [("kernel", torch.ones(3, 2))], "manifold": Sphere()}], lr=0.1)


@cases("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", range(5))
def test_a_gradient_that_is_not_finite_changes_nothing(rule, bad, index):
    groups, params = spheres()
    optimiser = rule(groups)
    run(optimiser, params, 2)
    loss_of(params).backward()
    params[index].grad.view(-1)[-1] = bad
    names = ["0 of group 0", "1 of group 0", "0 of group 1", "1 of group 1", "0 of group 2"]
    assert_refused(optimiser, params, f"gradient of parameter {names[index]}, shape .* is not finite")


def assert_refused(optimiser, params, words):
    before = copy.deepcopy((params, optimiser.state_dict()))
    grads = [None if p.grad is None or p.grad.is_sparse else p.grad.clone() for p in params]
    with pytest.raises(ValueError, match=words):
        optimiser.step()
    assert_same((params, optimiser.state_dict()), before)
    for p, grad in zip(params, grads, strict=True):
        if grad is not None:
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)


@cases("rule", RULES)
def test_errors_before_the_first_step_leave_no_state(rule):
    groups, params = spheres()
    optimiser = rule(groups)
    loss_of(params).backward()
    params[4].grad.fill_(math.nan)
    assert_refused(optimiser, params, "not finite")
    assert not optimiser.state


def test_half_a_pair_and_sparse_gradients_are_refused():
    groups, params = spheres()
    optimiser = RiemannianSGD(groups, lr=0.1)
    loss_of(params).backward()
    params[3].grad = None
    assert_refused(optimiser, params, "lacks the gradient of parameter 1 of group 1")
    params[3].grad = torch.zeros(3).to_sparse()
    assert_refused(optimiser, params, r"the gradient of parameter 1 of group 1, shape \(3,\) is sparse")


class Failing(Sphere):
    def retract(self, x, v):
        return super().retract(x, v) if v.abs().max() < 1e100 else torch.linalg.cholesky(-torch.eye(2))


class Overflowing(Sphere):
    def retract(self, x, v):
        return super().retract(x, v.where(v.abs() < 1e100, math.inf))


@cases("rule", {name: RULES[name] for name in ("sgd", "momentum", "nesterov")})
@pytest.mark.parametrize("manifold", [Failing(), Overflowing()])
def test_a_step_that_overflows_changes_nothing(rule, manifold):
    groups, params = spheres()
    groups[0]["manifold"] = manifold
    optimiser = rule(groups)
    run(optimiser, params, 2)
    params[1].grad.fill_(1e200).view(-1)[0] = 0
    assert_refused(optimiser, params, "step of parameter 1 of group 0, .* too large")


def test_a_second_moment_that_overflows_changes_nothing():
    """Left alone, v = ∞ would freeze the parameter for good."""
    x = Sphere().random(4, 3).requires_grad_()
    optimiser = RiemannianAdam([{"params": [x], "manifold": Sphere()}])
    run(optimiser, x, 2, lambda x: x.sum())
    x.grad = 1e200 * torch.randn(4, 3)
    assert_refused(optimiser, [x], "step of parameter 0 of group 0")


def test_large_finite_gradients_are_no_error():
    """Their sum of squares is beyond the largest float32."""
    x = torch.zeros(3, 2, requires_grad=True, dtype=torch.float32)
    x.grad = torch.full_like(x, 1e30)
    RiemannianSGD([x], lr=1e-30).step()
    assert_close(x, torch.full((3, 2), -1.0))


def test_a_state_of_adamw_is_refused():
    p = nn.Parameter(torch.randn(3))
    state = torch.optim.AdamW([p]).state_dict()
    state["param_groups"][0]["decoupled_weight_decay"] = True  # older versions of torch do not say so
    with pytest.raises(ValueError, match="AdamW"):
        RiemannianAdam([p]).load_state_dict(state)
