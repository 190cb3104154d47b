"""The linear groups against scipy, determinants and the variational principle; the algebra of every matrix group."""

import math

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck

from mnvi.manifolds import GeneralLinear, MatrixGroup, Orthogonal, SpecialLinear, SpecialOrthogonal, Unitary
from mnvi.optim import RiemannianAdam, RiemannianSGD
from tests.cases import cases
from tests.laws import assert_close
from tests.manifolds.cases import MANIFOLDS

pytestmark = pytest.mark.usefixtures("float64")

LINEAR = {f"{kind.__name__}-{each}": kind(each) for kind in (GeneralLinear, SpecialLinear) for each in ("lie", "exp")}
GROUPS = {name: case for name, case in MANIFOLDS.items() if isinstance(case.manifold, MatrixGroup)}
EACH = cases("manifold", LINEAR)
EVERY_GROUP = cases("case", GROUPS)


def place(manifold, *shape, length=1.0):
    """A random point and a random tangent vector of this length in the metric."""
    x = manifold.random(*shape)
    v = manifold.tangent(x, torch.randn_like(x))
    return x, v * (length / manifold.inner(x, v, v).sqrt())[..., None, None]


def element(case, *batch):
    """A point and an element of the Lie algebra."""
    shape = (*batch, *case.shape)
    return case.manifold.random(*shape, dtype=case.dtype), case.manifold.algebra(torch.randn(shape, dtype=case.dtype))


def diagonal(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).diag()


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.numpy()))


def divide(x, v):
    return torch.from_numpy(scipy.linalg.solve(x.numpy(), v.numpy()))


# Retraction and geodesic.


@pytest.mark.parametrize("kind", [GeneralLinear, SpecialLinear])
@pytest.mark.parametrize("length", [1e-8, 0.3, 4.0])
def test_the_lie_retraction_is_scipys_exponential(kind, length):
    x, v = place(kind(), 4, 4, length=length)
    assert_close(kind().retract(x, v), x @ expm(divide(x, v)))


def lagrangian(x, velocity):
    return torch.linalg.solve(x, velocity).square().sum() / 2


def euler_lagrange(curve, t, h=1e-4):
    """d/dt ∂L/∂x′ − ∂L/∂x of L = ½‖x⁻¹x′‖² along a curve: autograd in x and x′, differences in t."""

    def derivatives(t):
        x = curve(t).requires_grad_()
        velocity = ((curve(t + h) - curve(t - h)) / (2 * h)).requires_grad_()
        return torch.autograd.grad(lagrangian(x, velocity), (x, velocity))

    return (derivatives(t + h)[1] - derivatives(t - h)[1]) / (2 * h) - derivatives(t)[0]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_geodesics_solve_the_euler_lagrange_equation(n):
    manifold = GeneralLinear()
    x, v = place(manifold, n, n, length=1.5)
    for t in (0.0, 0.4, 1.0):
        assert euler_lagrange(lambda t: manifold.exp(x, t * v), t).abs().max() < 1e-5
    lie = euler_lagrange(lambda t: manifold.retract(x, t * v), 0.4).abs().max()
    assert lie < 1e-5 if n == 1 else lie > 1e-2  # the group's exponential is no geodesic, so the check can fail


def test_geodesics_have_constant_speed_and_compose():
    manifold = GeneralLinear()
    x, v = place(manifold, 4, 4, length=1.5)
    h = 1e-5
    middle, velocity = (
        manifold.exp(x, v / 2),
        (manifold.exp(x, (0.5 + h) * v) - manifold.exp(x, (0.5 - h) * v)) / (2 * h),
    )
    torch.testing.assert_close(manifold.inner(middle, velocity, velocity), torch.tensor(2.25), rtol=1e-8, atol=0)
    torch.testing.assert_close(manifold.exp(middle, velocity / 2), manifold.exp(x, v), rtol=0, atol=1e-8)


def test_the_special_linear_group_is_totally_geodesic():
    x, v = place(SpecialLinear(), 5, 4, 4, length=2.0)
    y = GeneralLinear().exp(x, v)
    assert_close(torch.linalg.det(y), torch.ones(5), 1e3)
    assert_close(SpecialLinear().exp(x, v), y)


@pytest.mark.parametrize("part", [lambda a: a + a.mT, lambda a: a - a.mT], ids=["symmetric", "skew"])
def test_normal_directions_have_the_lie_exponential_as_geodesic(part):
    manifold = GeneralLinear()
    x = manifold.random(4, 4)
    v = x @ part(torch.randn(4, 4)) / 3
    assert_close(manifold.retract(x, v), manifold.exp(x, v), 1e3)


@EACH
@pytest.mark.parametrize("length", [0.1, 1.0, 5.0])
def test_determinants_follow_the_trace(manifold, length):
    x, v = place(manifold, 3, 4, 4, length=length)
    trace = torch.linalg.solve(x, v).diagonal(dim1=-2, dim2=-1).sum(-1)
    for y in (manifold.retract(x, v), manifold.exp(x, v)):
        expected = torch.linalg.det(x) * trace.exp()
        torch.testing.assert_close(torch.linalg.det(y), expected, rtol=1e-9, atol=0)
        if isinstance(manifold, SpecialLinear):
            torch.testing.assert_close(expected, torch.ones(3))


