"""Stiefel, Grassmann and the unitary groups against dense formulae, at long steps and at coinciding eigenvalues."""

import dataclasses
import math

import pytest
import scipy.integrate
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnvi.linalg.polar import polar_factor
from mnvi.manifolds import Grassmann, Orthogonal, SpecialOrthogonal, Stiefel, Unitary, retractions
from tests.cases import cases
from tests.laws import assert_close
from tests.manifolds import test_laws as laws
from tests.manifolds.cases import MANIFOLDS, RETRACTIONS

pytestmark = pytest.mark.usefixtures("float64")

METRICS = ("canonical", "euclidean")
STIEFEL = {f"{metric}-{each}": Stiefel(metric, each) for metric in METRICS for each in RETRACTIONS}
GROUPS = {f"{kind.__name__}-{each}": kind(each) for kind in (Orthogonal, SpecialOrthogonal) for each in RETRACTIONS}
GROUPS |= {f"Unitary-{each}": Unitary(each) for each in RETRACTIONS}
PLACES = {
    f"{name}-{n}x{p}": (manifold, n, p)
    for name, manifold in (STIEFEL | {"grassmann": Grassmann()}).items()
    for n, p in ((6, 2), (5, 4), (6, 1), (3, 3))
} | {f"{name}-{n}": (manifold, n, n) for name, manifold in GROUPS.items() for n in (3, 4, 5)}
COMPILED = [*(f"euclidean-{each}-6x2" for each in RETRACTIONS), "SpecialOrthogonal-polar-4", "Unitary-cayley-3"]
SHAPES = pytest.mark.parametrize("shape", [(6, 2), (5, 4), (4, 4), (6, 1)], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)


def place(manifold, *shape, dtype=None, length=None):
    """A random point and a random tangent vector of this Frobenius norm."""
    x = manifold.random(*shape, dtype=dtype)
    v = manifold.tangent(x, torch.randn_like(x))
    return x, v if length is None else v * (length / torch.linalg.matrix_norm(v, keepdim=True))


def generator(x, v):
    """The n×n skew-Hermitian W of rank 2p with Wx = v."""
    u = v - x @ (x.mH @ v) / 2
    return u @ x.mH - x @ u.mH


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.numpy()))


def rotation(angles, n):
    """A real skew-symmetric n×n matrix with these angles, in a random basis."""
    blocks = [torch.tensor([[0.0, -t], [t, 0.0]]) for t in angles]
    a = torch.block_diag(*blocks, torch.zeros(n - 2 * len(angles), n - 2 * len(angles)))
    q = Orthogonal().random(n, n)
    return q @ a @ q.mT


# Against dense formulae.


@SHAPES
@DTYPES
@pytest.mark.parametrize("length", [0.3, 2.0, 50.0])
def test_cayley_is_the_dense_transform(shape, dtype, length):
    manifold = Stiefel(retraction="cayley")
    x, v = place(manifold, *shape, dtype=dtype, length=length)
    half, eye = generator(x, v) / 2, torch.eye(shape[0], dtype=dtype)
    assert_close(manifold.retract(x, v), torch.linalg.solve(eye - half, (eye + half) @ x), 1e3)


@SHAPES
@DTYPES
@pytest.mark.parametrize("length", [0.3, 2.0, 50.0])
def test_the_canonical_geodesic_is_a_dense_exponential(shape, dtype, length):
    x, v = place(Stiefel(), *shape, dtype=dtype, length=length)
    assert_close(Stiefel().exp(x, v), expm(generator(x, v)) @ x, 1e3)


