"""Distances, exponentials and logarithms where points coincide: derivatives that are right, and no NaN."""

import pytest
import torch

from mnvi.manifolds import SPD, Euclidean, Kronecker
from mnvi.optim import RiemannianSGD
from tests.cases import cases
from tests.manifolds import test_laws as laws
from tests.manifolds.cases import MANIFOLDS

pytestmark = pytest.mark.usefixtures("float64")

# Retractions make no difference here, but for Stiefel manifolds, which have no distance.
FORMS = {name: case for name, case in MANIFOLDS.items() if not name.endswith(("-qr", "-cayley", "-polar"))}
WITH_EXP, WITH_LOG, WITH_DIST = (
    cases("case", {name: case for name, case in FORMS.items() if form in case.closed})
    for form in ("exp", "log", "dist")
)
EPS = torch.finfo(torch.float64).eps


def variable(x):
    return laws.tree(lambda t: t.detach().clone().requires_grad_(), x)


def gradients(value, *points):
    """Of a number, in the structures of the points."""
    flat = iter(torch.autograd.grad(value, [t for x in points for t in laws.leaves(x)]))
    return [laws.tree(lambda _: next(flat), x) for x in points]


def size(x):
    return sum(t.abs().max().item() for t in laws.leaves(x))


def length(manifold, x, v):
    return manifold.inner(x, v, v).clamp(min=0).sqrt()


def set_at(x, i, value):
    """``x`` with point i of the batch replaced."""
    return laws.tree(lambda t, v: torch.cat([t[:i], v[None], t[i + 1 :]]), x, value)


@WITH_DIST
def test_the_distance_of_a_point_to_itself_has_gradient_zero_squared_and_a_finite_one_itself(case):
    x = laws.point(case, (2,))
    for power, bound in ((2, 1e-12), (1, 10.0)):
        a, b = variable(x), variable(x)
        distance = case.manifold.dist(a, b)
        assert distance.max() < 1e-14
        for g in gradients(distance.pow(power).sum(), a, b):
            assert size(g) < bound  # a NaN is not


# The others align factors or bases, or solve, which leaves a distance of some eps.
EXACT = ("euclidean", "spd-euclidean", "spd-log-euclidean", "cholesky-spd", "kronecker", "spd-kronecker")
EXACT += ("Orthogonal-exp", "SpecialOrthogonal-exp", "Unitary-exp")


