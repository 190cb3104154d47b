"""The laws of :class:`mnvi.manifolds.Manifold`, run on every row of ``cases.MANIFOLDS``."""

import math
import re

import pytest
import torch

from mnvi.manifolds import SPD, Manifold, Product, Stiefel
from tests.cases import cases
from tests.laws import assert_close
from tests.manifolds.cases import MANIFOLDS, Case

pytestmark = pytest.mark.usefixtures("float64")

EVERY = cases("case", MANIFOLDS)
WITH_EXP, WITH_LOG, WITH_DIST = (
    cases("case", {name: case for name, case in MANIFOLDS.items() if form in case.closed})
    for form in ("exp", "log", "dist")
)


# Points are tensors or tuples of tensors: a few operations on either.
def tree(function, *points):
    if isinstance(points[0], tuple):
        return tuple(function(*each) for each in zip(*points, strict=True))
    return function(*points)


def plus(x, v, t=1.0):
    return tree(lambda x, v: x + t * v, x, v)


def scaled(v, t):
    return tree(lambda v: t * v, v)


def ambient(x):
    return tree(torch.randn_like, x)


def dot(u, v):  # Σ over all tensors, of the batch's shape
    parts = tree(lambda u, v: (u.conj() * v).real.sum((-2, -1)), u, v)
    return sum(parts) if isinstance(parts, tuple) else parts


def leaves(x):
    return x if isinstance(x, tuple) else (x,)


def point(case: Case, batch=()):
    shapes = case.shape if isinstance(case.shape[0], tuple) else None
    shape = [(*batch, *each) for each in shapes] if shapes else [*batch, *case.shape]
    return case.manifold.random(*shape, dtype=case.dtype)


def vector(case: Case, x, length=None):
    """A random tangent vector at ``x``, of the length of the case."""
    v = case.manifold.tangent(x, ambient(x))
    norm = case.manifold.inner(x, v, v).sqrt()[..., None, None]
    return tree(lambda v: v * (case.length if length is None else length) / norm, v)


def slope(errors, steps):
    return (torch.log(errors[0] / errors[-1]) / math.log(steps[0] / steps[-1])).item()


@EVERY
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_random_points_lie_on_the_manifold(case, batch):
    x = point(case, batch)
    residual = case.manifold.residual(x)
    assert residual.shape == batch
    assert_close(residual, torch.zeros(batch))
    case.manifold.check(x)


@EVERY
def test_random_points_repeat_with_their_generator(case):
    def draw():
        generator = torch.Generator().manual_seed(3)
        return case.manifold.random(*case.shape, dtype=case.dtype, generator=generator)

    tree(assert_close, draw(), draw())


@EVERY
def test_projection_lands_on_the_manifold_and_keeps_its_points(case):
    x = point(case, (2,))
    near = plus(x, ambient(x), 0.1)
    assert_close(case.manifold.residual(case.manifold.project(near)), torch.zeros(2))
    tree(assert_close, case.manifold.project(x), x)


@EVERY
def test_tangent_is_idempotent_linear_and_self_adjoint(case):
    x = point(case, (2,))
    u, v = ambient(x), ambient(x)
    tangent = case.manifold.tangent
    tree(assert_close, tangent(x, tangent(x, u)), tangent(x, u))
    tree(assert_close, tangent(x, plus(u, v, 2.0)), plus(tangent(x, u), tangent(x, v), 2.0))
    inner = case.manifold.inner
    assert_close(inner(x, tangent(x, u), v), inner(x, u, tangent(x, v)))


@EVERY
def test_inner_is_bilinear_symmetric_and_positive(case):
    x = point(case, (2,))
    u, v, w = (vector(case, x) for _ in range(3))
    inner = case.manifold.inner
    assert inner(x, u, v).shape == (2,)
    assert not inner(x, u, v).is_complex()
    assert_close(inner(x, u, v), inner(x, v, u))
    assert_close(inner(x, plus(u, w, 2.0), v), inner(x, u, v) + 2 * inner(x, w, v))
    assert (inner(x, u, u) > 0).all()


@EVERY
def test_riemannian_gradient_gives_the_directional_derivative(case):
    x, manifold = point(case, (2,)), case.manifold
    g = ambient(x)
    gradient = manifold.rgrad(x, g)
    tree(assert_close, manifold.tangent(x, gradient), gradient)
    v = manifold.tangent(x, ambient(x))
    assert_close(manifold.inner(x, gradient, v), dot(g, v))