@SHAPES
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [1.0, 6.0])
def test_geodesics_solve_their_equation(shape, metric, length):
    """Edelman, Arias & Smith (1998): x″ + x(x′ᵀx′) = 0, or x″ + x′x′ᵀx + x((xᵀx′)² + x′ᵀx′) = 0 if canonical."""
    manifold = Stiefel(metric)
    x, v = place(manifold, *shape, length=length)

    def field(_, state):
        x, v = torch.from_numpy(state).view(2, *shape)
        force = x @ (v.mT @ v)
        if metric == "canonical":
            a = x.mT @ v
            force = force + v @ (v.mT @ x) + x @ (a @ a)
        return torch.stack([v, -force]).flatten().numpy()

    start = torch.stack([x, v]).flatten().numpy()
    solution = scipy.integrate.solve_ivp(field, (0, 1), start, method="DOP853", rtol=1e-12, atol=1e-12)
    end = torch.from_numpy(solution.y[:, -1].copy()).view(2, *shape)[0]
    torch.testing.assert_close(manifold.exp(x, v), end, rtol=0, atol=1e-9)


@SHAPES
@DTYPES
@pytest.mark.parametrize("length", [0.3, 50.0])
def test_qr_is_householders_with_a_positive_diagonal(shape, dtype, length):
    manifold = Stiefel()
    x, v = place(manifold, *shape, dtype=dtype, length=length)
    q = manifold.retract(x, v)
    r = q.mH @ (x + v)
    assert_close(r.tril(-1), torch.zeros_like(r), 1e3)
    assert (r.diagonal().real > 0).all()
    assert_close(q @ r, x + v, 1e3)


@SHAPES
@DTYPES
@pytest.mark.parametrize("length", [0.3, 50.0])
def test_polar_and_project_are_scipys_polar_factor(shape, dtype, length):
    manifold = Stiefel(retraction="polar")
    x, v = place(manifold, *shape, dtype=dtype, length=length)
    for actual, y in ((manifold.retract(x, v), x + v), (manifold.project(1e6 * (x + v)), x + v)):
        assert_close(actual, torch.from_numpy(scipy.linalg.polar(y.numpy())[0]), 1e3)


@cases("manifold", {name: group for name, group in GROUPS.items() if name.endswith("exp")})
@pytest.mark.parametrize("length", [0.5, 2.5])
def test_groups_have_scipys_exponential_and_logarithm(manifold, length):
    x, v = place(manifold, 5, 5, length=length)
    y = manifold.exp(x, v)
    assert_close(y, x @ expm(x.mH @ v))
    assert_close(manifold.log(x, y), x @ torch.as_tensor(scipy.linalg.logm((x.mH @ y).numpy()), dtype=x.dtype), 1e3)
    assert_close(manifold.dist(x, y), torch.tensor(length))


def test_the_nearest_rotation_is_nearest():
    """Against the best of many rotations around it; and where the determinant is positive it is the polar factor."""
    manifold = SpecialOrthogonal()
    y = torch.randn(50, 4, 4)
    x = manifold.project(y)
    assert_close(manifold.residual(x), torch.zeros(50))
    positive = torch.linalg.det(y) > 0
    assert positive.any()
    assert not positive.all()
    assert_close(x[positive], polar_factor(y[positive]))
    tries = manifold.retract(x, 0.1 * manifold.tangent(x, torch.randn(200, *x.shape)))
    distance = torch.linalg.matrix_norm(y - x)
    assert (torch.linalg.matrix_norm(y - tries) >= distance - 1e-12).all()


@pytest.mark.parametrize("shape", [(6, 2), (5, 4), (6, 1)], ids=str)
def test_grassmann_is_the_svd_and_the_principal_angles(shape):
    manifold = Grassmann()
    x, v = place(manifold, *shape, length=1.3)
    u, s, vh = torch.linalg.svd(v, full_matrices=False)
    y = manifold.exp(x, v)
    assert_close(y, x @ vh.mT @ s.cos().diag() @ vh + u @ s.sin().diag() @ vh)
    z = manifold.random(*shape)
    angles = torch.from_numpy(scipy.linalg.subspace_angles(x.numpy(), z.numpy()))
    assert_close(manifold.dist(x, z), torch.linalg.vector_norm(angles), 1e3)