@cases("case", {name: FORMS[name] for name in EXACT})
def test_one_array_twice_is_at_distance_zero_without_slope(case):
    x = laws.point(case, (2,))
    a, b = variable(x), variable(x)
    distance = case.manifold.dist(a, b)
    assert torch.equal(distance, torch.zeros(2))
    assert all(size(g) == 0 for g in gradients(distance.sum(), a, b))


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_euclidean_arrays_of_any_dimension_and_of_complex_numbers_may_coincide(shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = x.detach() + torch.randn(shape, dtype=dtype)
    expected = (y - x.detach()).abs().square().sum((-1, -2)[: len(shape)]).sqrt()
    torch.testing.assert_close(Euclidean().dist(x, y).detach(), expected, rtol=1e-14, atol=0)
    (g,) = torch.autograd.grad(Euclidean().dist(x, x.detach()).sum(), x)
    assert torch.equal(g, torch.zeros_like(g))


@WITH_DIST
def test_a_batch_in_which_one_pair_coincides_has_the_gradients_of_each_pair(case):
    manifold, x = case.manifold, laws.point(case, (3,))
    y = set_at(manifold.exp(x, laws.vector(case, x)), 1, laws.at(x, 1))
    a, b = variable(x), variable(y)
    both = gradients(manifold.dist(a, b).square().sum(), a, b)
    for i in range(3):
        c, d = variable(laws.at(x, i)), variable(laws.at(y, i))
        single = gradients(manifold.dist(c, d).square(), c, d)
        for batched, alone in zip(both, single, strict=True):
            assert size(laws.tree(torch.sub, laws.at(batched, i), alone)) < 1e-11
            assert i == 1 or size(alone) > 1e-3


@WITH_DIST
@pytest.mark.parametrize("distance", [1e-3, 1e-7])
def test_the_gradient_of_the_squared_distance_is_minus_two_logarithms_also_of_near_points(case, distance):
    """Rounding moves the points by some n·eps, which is all of the error, whatever their distance."""
    manifold, x = case.manifold, laws.point(case, (2,))
    y = manifold.exp(x, laws.vector(case, x, distance))
    a, b = variable(x), variable(y)
    bound = 500 * EPS * (1 + size(x))
    for here, there, gradient in zip((x, y), (y, x), gradients(manifold.dist(a, b).square().sum(), a, b), strict=True):
        expected = laws.scaled(manifold.log(here, there), -2.0)
        error = laws.tree(torch.sub, manifold.rgrad(here, gradient), expected)
        assert length(manifold, here, error).max() < bound
        assert (length(manifold, here, expected) / (2 * distance) - 1).abs().max() < bound / distance


@WITH_EXP
def test_the_exponential_leaves_along_its_vector_and_with_its_point(case):
    """The derivatives at v = 0, against differences of the points that are reached."""
    manifold, x, h = case.manifold, laws.point(case), 1e-5
    w = laws.vector(case, x)
    a, v = variable(x), variable(laws.tree(torch.zeros_like, x))
    y = case.dense(manifold.exp(a, v))
    weight = torch.randn_like(y)
    of_x, of_v = gradients((weight.conj() * y).real.sum(), a, v)
    ahead, behind = (manifold.exp(x, laws.scaled(w, s * h)) for s in (1, -1))
    moved = ((weight.conj() * (case.dense(ahead) - case.dense(behind))).real.sum() / (2 * h)).item()
    assert laws.dot(of_v, w).sum().item() == pytest.approx(moved, rel=1e-7, abs=1e-8)
    change = laws.tree(lambda p, q: (p - q) / (2 * h), ahead, behind)
    assert laws.dot(of_x, change).sum().item() == pytest.approx(moved, rel=1e-7, abs=1e-8)


@WITH_LOG
def test_the_logarithm_of_a_point_at_itself_grows_with_the_vector_to_the_other(case):
    """log_x(exp_x(t·w)) is t·w, and at the other end −t·w to first order: the derivatives at y = x, in either point."""
    manifold, x, h = case.manifold, laws.point(case), 1e-5
    w = laws.vector(case, x)
    a, b = variable(x), variable(x)
    v = manifold.log(a, b)
    weight = laws.ambient(x)
    of_x, of_y = gradients(laws.dot(weight, v).sum(), a, b)
    ahead, behind = (manifold.exp(x, laws.scaled(w, s * h)) for s in (1, -1))
    change = laws.tree(lambda p, q: (p - q) / (2 * h), ahead, behind)
    expected = laws.dot(weight, w).sum().item()
    assert laws.dot(of_y, change).sum().item() == pytest.approx(expected, rel=1e-7, abs=1e-8)
    assert laws.dot(of_x, change).sum().item() == pytest.approx(-expected, rel=1e-7, abs=1e-8)


def descend(manifold, start, target, steps, lr):
    """Minimise the squared distance from a target; the distances on the way."""
    x = laws.tree(lambda t: torch.nn.Parameter(t.clone()), start)
    optimiser = RiemannianSGD([{"params": list(laws.leaves(x)), "manifold": manifold}], lr=lr)
    distances = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = manifold.dist(x, target).square()
        loss.backward()
        optimiser.step()  # which refuses a NaN
        distances.append(loss.item() ** 0.5)
    return distances


@WITH_DIST
def test_descent_to_a_point_arrives_and_stays_and_so_it_does_from_there(case):
    manifold, start = case.manifold, laws.point(case)
    target = manifold.exp(start, laws.vector(case, start))
    distances = descend(manifold, start, target, 100, 0.3)
    assert distances[0] > 0.1
    assert max(distances[50:] + descend(manifold, target, target, 10, 0.3)) < 1e-13


def test_a_long_slow_descent_goes_on_past_its_arrival():
    case = FORMS["kronecker"]
    manifold, start = case.manifold, laws.point(case)
    distances = descend(manifold, start, manifold.exp(start, laws.vector(case, start)), 800, 0.05)
    assert distances[50] > 1e-4
    assert max(distances[500:]) < 1e-13


def test_a_descent_to_the_origin_passes_the_smallest_numbers():
    assert descend(Euclidean(), torch.randn(4, 3), torch.zeros(4, 3), 2000, 0.25)[-1] == 0


def test_the_kronecker_exponential_along_its_point_is_differentiable():
    """There neither factor turns, and the angle is 0 however fast the point grows or shrinks."""
    manifold, (a, b) = Kronecker(), Kronecker().random((4, 3), (2, 5))
    for rate in (0.5, -0.4):
        parts = [x.clone().requires_grad_() for x in (a, b, torch.zeros_like(a), rate * b)]
        assert torch.autograd.gradcheck(lambda a, b, u, w: manifold.exp((a, b), (u, w)), parts, fast_mode=True)


SPECTRA = {
    "apart": (1.0, 2.0, 3.0, 5.0),
    "equal": (2.0, 2.0, 2.0, 2.0),
    "pairs": (1.0, 1.0, 3.0, 3.0),
    "near": (1.0, 1 + 1e-9, 1 + 1e-4, 2.0),
}
METHODS = {
    "inner": lambda manifold, x, y, u, v: manifold.inner(x, u, v),
    "rgrad": lambda manifold, x, y, u, v: manifold.rgrad(x, u),
    "retract": lambda manifold, x, y, u, v: manifold.retract(x, u),
    "transport": lambda manifold, x, y, u, v: manifold.transport(x, y, u),
    "exp": lambda manifold, x, y, u, v: manifold.exp(x, u),
    "log": lambda manifold, x, y, u, v: manifold.log(x, y),
    "log-from-y": lambda manifold, x, y, u, v: manifold.log(y, x),
}


def sym(a):
    return (a + a.mT) / 2


@cases("ratio", {"same": 1.0, "proportional": 1.5, "apart": None})
@cases("spectrum", SPECTRA)
@cases("metric", {name: name for name in ("affine-invariant", "log-euclidean", "bures-wasserstein", "euclidean")})
def test_spd_methods_are_differentiable_wherever_eigenvalues_and_points_coincide(metric, spectrum, ratio):
    manifold = SPD(metric)
    q = torch.linalg.qr(torch.randn(2, 4, 4)).Q
    x = sym((q * torch.tensor(spectrum)) @ q.mT)
    y = manifold.random(2, 4, 4) if ratio is None else ratio * x
    u, v = (0.1 * sym(torch.randn(2, 4, 4)) for _ in range(2))
    inputs = [each.requires_grad_() for each in (x, y, u, v)]
    for method in METHODS.values():
        assert torch.autograd.gradcheck(
            lambda *inputs, method=method: method(manifold, *map(sym, inputs)), inputs, fast_mode=True
        )


TWICE = {
    "affine-invariant": ("transport", "log", "log-from-y"),
    "bures-wasserstein": ("inner", "exp", "log", "log-from-y"),
}


@cases("spectrum", SPECTRA)
@cases("metric", {name: name for name in TWICE})
def test_spd_methods_have_second_derivatives_there(metric, spectrum):
    manifold = SPD(metric)
    q = torch.linalg.qr(torch.randn(4, 4)).Q
    x = sym((q * torch.tensor(spectrum)) @ q.mT)
    inputs = [each.requires_grad_() for each in (x, 1.5 * x, *(0.1 * sym(torch.randn(2, 4, 4))))]
    for name in TWICE[metric]:
        assert torch.autograd.gradgradcheck(
            lambda *inputs, name=name: METHODS[name](manifold, *map(sym, inputs)), inputs, fast_mode=True
        )


@cases("metric", {name: name for name in ("affine-invariant", "bures-wasserstein", "euclidean")})
def test_spd_distances_have_second_derivatives_between_points_apart(metric):
    manifold, (x, y) = SPD(metric), SPD().random(2, 4, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, y: manifold.dist(sym(x), sym(y)), (x, y), fast_mode=True)


@cases("method", {name: METHODS[name] for name in ("inner", "rgrad", "retract", "transport", "exp", "log")})
def test_second_derivatives_that_the_log_euclidean_metric_has_not_are_refused(method):
    x, y = SPD().random(2, 4, 4)
    x = x.requires_grad_()
    value = method(SPD("log-euclidean"), x, y, y, y).square().sum()
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(g.sum(), x)