@EVERY
def test_riemannian_gradient_is_the_derivative_along_the_retraction(case):
    """With a function of the matrix that the point stands for, autograd's gradient, and finite differences."""
    manifold, x = case.manifold, point(case)
    weight = torch.randn_like(case.dense(x))

    def f(x):
        return ((weight.conj() * case.dense(x)).real.sin()).sum()

    variable = tree(lambda t: t.detach().requires_grad_(), x)
    g = torch.autograd.grad(f(variable), leaves(variable))
    gradient = manifold.rgrad(x, g if isinstance(x, tuple) else g[0])
    v, h = vector(case, x), 1e-5
    difference = (f(manifold.retract(x, scaled(v, h))) - f(manifold.retract(x, scaled(v, -h)))) / (2 * h)
    torch.testing.assert_close(manifold.inner(x, gradient, v), difference, rtol=1e-6, atol=1e-7)


@EVERY
def test_retraction_stays_on_the_manifold_and_fixes_zero(case):
    x, manifold = point(case, (2,)), case.manifold
    tree(assert_close, manifold.retract(x, scaled(ambient(x), 0.0)), x)
    for length in (0.01, 0.3, 1.0):
        y = manifold.retract(x, vector(case, x, length))
        assert_close(manifold.residual(y), torch.zeros(2))


@EVERY
def test_retraction_leaves_along_its_vector(case):
    """The slope of ‖R(tv) − x − t·v‖ is 2 at least, in the matrices that the points stand for."""
    manifold, x = case.manifold, point(case)
    v, steps = vector(case, x), [0.1, 0.01]
    along = (case.dense(plus(x, v, 1e-5)) - case.dense(plus(x, v, -1e-5))) / 2e-5
    errors = [torch.dist(case.dense(manifold.retract(x, scaled(v, t))), case.dense(x) + t * along) for t in steps]
    assert errors[0] < 1e-9 or slope(errors, steps) > 1.9


@WITH_EXP
def test_retraction_has_its_declared_order(case):
    manifold, x = case.manifold, point(case)
    v, steps = vector(case, x), [0.2, 0.1, 0.05]
    errors = [
        torch.dist(case.dense(manifold.retract(x, scaled(v, t))), case.dense(manifold.exp(x, scaled(v, t))))
        for t in steps
    ]
    if manifold.order == math.inf:
        assert errors[0] < 1e-11
    else:
        assert slope(errors, steps) > manifold.order + 0.9
        assert errors[0] > 1e-11  # a retraction that is the exponential should say so


@EVERY
def test_transport_lands_in_the_tangent_space(case):
    x, manifold = point(case, (2,)), case.manifold
    u, v = vector(case, x), vector(case, x)
    y = manifold.retract(x, u)
    moved = manifold.transport(x, y, v)
    tree(assert_close, manifold.tangent(y, moved), moved)
    tree(assert_close, manifold.transport(x, x, v), v)
    tree(assert_close, manifold.transport(x, y, plus(u, v, 2.0)), plus(manifold.transport(x, y, u), moved, 2.0))


@EVERY
def test_what_has_no_closed_form_is_missing_and_the_error_names_it(case):
    manifold = case.manifold
    for form in ("exp", "log", "dist"):
        assert getattr(Manifold, form).__doc__
        if form in case.closed or isinstance(manifold, Product):
            assert hasattr(manifold, form)
            continue
        assert not hasattr(manifold, form)
        assert not hasattr(type(manifold), form)
        with pytest.raises(AttributeError, match=f"{re.escape(repr(manifold))} has no {form} in closed form; use "):
            getattr(manifold, form)


def test_a_product_names_the_manifold_that_has_no_closed_form():
    manifold = Product(SPD(), Stiefel())
    x = manifold.random((3, 3), (4, 2))
    with pytest.raises(AttributeError, match=r"^Stiefel\(.*\) has no log in closed form; use tangent\(x, y - x\)"):
        manifold.log(x, x)


@WITH_EXP
def test_exponential_has_constant_speed_and_composes(case):
    manifold, x = case.manifold, point(case)
    v = vector(case, x)
    assert_close(manifold.residual(manifold.exp(x, v)), torch.zeros(()))
    tree(assert_close, manifold.exp(x, scaled(v, 0.0)), x)
    if "dist" in case.closed:
        for t in (0.1, 0.5, 1.0):
            assert_close(manifold.dist(x, manifold.exp(x, scaled(v, t))), t * manifold.inner(x, v, v).sqrt(), 1e5)