def test_grassmann_does_not_see_the_basis():
    manifold = Grassmann()
    x, v = place(manifold, 6, 3)
    y, (r, q) = manifold.random(6, 3), Orthogonal().random(2, 3, 3)
    assert_close(manifold.log(x, y @ q), manifold.log(x, y), 1e3)
    assert_close(manifold.log(x @ r, y), manifold.log(x, y) @ r, 1e3)
    assert_close(manifold.dist(x @ r, y @ q), manifold.dist(x, y), 1e3)
    assert_close(manifold.retract(x @ r, v @ r), manifold.retract(x, v) @ r, 1e3)
    moved = manifold.transport(x, manifold.retract(x, v), v)
    assert_close(manifold.transport(x @ r, manifold.retract(x @ r, v @ r), v @ r), moved @ r, 1e3)


@pytest.mark.parametrize("angle", [1e-8, 1e-3, 1.0, math.pi / 2 - 1e-6])
def test_grassmann_logarithm_of_small_and_nearly_right_angles(angle):
    manifold, frame = Grassmann(), Orthogonal().random(6, 6)
    x, normal = frame[:, :3], frame[:, 3:]
    theta = torch.tensor([angle, angle, angle / 3])
    v = normal * theta
    y = x * theta.cos() + normal * theta.sin()
    torch.testing.assert_close(manifold.log(x, y), v, rtol=0, atol=1e-8 if angle > 1.5 else 1e-14)
    torch.testing.assert_close(manifold.dist(x, y), theta.norm(), rtol=0, atol=1e-14)


# Steps of any length, vectors of any rank.


@cases("row", PLACES)
@pytest.mark.parametrize("length", [0.0, 5.0, 1e3, 1e6, 1e30])
def test_a_step_of_any_length_ends_on_the_manifold(row, length):
    manifold, n, p = row
    dtype = torch.complex64 if isinstance(manifold, Unitary) else torch.float32
    x = manifold.random(20, n, p, dtype=dtype)
    v = length * manifold.tangent(x, torch.randn_like(x))
    y = manifold.retract(x, v)
    assert y.dtype == dtype
    assert manifold.residual(y).max() < 10 * n * torch.finfo(dtype).eps
    if isinstance(manifold, Orthogonal):
        assert torch.equal(torch.linalg.slogdet(y).sign, torch.linalg.slogdet(x).sign)


@cases("row", PLACES)
@pytest.mark.parametrize("length", [1.0, 1e3, 1e30])
def test_vectors_without_full_rank_are_no_exception(row, length):
    manifold, n, p = row
    dtype = torch.complex64 if isinstance(manifold, Unitary) else torch.float32
    x = manifold.random(n, p, dtype=dtype)
    v = torch.zeros_like(x)
    if p > 1:  # a rotation within the plane of two columns
        v[:, 0], v[:, 1] = length * x[:, 1], -length * x[:, 0]
    y = manifold.retract(x, manifold.tangent(x, v) if isinstance(manifold, Grassmann) else v)
    assert manifold.residual(y) < 10 * n * torch.finfo(dtype).eps


def test_long_steps_tend_to_their_limits():
    x, v = place(Stiefel(), 6, 1)
    for retraction, limit in (("qr", v / v.norm()), ("polar", v / v.norm()), ("cayley", -x)):
        manifold = Stiefel(retraction=retraction)
        assert_close(manifold.retract(x, 1e12 * v), limit, 1e4)


@cases("manifold", STIEFEL)
def test_short_and_long_steps_of_one_batch_are_those_of_each(manifold):
    x, v = place(manifold, 4, 6, 3, length=1.0)
    v = v * torch.tensor([0.0, 1e-3, 1.0, 40.0])[:, None, None]
    y = manifold.retract(x, v)
    for i in range(4):
        assert_close(y[i], manifold.retract(x[i], v[i]))