@EACH
def test_everything_is_invariant_from_the_left(manifold):
    x, u = place(manifold, 4, 4)
    v, y = manifold.tangent(x, torch.randn(4, 4)), manifold.random(4, 4)
    assert_close(manifold.inner(y @ x, y @ u, y @ v), manifold.inner(x, u, v), 1e3)
    assert_close(manifold.exp(y @ x, y @ u), y @ manifold.exp(x, u), 1e3)
    moved = [manifold.transport(x, y, each) for each in (u, v)]
    assert_close(manifold.inner(y, *moved), manifold.inner(x, u, v), 1e3)


@EACH
def test_one_by_one_matrices(manifold):
    x = manifold.project(torch.tensor([[3.0]]))
    v = manifold.tangent(x, torch.tensor([[0.6]]))
    assert_close(
        manifold.retract(x, v), torch.tensor([[3 * math.exp(0.2) if isinstance(manifold, GeneralLinear) else 1]])
    )


@EACH
def test_determinants_drift_little(manifold):
    """In float32, over 300 steps, and without a projection."""
    x = manifold.random(8, 8, dtype=torch.float32)
    for _ in range(300):
        v = manifold.tangent(x, x @ torch.randn_like(x))
        x = manifold.retract(x, 0.1 * v / manifold.inner(x, v, v).sqrt())
    assert manifold.residual(x) < 200 * torch.finfo(x.dtype).eps


# The algebra of every matrix group.

DIMENSIONS = {GeneralLinear: 16, SpecialLinear: 8, Orthogonal: 6, SpecialOrthogonal: 3, Unitary: 9}


@EVERY_GROUP
def test_the_algebra_is_a_projection_on_the_tangent_space_at_the_identity(case):
    algebra, n = case.manifold.algebra, case.shape[-1]
    eye = torch.eye(n, dtype=case.dtype)
    a, b = torch.randn(2, 3, n, n, dtype=case.dtype)
    assert_close(algebra(algebra(a)), algebra(a))
    assert_close(algebra(a + 2 * b), algebra(a) + 2 * algebra(b))
    assert_close((algebra(a).conj() * b).real.sum(), (a.conj() * algebra(b)).real.sum())
    assert_close(case.manifold.tangent(eye.expand(3, n, n), algebra(a)), algebra(a))
    basis = torch.eye(n * n, dtype=case.dtype).view(-1, n, n)
    basis = torch.cat([basis, 1j * basis]) if case.dtype.is_complex else basis
    images = torch.view_as_real(algebra(basis) + 0j).flatten(1)
    assert torch.linalg.matrix_rank(images) == DIMENSIONS[type(case.manifold)]


@EVERY_GROUP
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0])
def test_translation_is_the_retraction_from_the_algebra(case, size):
    x, a = element(case, 2)
    manifold, a = case.manifold, size * a
    assert_close(manifold.translate(x, a), manifold.retract(x, x @ a), 1e3)
    y = manifold.random(*case.shape, dtype=case.dtype)
    assert_close(y @ manifold.translate(x, a), manifold.translate(y @ x, a), 1e3)
    assert_close(manifold.left_divide(x, x @ a), a)


@EVERY_GROUP
def test_derivatives_of_translation(case):
    x, a = element(case)
    manifold = case.manifold
    assert gradcheck(lambda a: manifold.translate(x, manifold.algebra(a)), (a / 2).requires_grad_())


@pytest.fixture
def clean_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@EACH
@pytest.mark.usefixtures("clean_compiler")
def test_steps_compile_without_a_graph_break(manifold):
    x, v = place(manifold, 3, 3, length=0.5)

    def step(v):
        y = manifold.retract(x, manifold.tangent(x, v))
        return (manifold.translate(y, manifold.algebra(v)).sin() + manifold.exp(x, v)).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    v.requires_grad_()
    (expected,), (actual,) = (torch.autograd.grad(each(v), v) for each in (step, compiled))
    assert_close(actual, expected, 1e3)


# Projection.


def test_projection_on_the_general_linear_group_turns_the_weakest_direction():
    x = torch.randn(20, 3, 3)
    y, positive = GeneralLinear().project(x), torch.linalg.det(x) > 0
    assert 0 < positive.sum() < 20
    assert (torch.linalg.det(y) > 0).all()
    assert torch.equal(y[positive], x[positive])
    values = torch.linalg.svdvals(x)
    assert_close(torch.linalg.svdvals(y), values)
    expected = torch.where(positive, 0, 2 * values[:, -1])
    assert_close(torch.linalg.matrix_norm(y - x), expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_projection_on_the_special_linear_group_scales_to_determinant_one(scale):
    x = torch.randn(20, 3, 3, dtype=torch.float32) * scale
    y = SpecialLinear().project(x)
    assert SpecialLinear().residual(y).max() < 1000 * torch.finfo(x.dtype).eps
    ratio = y / GeneralLinear().project(x)
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-4, atol=0)
    assert (ratio > 0).all()