@WITH_LOG
def test_logarithm_inverts_the_exponential(case):
    manifold, x = case.manifold, point(case, (2,))
    v = vector(case, x)
    y = manifold.exp(x, v)
    tree(lambda a, b: assert_close(a, b, 1e4), manifold.log(x, y), v)
    assert_close(case.dense(manifold.exp(x, manifold.log(x, y))), case.dense(y), 1e4)
    tree(lambda a: assert_close(a, torch.zeros_like(a), 1e6), manifold.log(x, x))


@WITH_DIST
def test_distance_is_a_metric_and_its_gradient_is_the_logarithm(case):
    """Gauss: the gradient of ½ dist(x, ·)² at y is −log_y(x), which ties dist, log, inner and rgrad together."""
    manifold, x = case.manifold, point(case)
    y = manifold.exp(x, vector(case, x))
    assert_close(manifold.dist(x, y), manifold.dist(y, x), 1e4)
    z = manifold.exp(y, vector(case, y))
    assert manifold.dist(x, z) <= manifold.dist(x, y) + manifold.dist(y, z) + 1e-9
    u, h = vector(case, y), 1e-4
    ahead, behind = (manifold.dist(x, manifold.retract(y, scaled(u, s * h))) for s in (1, -1))
    change = (ahead.square() - behind.square()) / (4 * h)
    torch.testing.assert_close(change, -manifold.inner(y, manifold.log(y, x), u), rtol=1e-5, atol=1e-7)


@EVERY
def test_batches_are_loops(case):
    manifold, x = case.manifold, point(case, (3,))
    v, g = vector(case, x), ambient(x)
    y = manifold.retract(x, v)
    results = {
        "tangent": (manifold.tangent(x, g), lambda i: manifold.tangent(at(x, i), at(g, i))),
        "inner": (manifold.inner(x, v, v), lambda i: manifold.inner(at(x, i), at(v, i), at(v, i))),
        "rgrad": (manifold.rgrad(x, g), lambda i: manifold.rgrad(at(x, i), at(g, i))),
        "retract": (y, lambda i: manifold.retract(at(x, i), at(v, i))),
        "transport": (manifold.transport(x, y, v), lambda i: manifold.transport(at(x, i), at(y, i), at(v, i))),
        "project": (manifold.project(plus(x, g, 0.1)), lambda i: manifold.project(plus(at(x, i), at(g, i), 0.1))),
    }
    for name in case.closed:
        second = v if name == "exp" else y
        form = getattr(manifold, name)
        results[name] = form(x, second), lambda i, form=form, second=second: form(at(x, i), at(second, i))
    for batched, looped in results.values():
        for i in range(3):
            tree(lambda a, b: assert_close(a, b, 1e4), at(batched, i), looped(i))


def at(x, i):
    return tree(lambda t: t[i], x)


@EVERY
def test_float32_points_stay_float32_and_on_the_manifold(case):
    half = torch.complex64 if case.dtype.is_complex else torch.float32
    x = tree(lambda t: t.to(half), point(case))
    x = case.manifold.project(x)
    y = case.manifold.retract(x, tree(lambda t: t.to(half), vector(case, x)))
    for tensor in leaves(y):
        assert tensor.dtype == half
    residual = case.manifold.residual(y)
    assert residual.dtype == torch.float32
    assert_close(residual, torch.zeros_like(residual))


@EVERY
def test_gradients_of_the_retraction_are_right(case):
    manifold, x = case.manifold, point(case)
    v = vector(case, x)

    def f(*parts):
        return case.dense(manifold.retract(x, manifold.tangent(x, parts if isinstance(x, tuple) else parts[0])))

    assert torch.autograd.gradcheck(f, tuple(t.detach().requires_grad_() for t in leaves(v)))


@EVERY
def test_shapes_that_cannot_be_points_are_refused(case):
    for shape in case.bad_shapes:
        with pytest.raises(ValueError, match=r"needs|tuple"):
            case.manifold.check_shape(*(shape if isinstance(shape[0], tuple) else (shape,)))


@cases("case", {name: case for name, case in MANIFOLDS.items() if name != "euclidean"})
def test_points_off_the_manifold_are_refused(case):
    x = point(case)
    with pytest.raises(ValueError, match=r"not a point of|NaN|finite"):
        case.manifold.check(scaled(x, math.nan))
