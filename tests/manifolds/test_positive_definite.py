"""Positive definite and Kronecker manifolds against dense least squares and scipy, and steps of absurd length."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mnvi.manifolds import SPD, CholeskySPD, Kronecker, Product, SPDKronecker
from mnvi.optim import RiemannianSGD
from tests.cases import cases
from tests.laws import assert_close
from tests.manifolds import test_laws as laws
from tests.manifolds.cases import Case, gram, kron, kron_gram

pytestmark = pytest.mark.usefixtures("float64")

METRICS = {name: SPD(name) for name in ("affine-invariant", "log-euclidean", "bures-wasserstein", "euclidean")}
EVERY_METRIC = cases("manifold", METRICS)
# Each with the matrices that must be positive definite at a point.
DEFINITE = {name: (manifold, lambda x: [x]) for name, manifold in METRICS.items()} | {
    "cholesky": (CholeskySPD(), lambda x: [gram(x)]),
    "kronecker": (SPDKronecker(), lambda x: [gram(x[0]), gram(x[1])]),
}


def sym(a):
    return (a + a.mT) / 2


def relative(actual, expected):
    return (torch.dist(actual, expected) / torch.linalg.vector_norm(expected)).item()


def with_eigenvalues(*eigenvalues, batch=()):
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(*batch, n, n)).Q
    return sym((q * torch.tensor(eigenvalues)) @ q.mT)


# Projections: the Riemannian gradient of ⟨Z, U⟩ must be the point of the tangent space nearest to Z.
PROJECTIONS = {
    **{f"psd-{n}": (SPD("euclidean"), (n, n), sym) for n in (1, 2, 5, 10)},
    **{f"cholesky-{n}": (CholeskySPD(), (n, n), gram) for n in (1, 2, 5, 10)},
    **{f"kronecker-{i}": (Kronecker(), shapes, kron) for i, shapes in enumerate([((4, 3), (2, 5)), ((1, 6), (3, 1))])},
    "kronecker-square": (Kronecker(), ((6, 6), (4, 4)), kron),
    **{f"psd-kronecker-{n}-{p}": (SPDKronecker(), (n, p), kron_gram) for n, p in [(3, 2), (2, 5), (6, 4), (1, 3)]},
}


def least_squares_error(manifold, shape, dense):
    """‖J r − P Z‖/‖P Z‖ with the Jacobian J of ``dense``, its orthogonal projector P and the Riemannian gradient r."""
    x = manifold.random(*shape, dtype=torch.float64)
    parts = x if isinstance(x, tuple) else (x,)

    def flat(*parts):
        return dense(parts if isinstance(x, tuple) else parts[0]).flatten()

    z = torch.randn_like(flat(*parts))
    jacobians = torch.func.jacrev(flat, tuple(range(len(parts))))(*parts)
    jacobian = torch.cat([each.flatten(1) for each in jacobians], 1)
    euclidean = torch.autograd.functional.vjp(flat, parts, z)[1]
    gradient = manifold.rgrad(x, euclidean if isinstance(x, tuple) else euclidean[0])
    moved = jacobian @ torch.cat([each.flatten() for each in laws.leaves(gradient)])
    solution = np.linalg.lstsq(jacobian.numpy(), z.numpy(), rcond=1e-12)[0]
    return relative(moved, jacobian @ torch.from_numpy(solution))


@pytest.mark.parametrize(("manifold", "shape", "dense"), PROJECTIONS.values(), ids=PROJECTIONS)
def test_gradients_are_dense_least_squares_projections(manifold, shape, dense):
    assert least_squares_error(manifold, shape, dense) < 1e-10


class SlidesKronecker(SPDKronecker):
    """The last formula of the slides as printed: ∇f is made symmetric, not ∇f A⁻¹."""

    def rgrad(self, x, euclidean_grad):
        (a, b), (ga, gb) = x, euclidean_grad
        (x, y), (ai, bi) = (gram(a), gram(b)), (torch.linalg.inv(a), torch.linalg.inv(b))
        db = sym(gb) @ bi @ bi.mT / (2 * (x * x).sum())
        dy = db @ b.mT + b @ db.mT
        return (sym(ga) @ ai - x * (y * dy).sum()) @ ai.mT / (2 * (y * y).sum()), db


class WrongSign(Kronecker):
    def rgrad(self, x, euclidean_grad):
        a, b = super().rgrad(x, euclidean_grad)
        return -a, b


class Untransposed(CholeskySPD):
    def tangent(self, x, v):
        return (v + x @ v @ torch.linalg.inv(x)) / 2


def test_wrong_formulae_fail():
    assert least_squares_error(SlidesKronecker(), (3, 2), kron_gram) > 1e-2
    assert least_squares_error(WrongSign(), ((4, 3), (2, 5)), kron) > 1e-2
    with pytest.raises(AssertionError):
        laws.test_riemannian_gradient_gives_the_directional_derivative(Case(SlidesKronecker(), ((3, 3), (2, 2))))
    with pytest.raises(AssertionError):
        laws.test_riemannian_gradient_is_the_derivative_along_the_retraction(Case(WrongSign(), ((3, 3), (2, 2)), kron))
    with pytest.raises(AssertionError):
        laws.test_tangent_is_idempotent_linear_and_self_adjoint(Case(Untransposed(), (4, 4)))


def test_slides_formula_for_the_factor():
    a, g = CholeskySPD().random(5, 5), torch.randn(5, 5)
    z = sym(g)
    expected = z @ a @ torch.linalg.inv(a.mT @ a) / 2  # ¼ ∇_A f (AᵀA)⁻¹ with ∇_A f = 2 Z A
    assert_close(CholeskySPD().rgrad(a, 2 * z @ a), expected)


# The metrics against scipy.
def test_affine_invariant_metric_against_scipy():
    manifold, (x, y) = SPD(), SPD().random(2, 5, 5)
    ratios = scipy.linalg.eigvalsh(y.numpy(), x.numpy())
    assert_close(manifold.dist(x, y), math.sqrt((np.log(ratios) ** 2).sum()))
    root = torch.from_numpy(scipy.linalg.sqrtm(x.numpy()))
    inverse = torch.linalg.inv(root)
    v = sym(torch.randn(5, 5))
    exponential = torch.from_numpy(scipy.linalg.expm((inverse @ v @ inverse).numpy()))
    assert_close(manifold.exp(x, v), root @ exponential @ root, 1e3)
    logarithm = torch.from_numpy(scipy.linalg.logm((inverse @ y @ inverse).numpy()))
    assert_close(manifold.log(x, y), root @ logarithm @ root, 1e3)
    assert_close(manifold.inner(x, v, v), torch.trace(torch.linalg.solve(x, v) @ torch.linalg.solve(x, v)))


def test_affine_invariant_metric_is_invariant():
    manifold, (x, y), a, v = SPD(), SPD().random(2, 5, 5), torch.randn(5, 5), sym(torch.randn(5, 5))
    ax, ay, av = (a @ each @ a.mT for each in (x, y, v))
    assert_close(manifold.dist(ax, ay), manifold.dist(x, y), 1e4)
    assert_close(manifold.inner(ax, av, av), manifold.inner(x, v, v), 1e4)
    assert_close(manifold.dist(torch.linalg.inv(x), torch.linalg.inv(y)), manifold.dist(x, y))
    for map_ in (manifold.exp, manifold.retract):
        assert_close(map_(ax, av), a @ map_(x, v) @ a.mT, 1e4)
    assert_close(manifold.transport(ax, ay, av), a @ manifold.transport(x, y, v) @ a.mT, 1e4)


@pytest.mark.parametrize("eigenvalues", [(1.0, 2.0, 3.0, 5.0), (1.0, 1.0, 1.0, 3.0), (1.0, 1 + 1e-9, 2.0, 2 + 1e-6)])
def test_log_euclidean_metric_against_scipy(eigenvalues):
    manifold, x, y = SPD("log-euclidean"), with_eigenvalues(*eigenvalues), SPD().random(4, 4)
    log_x, log_y = (torch.from_numpy(scipy.linalg.logm(each.numpy())) for each in (x, y))
    assert_close(manifold.dist(x, y), torch.dist(log_x, log_y), 1e3)
    directions = [sym(torch.randn(4, 4)) for _ in range(2)]  # these are D log_x [u], whose u scipy knows
    u, v = (torch.from_numpy(scipy.linalg.expm_frechet(log_x.numpy(), each.numpy())[1]) for each in directions)
    assert_close(manifold.inner(x, u, v), (directions[0] * directions[1]).sum(), 1e3)
    assert_close(manifold.exp(x, u), torch.linalg.matrix_exp(log_x + directions[0]), 1e3)
    assert_close(manifold.log(x, torch.linalg.matrix_exp(log_x + directions[0])), u, 1e3)


def test_bures_wasserstein_metric_against_scipy():
    manifold, (x, y) = SPD("bures-wasserstein"), SPD().random(2, 5, 5)
    root = scipy.linalg.sqrtm(x.numpy())
    cross = torch.from_numpy(scipy.linalg.sqrtm(root @ y.numpy() @ root))
    assert_close(manifold.dist(x, y), (torch.trace(x + y) - 2 * torch.trace(cross)).sqrt(), 1e3)
    u, v = (sym(torch.randn(5, 5)) / 5 for _ in range(2))
    lyapunov = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(x.numpy(), u.numpy()))
    assert_close(manifold.inner(x, u, v), torch.trace(lyapunov @ v) / 2)
    step = torch.eye(5) + lyapunov
    assert_close(manifold.exp(x, u), step @ x @ step)
    product = torch.from_numpy(scipy.linalg.sqrtm((x @ y).numpy()).real)
    assert_close(manifold.log(x, y), product + product.mT - 2 * x, 1e3)


@cases("manifold", {name: METRICS[name] for name in ("affine-invariant", "log-euclidean", "euclidean")})
def test_transport_is_parallel(manifold):
    x, y = manifold.random(2, 4, 4)
    u, v = (sym(torch.randn(4, 4)) for _ in range(2))
    moved = [manifold.transport(x, y, each) for each in (u, v)]
    assert_close(manifold.inner(y, *moved), manifold.inner(x, u, v))
    assert_close(manifold.transport(x, y, manifold.log(x, y)), -manifold.log(y, x), 1e3)


def test_factor_transport_keeps_the_vector_of_u():
    a, b = CholeskySPD().random(2, 4, 4)
    v = CholeskySPD().tangent(a, torch.randn(4, 4))
    moved = CholeskySPD().transport(a, b, v)
    assert_close(moved @ b.mT + b @ moved.mT, v @ a.mT + a @ v.mT)


@EVERY_METRIC
def test_ill_conditioned_points(manifold):
    spectrum = torch.logspace(0, -8, 6).tolist()
    x, y = with_eigenvalues(*spectrum), with_eigenvalues(*spectrum)
    manifold.check(x)
    assert relative(manifold.exp(x, manifold.log(x, y)), y) < 1e-7
    assert relative(manifold.dist(x, y), manifold.dist(y, x)) < 1e-7
    g, v = torch.randn(6, 6), manifold.log(x, y)
    assert relative(manifold.inner(x, manifold.rgrad(x, g), v), (g * v).sum()) < 1e-6
    manifold.check(manifold.retract(x, v))


# Steps far too large, and none.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [1e3, -1e3, 1e10, -1e10, 1e30, -1e30])
@pytest.mark.parametrize(("manifold", "matrices"), DEFINITE.values(), ids=DEFINITE)
@pytest.mark.parametrize("n", [1, 2, 6, 40])
def test_giant_steps_stay_positive_definite(manifold, matrices, t, dtype, n):
    shape = ((8, n, n), (8, 3, 3)) if manifold.num_tensors == 2 else (8, n, n)
    x = manifold.random(*shape, dtype=dtype)
    for v in (manifold.tangent(x, laws.ambient(x)), manifold.tangent(x, x)):
        y = manifold.retract(x, laws.scaled(v, t))
        manifold.check(y)
        for matrix in matrices(y):
            assert matrix.isfinite().all()
            assert (torch.linalg.cholesky_ex(matrix).info == 0).all()
        laws.tree(lambda a, b: assert_close(a, b, 10), manifold.retract(x, laws.scaled(v, 0.0)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [10.0, 1e4, 1e10])
@pytest.mark.parametrize(("manifold", "matrices"), DEFINITE.values(), ids=DEFINITE)
def test_descent_with_a_giant_rate_stays_positive_definite(manifold, matrices, lr, dtype):
    shape = ((4, 4), (3, 3)) if manifold.num_tensors == 2 else (4, 4)
    start, target = manifold.random(*shape, dtype=dtype), manifold.random(*shape, dtype=dtype)
    x = laws.tree(lambda t: torch.nn.Parameter(t.clone()), start)
    optimiser = RiemannianSGD([{"params": list(laws.leaves(x)), "manifold": manifold}], lr=lr)
    for _ in range(10):
        optimiser.zero_grad()
        sum((u - t).square().sum() for u, t in zip(matrices(x), matrices(target), strict=True)).backward()
        optimiser.step()
        for matrix in matrices(x):
            assert matrix.isfinite().all()
            assert torch.linalg.cholesky_ex(matrix).info == 0


def test_infinite_steps_count_as_long_ones():
    for manifold in METRICS.values():
        x = manifold.random(4, 4)
        for v in (torch.full((4, 4), math.inf), torch.eye(4) * -math.inf):
            manifold.check(manifold.retract(x, v.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [1e3, -1e3, 1e10, -1e10, 1e30, -1e30, -1.0])
def test_giant_kronecker_steps_stay_finite_and_nonzero(t, dtype):
    manifold = Kronecker()
    x = manifold.random((5, 4, 3), (5, 2, 6), dtype=dtype)
    for v in (manifold.tangent(x, laws.ambient(x)), manifold.tangent(x, x), (torch.zeros_like(x[0]), x[1])):
        y = manifold.retract(x, laws.scaled(v, t))
        manifold.check(y)
        assert_close(torch.linalg.matrix_norm(y[0]), torch.linalg.matrix_norm(x[0]))


def test_retraction_is_exact_until_it_must_bend():
    x, euclidean, wasserstein = SPD().random(5, 5), SPD("euclidean"), SPD("bures-wasserstein")
    v = sym(torch.randn(5, 5)) / 10
    assert torch.equal(euclidean.retract(x, v), x + v)
    shrinking = [euclidean.retract(x, -t * x) for t in (0.4, 0.6, 1.0, 3.0, 100.0)]
    for before, after in itertools.pairwise(shrinking):
        assert torch.linalg.cholesky_ex(before - after).info == 0
    assert_close(wasserstein.retract(x, 2 * x), wasserstein.exp(x, 2 * x))


@pytest.mark.parametrize(("manifold", "matrices"), DEFINITE.values(), ids=DEFINITE)
def test_retraction_is_differentiable_where_eigenvalues_coincide(manifold, matrices):
    """At the identity and no step, from where a parametrisation starts, and at a step bent in all directions alike."""
    eye = torch.eye(3)
    x = (eye, eye) if manifold.num_tensors == 2 else eye
    for t in (0.0, -3.0):
        v = laws.tree(lambda e, t=t: (t * e).requires_grad_(), x)
        y = manifold.retract(x, v)
        gradients = torch.autograd.grad(sum(m.sum() for m in matrices(y)), laws.leaves(v))
        assert all(g.isfinite().all() for g in gradients)
        if t == 0 and isinstance(manifold, SPD):
            assert_close(gradients[0], torch.ones(3, 3))


def test_second_derivatives_of_spectral_functions_are_refused():
    x, v = SPD().random(3, 3), torch.zeros(3, 3, requires_grad=True)
    (g,) = torch.autograd.grad(SPD().retract(x, v).square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(g.sum(), v)


@EVERY_METRIC
def test_distance_is_differentiable(manifold):
    x, y = manifold.random(2, 3, 3)
    y = with_eigenvalues(2.0, 2.0, 2.0) if manifold.metric == "log-euclidean" else y
    for point in (x, y):
        assert torch.autograd.gradcheck(lambda p: manifold.dist(sym(p), x + y), point.clone().requires_grad_())


# Kronecker: the gauge, and where the geodesic ends.
def test_kronecker_geometry_does_not_depend_on_the_gauge():
    manifold = Kronecker()
    (a, b), (c, d) = (manifold.random((4, 3), (2, 5)) for _ in range(2))
    assert manifold.dist((a, b), (-3 * a, b / -3)) < 1e-14
    assert_close(manifold.dist((a, b), (c, d)), manifold.dist((2 * a, b / 2), (-c, -d)))
    v = manifold.tangent((a, b), (torch.randn(4, 3), torch.randn(2, 5)))
    scaled = (2 * v[0], v[1] / 2)
    for move in (manifold.retract, manifold.exp):
        assert_close(kron(move((2 * a, b / 2), scaled)), kron(move((a, b), v)))
    moved = manifold.transport((a, b), (c, d), v)
    other = manifold.transport((2 * a, b / 2), (c, d), scaled)
    laws.tree(assert_close, moved, other)


@pytest.mark.parametrize(("manifold", "dense"), [(Kronecker(), kron), (SPDKronecker(), kron_gram)])
def test_kronecker_transport_is_the_dense_projection(manifold, dense):
    x, y = (manifold.random(3, 2, dtype=torch.float64) for _ in range(2))
    v = manifold.tangent(x, laws.ambient(x))

    def along(x, v):
        return torch.autograd.functional.jvp(lambda *x: dense(x), x, v)[1]

    u = laws.vector(Case(manifold, ((3, 3), (2, 2))), y)
    assert_close(manifold.inner(y, manifold.transport(x, y, v), u), (along(x, v) * along(y, u)).sum())
    assert_close(manifold.inner(x, v, v), along(x, v).square().sum())


@pytest.mark.parametrize(("manifold", "dense"), [(Kronecker(), kron), (SPDKronecker(), kron_gram)])
def test_kronecker_distance_of_near_and_of_proportional_points(manifold, dense):
    x = manifold.random(3, 2, dtype=torch.float64)
    near = manifold.exp(x, laws.vector(Case(manifold, ((3, 3), (2, 2))), x, 1e-6))
    assert abs(manifold.dist(x, near) / torch.dist(dense(x), dense(near)) - 1) < 1e-6
    larger = (2 * x[0], x[1])
    assert_close(manifold.dist(x, larger), torch.dist(dense(x), dense(larger)))


def test_kronecker_of_a_scalar_is_flat():
    x, y = (Kronecker().random((4, 3), 1) for _ in range(2))
    assert_close(Kronecker().dist(x, y), torch.dist(kron(x), kron(y)))


@pytest.mark.parametrize(
    ("manifold", "shape", "dense"),
    [(CholeskySPD(), (4, 4), gram), (Kronecker(), (3, 2), kron), (SPDKronecker(), (3, 2), kron_gram)],
)
def test_norm_gradient_is_that_of_half_the_squared_norm(manifold, shape, dense):
    x = laws.tree(lambda t: t.requires_grad_(), manifold.random(*shape, dtype=torch.float64))
    gradients = torch.autograd.grad(dense(x).square().sum() / 2, laws.leaves(x))
    for actual, expected in zip(laws.leaves(manifold.norm_grad(x)), gradients, strict=True):
        assert_close(actual, expected)


# Bad input.
@EVERY_METRIC
def test_singular_and_asymmetric_matrices_are_refused(manifold):
    singular = torch.randn(5, 3)
    for bad in (torch.zeros(3, 3), gram(singular), -torch.eye(3), torch.eye(3) + torch.ones(3, 3).triu(1)):
        with pytest.raises(ValueError, match="not a point of SPD"):
            manifold.check(bad)
        manifold.check(manifold.project(bad))
    with pytest.raises(ValueError, match=r"singular in torch\.float32"):
        manifold.check(torch.diag(torch.tensor([1.0, 1e-7], dtype=torch.float32)))


def test_projection_raises_small_eigenvalues_only():
    x = with_eigenvalues(1.0, 1e-3, -0.5, 0.0)
    raised = torch.linalg.eigvalsh(SPD().project(x))
    assert_close(raised, torch.tensor([0.0, 0.0, 1e-3, 1.0]))
    assert (raised > 0).all()


def test_factors_off_the_manifold_are_refused():
    a = CholeskySPD().random(3, 3)
    for bad in (a + torch.ones(3, 3).triu(1), -a, torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, 1e-12]))):
        with pytest.raises(ValueError, match="not a point of CholeskySPD"):
            CholeskySPD().check(bad)
        with pytest.raises(ValueError, match="not a point of"):
            SPDKronecker().check((a, bad))
        CholeskySPD().check(CholeskySPD().project(bad))
    full = torch.randn(4, 4)
    assert_close(gram(CholeskySPD().project(full)), gram(full))


def test_kronecker_refuses_a_zero_factor_and_shapes_that_do_not_fit():
    x = torch.randn(3, 3)
    for bad in ((x, torch.zeros(2, 2)), (torch.zeros(2, 2), x), (x, torch.full((2, 2), math.inf))):
        with pytest.raises(ValueError, match="not a point of"):
            Kronecker().check(bad)
    with pytest.raises(ValueError, match="same batch"):
        SPDKronecker().random((2, 3, 3), (3, 3))
    with pytest.raises(ValueError, match=r"\(\.\.\., n, n\)"):
        SPDKronecker().random((3, 2), 3)
    with pytest.raises(ValueError, match="tuple of two"):
        Kronecker().random(3, 3, 3)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric must be one of 'affine-invariant'"):
        SPD("hyperbolic")
    assert repr(SPD()) == "SPD(metric='affine-invariant')"


def test_complex_numbers_are_refused():
    eye = torch.eye(2, dtype=torch.complex128)
    for manifold, x in ((SPD(), eye), (CholeskySPD(), eye), (Kronecker(), (eye, eye)), (SPDKronecker(), (eye, eye))):
        with pytest.raises(ValueError, match=r"needs real numbers, got torch\.complex128"):
            manifold.check(x)
        with pytest.raises(ValueError, match=r"needs real numbers, got torch\.complex64"):
            manifold.random(2, 2, dtype=torch.complex64)


@pytest.mark.parametrize("manifold", [*METRICS.values(), CholeskySPD()], ids=repr)
def test_no_step_leaves_every_admitted_point_as_it_is(manifold):
    x = torch.diag(torch.tensor([1.0, 1e-5, 1e-6], dtype=torch.float32))
    x = x.sqrt() if isinstance(manifold, CholeskySPD) else x
    manifold.check(x)
    assert_close(manifold.retract(x, torch.zeros_like(x)).diagonal() / x.diagonal(), torch.ones(3), 10)
    assert_close(manifold.project(x).diagonal() / x.diagonal(), torch.ones(3), 10)


def test_tiny_and_huge_numbers():
    SPD().check(SPD().random(3, 3, dtype=torch.float32) * 1e-25)
    x, y = (tuple(1e12 * each for each in Kronecker().random(3, 2, dtype=torch.float32)) for _ in range(2))
    exact = Kronecker().dist(*(tuple(each.double() for each in point) for point in (x, y)))
    assert relative(Kronecker().dist(x, y), exact) < 1e-5


def test_misshapen_points_are_named():
    x = torch.eye(2)
    with pytest.raises(TypeError, match="a tensor or a tuple of tensors, got list"):
        Kronecker().check([x, x])
    with pytest.raises(ValueError, match="same batch"):
        Product(SPD(), SPD()).check((x, x.expand(3, 2, 2)))
    with pytest.raises(TypeError, match="shapes such as"):
        Product(SPD(), SPD()).random(3, 3)