@cases("manifold", {"gl": GeneralLinear(), "sl": SpecialLinear()})
def test_derivatives_of_projection(manifold):
    x = GeneralLinear().random(2, 3, 3)
    x = torch.stack([x[0], x[1] @ diagonal(1, 1, -1)])
    assert gradcheck(manifold.project, x.requires_grad_())


# Optimisation.


RULES = {
    "sgd": lambda params: RiemannianSGD(params, lr=0.02, momentum=0.9),
    "adam": lambda params: RiemannianAdam(params, lr=0.1),
}


@EACH
@cases("rule", RULES)
def test_a_target_is_recovered_by_regression(manifold, rule):
    inputs, (target, v) = torch.randn(64, 4), place(manifold, 4, 4, length=0.7)
    weight = manifold.exp(target, v).requires_grad_()
    optimiser = rule([{"params": [weight], "manifold": manifold}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        optimiser.zero_grad()
        (inputs @ (weight - target)).square().sum(-1).mean().backward()
        optimiser.step()
        schedule.step()
    torch.testing.assert_close(weight.detach(), target, rtol=0, atol=1e-6)
    assert manifold.residual(weight) < 1e-12


@EACH
def test_a_step_far_too_long_changes_nothing(manifold):
    weight = manifold.random(3, 3).requires_grad_()
    before = weight.detach().clone()
    optimiser = RiemannianSGD([{"params": [weight], "manifold": manifold}], lr=1e6)
    (weight @ torch.randn(3, 3)).sum().backward()
    with pytest.raises(ValueError, match="learning rate is too large"):
        optimiser.step()
    assert torch.equal(weight, before)


# Bad input.


@EACH
def test_points_that_are_singular_or_not_finite_are_refused(manifold):
    x, v = place(manifold, 3, 3)
    singular, nan, y = x.clone(), x.clone(), manifold.random(3, 3)
    singular[1], nan[0, 0] = 0, math.nan
    with pytest.raises(ValueError, match=r"must be invertible, got a matrix singular in torch\.float64"):
        manifold.retract(singular, v)
    with pytest.raises(ValueError, match="a point must be finite"):
        manifold.inner(nan, v, v)
    with pytest.raises(ValueError, match="a tangent vector must be finite"):
        manifold.transport(x, y, v * math.inf)
    with pytest.raises(ValueError, match="a matrix to project must be finite"):
        manifold.project(nan)
    with pytest.raises(ValueError, match="must be invertible, got one of determinant 0"):
        manifold.project(singular)


@EACH
def test_steps_that_overflow_or_vanish_are_refused(manifold):
    eye, a = torch.eye(2), torch.ones(2, 2) - torch.eye(2)
    for form in (manifold.retract, manifold.exp):
        with pytest.raises(ValueError, match=r"exp\(A\) overflows torch\.float64, with entries of A up to 1e\+03"):
            form(eye, 1e3 * a)
        with pytest.raises(ValueError, match=r"determinant is not positive in torch\.float64"):
            form(eye, 100 * a)  # cosh 100 and sinh 100 are the same number
    with pytest.raises(ValueError, match="an element of the Lie algebra must be finite"):
        manifold.translate(eye, math.nan * a)


@pytest.mark.parametrize(
    ("manifold", "x", "message"),
    [
        (GeneralLinear(), diagonal(1, 1, -1), "its residual is 2; project it"),
        (GeneralLinear(), diagonal(1, 0), "its residual is 1; project it"),
        (GeneralLinear(), diagonal(1, 1e-16), r"σ_min/σ_max is 1e-16, singular in torch\.float64"),
        (GeneralLinear(), diagonal(1, 1e-8, dtype=torch.float32), r"σ_min/σ_max is 1e-08, singular in torch\.float32"),
        (SpecialLinear(), diagonal(1, 1, -1), "its residual is 2; project it"),
        (SpecialLinear(), diagonal(1, 1.01), r"its residual is 0\.01; project it"),
        (SpecialLinear(), diagonal(1e8, 1e-8), "σ_min/σ_max is 1e-16"),
        (GeneralLinear(), torch.eye(3, dtype=torch.complex128), r"needs real numbers, got torch\.complex128"),
        (SpecialLinear(), torch.eye(3).half(), r"needs real numbers, got torch\.float16"),
        (GeneralLinear(), torch.ones(3, 2), r"square shape \(\.\.\., n, n\), got \(3, 2\)"),
    ],
)
def test_matrices_that_are_no_points_are_refused(manifold, x, message):
    with pytest.raises(ValueError, match=message):
        manifold.check(x)


def test_arguments_are_checked():
    for kind in (GeneralLinear, SpecialLinear):
        with pytest.raises(ValueError, match="retraction must be one of 'lie', 'exp', got 'qr'"):
            kind("qr")
        with pytest.raises(ValueError, match="needs real numbers"):
            kind().random(3, 3, dtype=torch.complex64)
        assert repr(kind("exp")) == f"{kind.__name__}(retraction='exp')"
        assert [kind(each).order for each in ("lie", "exp")] == [1, math.inf]