@cases("manifold", STIEFEL | GROUPS | {"grassmann": Grassmann()})
def test_vectors_that_are_not_finite_are_refused(manifold):
    x, v = place(manifold, 4, 4 if manifold in GROUPS.values() else 2)
    v[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        manifold.retract(x, v)


@cases("manifold", STIEFEL | GROUPS | {"grassmann": Grassmann()})
def test_rounding_does_not_build_up(manifold):
    """In float32, over 300 steps, and without a projection."""
    group = manifold in GROUPS.values()
    x = manifold.random(8, 8 if group else 4, dtype=torch.complex64 if isinstance(manifold, Unitary) else torch.float32)
    for _ in range(300):
        x = manifold.retract(x, 0.1 * manifold.tangent(x, torch.randn_like(x)))
    assert manifold.residual(x) < 80 * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@cases("manifold", {"thin": Stiefel(), "square": SpecialOrthogonal()})
def test_projection_takes_any_scale(manifold, scale):
    y = torch.randn(3, 4, 4 if isinstance(manifold, SpecialOrthogonal) else 2, dtype=torch.float32) * scale
    assert manifold.residual(manifold.project(y)).max() < 40 * torch.finfo(y.dtype).eps
    assert manifold.residual(manifold.project(0 * y)).max() < 40 * torch.finfo(y.dtype).eps


# Logarithms of the groups.


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
def test_logarithms_near_an_angle_of_pi(gap):
    manifold = SpecialOrthogonal()
    for angles in ([math.pi - gap, 0.3], [math.pi - gap] * 2, [math.pi - gap]):
        a = rotation(angles, 5)
        x = manifold.random(5, 5)
        y = x @ expm(a)
        torch.testing.assert_close(manifold.log(x, y), x @ a, rtol=0, atol=1e-13 / gap)
        assert_close(manifold.dist(x, y), a.norm())
    q = Unitary().random(3, 3)
    a = q @ (1j * torch.tensor([math.pi - gap, gap - math.pi, 3.0])).diag() @ q.mH
    torch.testing.assert_close(Unitary().log(q, q @ expm(a)), q @ a, rtol=0, atol=1e-13 / gap)


def test_logarithms_of_repeated_and_zero_angles():
    manifold = Orthogonal()
    for angles in ([0.7, 0.7], [1e-9, 1e-9], [2.0, -2.0], [], [math.pi / 2] * 2):
        a = rotation(angles, 5)
        assert_close(manifold.log(torch.eye(5), expm(a)), a, 1e3)
        assert_close(manifold.dist(torch.eye(5), expm(a)), a.norm())


def test_there_is_no_logarithm_at_pi_nor_between_components_but_a_distance():
    eye = torch.eye(4)
    half_turn, mirror = torch.tensor([-1.0, -1, 1, 1]).diag(), torch.tensor([-1.0, 1, 1, 1]).diag()
    for manifold, y in ((SpecialOrthogonal(), half_turn), (Orthogonal(), half_turn), (Orthogonal(), mirror)):
        with pytest.raises(ValueError, match="no unique logarithm"):
            manifold.log(eye, y)
    assert_close(SpecialOrthogonal().dist(eye, half_turn), torch.tensor(math.pi * 2**0.5))
    assert_close(Orthogonal().dist(eye, half_turn), torch.tensor(math.pi * 2**0.5))
    assert Orthogonal().dist(torch.stack([eye, eye]), torch.stack([mirror, eye])).tolist() == [math.inf, 0]


@cases("manifold", GROUPS)
def test_transport_on_groups_keeps_inner_products(manifold):
    x, u = place(manifold, 4, 4)
    _, v = place(manifold, 4, 4)
    v, y = manifold.tangent(x, v), manifold.random(4, 4)
    moved = [manifold.transport(x, y, each) for each in (u, v)]
    assert_close(manifold.inner(y, *moved), manifold.inner(x, u, v))


# Derivatives.


@DTYPES
@pytest.mark.parametrize("singular", [[1.0, 1, 1], [2.0, 0.1, 2], [3.0, 2, 0.5], [5.0, 0.2, 0.2]], ids=str)
def test_derivatives_of_the_polar_factor(dtype, singular):
    for n in (3, 5):
        u, w = Stiefel().random(n, 3, dtype=dtype), Stiefel().random(3, 3, dtype=dtype)
        y = ((u * torch.tensor(singular)) @ w.mH).requires_grad_()
        assert gradcheck(polar_factor, y)
        assert gradgradcheck(polar_factor, y)


@cases("shape", {"tall": (5, 3), "square": (3, 3)})
def test_where_the_polar_factor_is_not_unique_it_has_no_derivative(shape):
    y = torch.randn(4, *shape)
    y[2] = 0
    y.requires_grad_()
    with pytest.raises(ValueError, match=r"as that of matrix \[2\] of the batch"):
        polar_factor(y).sum().backward()
    polar_factor(y)[[0, 1, 3]].sum().backward()  # the others have one
    assert not y.grad[2].any()
    alone = y[1].detach().requires_grad_()
    polar_factor(alone).sum().backward()
    assert_close(alone.grad, y.grad[1])


@pytest.mark.parametrize("smallest", [0.0, 1e-12, 1e-3])
def test_a_rotation_nearest_to_a_singular_matrix_has_derivatives(smallest):
    u, v = SpecialOrthogonal().random(2, 4, 4)
    y = ((u * torch.tensor([3.0, 2.0, 1.0, smallest])) @ v.mT).requires_grad_()
    assert gradcheck(SpecialOrthogonal().project, y)
    assert gradgradcheck(SpecialOrthogonal().project, y, atol=1e-4)


def test_an_ill_conditioned_polar_factor_has_a_derivative():
    y = torch.eye(513, 512, dtype=torch.float32)
    y[0, 0] = 5e-5
    y.requires_grad_()
    Stiefel().project(y).sum().backward()
    assert y.grad.isfinite().all()


def test_derivatives_of_the_nearest_rotation():
    u = torch.stack([SpecialOrthogonal().random(3, 3), SpecialOrthogonal().random(3, 3) * -1])
    y = (u * torch.tensor([3.0, 3.0, 0.5])).requires_grad_()  # the second has a determinant below 0
    assert gradcheck(SpecialOrthogonal().project, y)
    assert gradgradcheck(SpecialOrthogonal().project, y)


@cases("row", {name: row for name, row in PLACES.items() if name.endswith(("6x2", "5x4", "-4"))})
@pytest.mark.parametrize("rank", [0, 1])
def test_derivatives_of_retractions_at_vectors_without_full_rank(row, rank):
    """At v = 0 and v of low rank, where eigenvalues coincide; with respect to the point too."""
    manifold, n, p = row
    x, full = place(manifold, n, p)
    a, b = torch.linalg.svd(full, full_matrices=False)[::2]
    v = manifold.tangent(x, a[:, :rank] @ b[:rank]).requires_grad_()
    assert gradcheck(lambda v: manifold.retract(x, manifold.tangent(x, v)), v)
    base = x.clone().requires_grad_()
    assert gradcheck(lambda x: manifold.retract(polar_factor(x), manifold.tangent(polar_factor(x), v.detach())), base)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@SHAPES
@DTYPES
def test_derivatives_of_long_steps_of_full_rank(retraction, shape, dtype):
    manifold = Stiefel("euclidean", retraction)
    x, v = place(manifold, *shape, dtype=dtype, length=12.0)
    assert gradcheck(lambda v: manifold.retract(x, manifold.tangent(x, v)), v.requires_grad_())


@pytest.mark.parametrize("angles", [[0.7, 0.7], [0.0, 0.0], [2.0, 1.0], []], ids=str)
def test_derivatives_of_logarithms_at_equal_angles(angles):
    manifold, x = SpecialOrthogonal(), SpecialOrthogonal().random(4, 4)
    v = (x @ rotation(angles, 4)).requires_grad_()
    assert gradcheck(lambda v: manifold.log(x, manifold.exp(x, manifold.tangent(x, v))), v)
    assert gradcheck(lambda v: manifold.log(manifold.exp(x, manifold.tangent(x, v)), x), v)


@pytest.mark.parametrize("angles", [[0.7, 0.7], [0.0, 0.0], [1.2, 0.1]], ids=str)
def test_derivatives_of_the_grassmann_logarithm_at_equal_angles(angles):
    manifold, frame = Grassmann(), Orthogonal().random(5, 5)
    x, v = frame[:, :2], (frame[:, 2:4] * torch.tensor(angles)).requires_grad_()
    assert gradcheck(lambda v: manifold.log(x, manifold.exp(x, manifold.tangent(x, v))), v)


# Memory, compilation, distributions, errors.


class LargestMatrix(TorchDispatchMode):
    """Remembers the second largest dimension of any tensor that an operation makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                self.seen = max(self.seen, sorted(tensor.shape)[-2])
        return result


@cases("manifold", STIEFEL | {"grassmann": Grassmann()})
def test_thin_matrices_never_make_a_square_one(manifold):
    n, p = 20_000, 8
    with LargestMatrix() as mode:
        x = manifold.random(n, p)
        v = manifold.rgrad(x, torch.randn_like(x))
        v = (v / v.norm()).requires_grad_()
        for scale in (1.0, 1e4):
            y = manifold.retract(x, scale * v)
            y.sum().backward()
        _ = manifold.transport(x, y, v), manifold.inner(x, v, v), manifold.project(y), manifold.residual(y)
        manifold.exp(x, v)
        if isinstance(manifold, Grassmann):
            manifold.dist(x, y)
    assert p <= mode.seen <= 4 * p  # 2p×2p exponentials; their backward pass doubles that


@pytest.fixture
def clean_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch's own: tracing an autograd Function instantiates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("clean_compiler")
@cases("row", {name: PLACES[name] for name in COMPILED})
def test_retractions_compile_without_a_graph_break(row):
    manifold, n, p = row
    x, v = place(manifold, n, p, length=0.5)

    def step(v):
        return (manifold.retract(x, manifold.tangent(x, v)).sin() + manifold.project(x + v).cos()).real.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    v.requires_grad_()
    (expected,), (actual,) = (torch.autograd.grad(each(v), v) for each in (step, compiled))
    assert_close(actual, expected, 1e3)


@cases("manifold", {"orthogonal": Orthogonal(), "rotations": SpecialOrthogonal(), "unitary": Unitary()})
def test_random_points_are_uniform(manifold):
    """The trace has mean 0 and mean square 1 (E|tr|⁴ is at most 3), also after a fixed rotation."""
    count, n = 20_000, 4
    x = manifold.random(count, n, n)
    for y in (x, x @ manifold.random(n, n)):
        trace = y.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert abs(trace.mean()) < 5 / count**0.5
        assert abs(trace.abs().square().mean() - 1) < 5 * (2 / count) ** 0.5


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="metric must be one of 'canonical', 'euclidean', got 'flat'"):
        Stiefel("flat")
    for manifold in (Stiefel, Orthogonal, SpecialOrthogonal, Unitary):
        with pytest.raises(ValueError, match=r"retraction must be one of .*'exp', got 'svd'"):
            manifold(retraction="svd")
    for manifold in (Stiefel(), Grassmann()):
        with pytest.raises(ValueError, match=r"n at least p, got \(2, 3\)"):
            manifold.random(2, 3)
    with pytest.raises(ValueError, match=r"square shape \(..., n, n\), got \(3, 2\)"):
        Orthogonal().random(3, 2)
    with pytest.raises(ValueError, match="one tensor, got 2"):
        Stiefel().check_shape((3, 2), (3, 2))
    with pytest.raises(ValueError, match=r"needs complex numbers, got torch\.float64"):
        Unitary().check(torch.eye(3))
    with pytest.raises(ValueError, match=r"needs real numbers, got torch\.complex64"):
        Orthogonal().random(3, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match="not a point of SpecialOrthogonal"):
        SpecialOrthogonal().check(torch.tensor([-1.0, 1, 1]).diag())


def test_names_say_what_was_asked_for():
    assert repr(Stiefel("euclidean", "polar")) == "Stiefel(metric='euclidean', retraction='polar')"
    assert repr(Unitary("cayley")) == "Unitary(retraction='cayley')"


def test_every_retraction_has_the_orders_of_its_row():
    assert set(retractions.RETRACTIONS) == set(RETRACTIONS)
    for name, orders in RETRACTIONS.items():
        manifolds = (Stiefel("canonical", name), Stiefel("euclidean", name), Orthogonal(name))
        assert tuple(each.order for each in manifolds) == orders


# Negative controls: the laws see a wrong sign, factor or order.


class WrongGradient(Stiefel):
    def rgrad(self, x, euclidean_grad):
        return euclidean_grad + x @ euclidean_grad.mH @ x


class OtherMetricsGradient(Stiefel):
    def rgrad(self, x, euclidean_grad):
        return self.tangent(x, euclidean_grad)


class WrongTangent(Stiefel):
    def tangent(self, x, v):
        return v - x @ (x.mH @ v + v.mH @ x) / 3


class NoCorrection(Stiefel):
    def retract(self, x, v):
        return x + v


class TooLong(Stiefel):
    def retract(self, x, v):
        return super().retract(x, 1.01 * v)


class WrongOrder(Stiefel):
    order = 2  # pyright: ignore[reportAssignmentType]


class OtherMetricsGeodesic(Stiefel):
    order = math.inf  # pyright: ignore[reportAssignmentType]

    def retract(self, x, v):
        return Stiefel("euclidean").exp(x, v)


class WrongLogarithm(SpecialOrthogonal):
    def log(self, x, y):
        return x @ (x.mH @ y - y.mH @ x) / 2


class StaysBehind(Stiefel):
    def transport(self, x, y, v):
        return v


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (WrongGradient(), laws.test_riemannian_gradient_gives_the_directional_derivative),
        (OtherMetricsGradient(), laws.test_riemannian_gradient_is_the_derivative_along_the_retraction),
        (WrongTangent(), laws.test_tangent_is_idempotent_linear_and_self_adjoint),
        (NoCorrection(), laws.test_retraction_stays_on_the_manifold_and_fixes_zero),
        (TooLong(), laws.test_retraction_leaves_along_its_vector),
        (WrongOrder(), laws.test_retraction_has_its_declared_order),
        (OtherMetricsGeodesic(), laws.test_retraction_has_its_declared_order),
        (WrongLogarithm(), laws.test_logarithm_inverts_the_exponential),
        (StaysBehind(), laws.test_transport_lands_in_the_tangent_space),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Stiefel | SpecialOrthogonal) else "",
)
def test_laws_see_what_is_broken(broken, law):
    row = "SpecialOrthogonal-qr" if isinstance(broken, SpecialOrthogonal) else "stiefel-canonical-qr-5x3"
    law(MANIFOLDS[row])
    with pytest.raises(AssertionError):
        law(dataclasses.replace(MANIFOLDS[row], manifold=broken))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(), Orthogonal()], ids=repr)
def test_other_numbers_are_refused(manifold, dtype):
    with pytest.raises(ValueError, match=f"numbers, got {dtype}"):
        manifold.check(torch.eye(3).to(dtype))


@pytest.mark.parametrize("name", MANIFOLDS)
def test_empty_batches(name):
    case = MANIFOLDS[name]
    shape = tuple((0, *s) for s in case.shape) if case.manifold.num_tensors > 1 else (0, *case.shape)
    x = case.manifold.random(*shape, dtype=case.dtype)
    case.manifold.check(x)
    v = case.manifold.tangent(x, laws.ambient(x))
    points = [case.manifold.project(x), case.manifold.retract(x, v), case.manifold.transport(x, x, v)]
    points += [case.manifold.exp(x, v)] if "exp" in case.closed else []
    points += [case.manifold.log(x, x)] if "log" in case.closed else []
    for point in points:
        assert [t.shape for t in tree_leaves(point)] == [t.shape for t in tree_leaves(x)]
    assert case.manifold.residual(x).shape == (0,)
