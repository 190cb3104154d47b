"""The laws of the matrix functions: every row of ``linalg_cases.CASES`` under every law here."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck

from mnvi.linalg import definite, givens, orthonormal, reflections, rotation_mesh, skew_coordinates, spectral
from mnvi.linalg.cayley import times_cayley
from mnvi.linalg.compact_wy import first_columns
from mnvi.linalg.elementary import skew, sym
from mnvi.linalg.exponential import exponential
from mnvi.linalg.exponential_rows import exponential_rows
from mnvi.linalg.polar import corrected, polar_factor
from mnvi.linalg.rotation_mesh import turn_layers, turns
from mnvi.manifolds.retractions import RETRACTIONS
from mnvi.manifolds.retractions.exp import geodesic
from tests.cases import cases
from tests.linalg.cases import CASES, FIELDS, REAL, Case, dense_reflections, layer_sizes, normal, on_point

DOUBLE = {"real": torch.float64, "complex": torch.complex128}
OF_DOUBLE = [
    pytest.param(case, dtype, id=f"{name}-{field}")
    for name, case in CASES.items()
    for field, dtype in DOUBLE.items()
    if dtype in case.dtypes
]
IN_DOUBLE = pytest.mark.parametrize(("case", "dtype"), OF_DOUBLE)
OF_EACH = pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(case, dtype, id=f"{name}-{dtype}") for name, case in CASES.items() for dtype in case.dtypes],
)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def relative(actual, expected):
    """‖actual − expected‖/‖expected‖, and 0 for nothing at all."""
    error, size = (torch.linalg.vector_norm(each).item() for each in (actual - expected, expected))
    return error / size if size else error


def assert_near(actual, expected, n, c):
    """Equal up to c·n·eps of their norms; the functions of CASES have condition numbers of a few units there."""
    for one, other in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        error, bound = relative(one, other), c * max(n, 10) * torch.finfo(one.dtype).eps
        assert error <= bound


def with_gradients(function, arguments, item_shapes=None):
    """Results and the gradients of a fixed linear function of them, the same one for every matrix of a batch."""
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    results = as_tuple(function(*leaves))
    smooth = [each for each in results if each.requires_grad]
    shapes = [each.shape for each in smooth] if item_shapes is None else item_shapes
    weights = [
        torch.linspace(-1, 2, math.prod(shape), dtype=each.real.dtype).to(each.dtype).view(shape).expand_as(each)
        for each, shape in zip(smooth, shapes, strict=True)
    ]
    gradients = torch.autograd.grad(smooth, leaves, weights)
    return tuple(each.detach() for each in results) + gradients, shapes


def assert_oracle(case: Case, function, dtype, n, batch):
    arguments = case.arguments(batch, n, dtype)
    results = as_tuple(function(*arguments))
    flat = zip(*(each.flatten(0, len(batch) - 1).numpy() for each in arguments), strict=True)
    expected = zip(*(as_tuple(case.oracle(*each)) for each in flat), strict=True)
    expected = [torch.from_numpy(np.stack(each)).to(dtype) for each in expected]
    expected = [e.to(r.dtype) if r.is_complex() else e.real for r, e in zip(results, expected, strict=True)]
    shapes = [each.flatten(0, len(batch) - 1) for each in results]
    assert_near(tuple(shapes), tuple(expected), n, 50)


@IN_DOUBLE
@pytest.mark.parametrize("n", [2, 3, 6])
def test_it_is_what_scipy_finds_for_each_matrix_of_a_batch(case, dtype, n):
    assert_oracle(case, case.function, dtype, n, (2, 2))


WRONG = {
    "sign": lambda case: lambda *x: tuple(-each for each in as_tuple(case.function(*x))),
    "batch": lambda case: lambda *x: tuple(each.flip(0) for each in as_tuple(case.function(*x))),
    "digits": lambda case: lambda *x: tuple(each * (1 + 1e-12) for each in as_tuple(case.function(*x))),
}


@IN_DOUBLE
@cases("broken", WRONG)
def test_a_broken_copy_fails_the_law_of_scipy(case, dtype, broken):
    with pytest.raises(AssertionError):
        assert_oracle(case, broken(case), dtype, 3, (2, 2))


SIZES = [(3, FIELDS), (150, FIELDS), (257, REAL)]


@pytest.mark.parametrize(
    ("case", "dtype", "n"),
    [
        pytest.param(case, dtype, n, id=f"{name}-{dtype}-{n}")
        for name, case in CASES.items()
        for n, dtypes in SIZES
        for dtype in case.dtypes
        if dtype in dtypes and n <= case.largest
    ],
)
def test_a_batch_is_its_matrices_with_any_number_of_threads(case, dtype, n):
    arguments = case.arguments((2,), n, dtype)
    with threads(1):
        each = [as_tuple(case.function(*(x[i] for x in arguments))) for i in range(2)]
    expected = tuple(map(torch.stack, zip(*each, strict=True)))
    for count in (1, 4):
        with threads(count):
            assert_near(case.function(*arguments), expected, n, 30)


@pytest.mark.parametrize("n", [3, 150])
@OF_EACH
def test_so_are_the_gradients(case, dtype, n):
    arguments = case.arguments((2,), n, dtype)
    with threads(1):
        each, shapes = zip(*(with_gradients(case.function, [x[i] for x in arguments]) for i in range(2)), strict=True)
    expected = tuple(map(torch.stack, zip(*each, strict=True)))
    for count in (1, 2):
        with threads(count):
            actual, _ = with_gradients(case.function, arguments, shapes[0])
        assert_near(actual, expected, n, 30)


SINGLE = [
    pytest.param(case, dtype, id=f"{name}-{dtype}")
    for name, case in CASES.items()
    for dtype in (torch.float32, torch.complex64)
    if dtype in case.dtypes
]


@pytest.mark.parametrize(("case", "dtype"), SINGLE)
def test_single_precision_is_double_precision_rounded(case, dtype):
    arguments = case.arguments((3,), 20, dtype)
    precise = [x.to(torch.complex128 if dtype.is_complex and x.is_complex() else torch.float64) for x in arguments]
    expected, _ = with_gradients(case.function, precise)
    actual, _ = with_gradients(case.function, arguments)
    assert_near(actual, tuple(e.to(a.dtype) for e, a in zip(expected, actual, strict=True)), 20, 30)


@IN_DOUBLE
def test_the_gradient_is_that_of_finite_differences(case, dtype):
    arguments = [x.requires_grad_() for x in case.arguments((2,), 3, dtype)]
    assert gradcheck(case.function, arguments, check_batched_grad=False)


@IN_DOUBLE
def test_the_second_derivative_is_that_of_finite_differences_or_is_refused(case, dtype):
    arguments = [x.requires_grad_() for x in case.arguments((), 3, dtype)]
    if case.orders > 1:
        assert gradgradcheck(case.function, arguments)
        return
    gradients = torch.autograd.grad(case.function(*arguments).real.square().sum(), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        sum(each.real.square().sum() for each in gradients).backward()


@OF_EACH
def test_an_empty_batch_gives_an_empty_batch(case, dtype):
    like = as_tuple(case.function(*case.arguments((2,), 3, dtype)))
    large = 40  # rows, from which another way is gone
    for n, batch in ((3, (0,)), (3, (2, 0)), (large, (0,))):
        arguments = [x.requires_grad_() for x in case.arguments(batch, n, dtype)]
        results = as_tuple(case.function(*arguments))
        for result, each in zip(results, like, strict=True):
            assert result.dtype == each.dtype
            assert result.shape[: len(batch)] == batch
            assert result.dim() == each.dim() + len(batch) - 1
        gradients = torch.autograd.grad([r.real.sum() for r in results if r.requires_grad], arguments)
        assert [g.shape for g in gradients] == [a.shape for a in arguments]


@IN_DOUBLE
def test_the_arguments_stay_as_they_are_in_any_layout(case, dtype):
    arguments = case.arguments((2,), 5, dtype)
    strided = [x.mT.contiguous().mT if x.dim() > 2 else x for x in arguments]
    copies = [x.clone() for x in strided]
    expected, actual = (as_tuple(case.function(*each)) for each in (arguments, strided))
    assert all(map(torch.equal, strided, copies))
    assert_near(actual, expected, 5, 30)


# Functions that have a way of their own beside the table.


@pytest.mark.parametrize("norm", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("dtype", DOUBLE.values(), ids=list(DOUBLE))
@pytest.mark.parametrize("shape", [(20,), (1, 20), (30, 20), (2, 0, 20)])
def test_rows_times_the_exponential(shape, dtype, norm):
    a, x = normal(20, 20, dtype=dtype), normal(*shape, dtype=dtype)
    a = a * (norm / torch.linalg.matrix_norm(a, 1))
    expected = x @ torch.from_numpy(scipy.linalg.expm(a.numpy()))
    assert_near(exponential_rows(x, a), expected, 20, 10 * max(1.0, norm))


def block_derivative(function, x, u):
    """The derivative along u as the upper right block of f([[x, u], [0, x]]) (Mathias, 1996), by scipy."""
    blocks = np.block([[x, u], [np.zeros_like(x), x]])
    return function(blocks)[: len(x), len(x) :].real


@pytest.mark.parametrize("eigenvalues", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (0.5, 0.5 + 1e-9, 3.0), (0.1, 1.0, 7.0)])
def test_derivatives_hold_where_eigenvalues_coincide(eigenvalues):
    q, u = orthonormal.random(3, 3, dtype=torch.float64), sym(normal(3, 3, dtype=torch.float64))
    x = sym(q * torch.tensor(eigenvalues, dtype=torch.float64) @ q.mT)
    for function, oracle in ((spectral.exp, scipy.linalg.expm), (spectral.log, scipy.linalg.logm)):
        leaf = x.clone().requires_grad_()
        (actual,) = torch.autograd.grad(spectral.apply(function, leaf), leaf, u)  # symmetric: it is its own adjoint
        expected = torch.from_numpy(block_derivative(oracle, x.numpy(), u.numpy()))
        assert relative(actual, expected) < 1e-7  # scipy's own error, where the blocks have no eigenvectors


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 80.0), (torch.float64, 700.0)])
def test_derivatives_of_the_symmetric_exponential_do_not_overflow_before_it_does(dtype, size):
    values = torch.tensor([-size, 0.0, size], dtype=dtype)
    x = values.diag().requires_grad_()
    (actual,) = torch.autograd.grad(spectral.apply(spectral.exp, x).sum(), x)
    v = values.numpy().astype(np.longdouble)
    gap = v[:, None] - v
    expected = np.where(gap == 0, np.exp(v), (np.exp(v[:, None]) - np.exp(v)) / np.where(gap == 0, 1, gap))
    np.testing.assert_allclose(
        actual.numpy(), expected.astype(actual.numpy().dtype), rtol=1000 * torch.finfo(dtype).eps
    )


def test_a_rotation_of_disjoint_pairs_is_the_exponential_of_its_generator():
    x = orthonormal.random(6, 6, dtype=torch.float64)
    pairs, theta = torch.tensor([[0, 4, 2], [3, 1, 5]]), torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    a = torch.zeros(6, 6, dtype=torch.float64)
    for (j, k), t in zip(pairs.T.tolist(), theta, strict=True):
        a[j, k], a[k, j] = t / 2**0.5, -t / 2**0.5
    expected = x @ torch.from_numpy(scipy.linalg.expm(a.numpy()))
    for move in (givens.rotate_, givens.exponential_):
        moved = x.clone()
        move(moved, pairs, theta)
        assert_near(moved, expected, 6, 30)
    grad, h = normal(6, 6, dtype=torch.float64), 1e-5
    slopes = []
    for j, k in pairs.T.tolist():
        a = np.zeros((6, 6))
        a[j, k], a[k, j] = h / 2**0.5, -h / 2**0.5
        ahead, behind = (x.numpy() @ scipy.linalg.expm(sign * a) for sign in (1, -1))
        slopes.append(((ahead - behind) * grad.numpy()).sum() / (2 * h))
    expected = torch.tensor(slopes, dtype=torch.float64)
    assert relative(givens.partial_derivatives(x, grad, pairs), expected) < 1e-8
    every = givens.all_partial_derivatives(x, grad)
    assert relative(every[pairs[0], pairs[1]], expected) < 1e-8
    assert torch.equal(every, -every.mT)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("dtype", DOUBLE.values(), ids=list(DOUBLE))
def test_a_unitary_matrix_has_the_angles_of_a_mesh(n, dtype):
    q = orthonormal.random(2, n, n, dtype=dtype)
    if not dtype.is_complex:
        q[torch.linalg.det(q) < 0, 0] *= -1
    theta, phi, phases = (torch.from_numpy(each) for each in rotation_mesh.mesh_angles(q.numpy()))
    last = torch.polar(torch.ones_like(phases), phases).diag_embed() if dtype.is_complex else torch.eye(n).to(q)
    blocks = turns(theta, phi) if dtype.is_complex else turns(theta)
    product = last @ turn_layers(torch.eye(n, dtype=dtype).expand(2, n, n), blocks, layer_sizes(n, n))
    assert_near(product, q, n, 50)


@pytest.mark.parametrize(("n", "count"), [(1, 1), (4, 2), (6, 6), (40, 12)])
def test_an_orthogonal_matrix_has_vectors_of_reflections(n, count):
    v = normal(2, count, n, dtype=torch.float64)
    q = torch.stack([torch.from_numpy(dense_reflections(each.numpy())) for each in v])
    u, error = reflections.decompose(q, count)
    assert error.max() < 1e-13
    again = torch.stack([torch.from_numpy(dense_reflections(each.numpy())) for each in u])
    assert_near(again, q, n, 50)
    if count < n:  # −Q needs n − count reflections more
        assert reflections.decompose(-q, count)[1].min() > 0.1


@pytest.mark.parametrize("dtype", FIELDS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_parts_of_a_matrix_are_exactly_hermitian_and_skew(size, dtype):
    for n in (1, 5, 37):
        a = size * normal(2, n, n, dtype=dtype)
        assert torch.equal(skew(a), -skew(a).mH)
        assert torch.equal(sym(a), sym(a).mH)
        assert_near((sym(a) + skew(a)) / size, a / size, n, 1)


def test_skew_matrices_have_as_many_coordinates_as_degrees_of_freedom():
    x = normal(2, 10, dtype=torch.float64)
    places = skew_coordinates.below_diagonal(5, x.device)
    a = skew_coordinates.to_skew(x, places, 5)
    assert torch.equal(a, -a.mT)
    assert torch.equal(a[0, 1:2, 0], x[0, :1])
    assert torch.equal(skew_coordinates.from_skew(a, places), x)
    y = normal(2, 5, 5, dtype=torch.float64)
    b = skew_coordinates.to_skew_hermitian(y)
    assert torch.equal(b, -b.mH)
    assert torch.equal(skew_coordinates.from_skew_hermitian(b), y)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("smallest", [-3.0, 0.0, 1e-30, 1e-3])
def test_guards_make_matrices_definite_and_leave_those_that_are(smallest, dtype):
    q = orthonormal.random(2, 5, 5, dtype=dtype)
    values = torch.tensor([smallest, 0.5, 1, 2, 4], dtype=dtype)
    s = sym(q * values @ q.mT)
    guarded = definite.ensure_definite(s)
    assert definite.definite(guarded).all()
    assert definite.admissible(guarded).all()
    if smallest == 1e-3:
        assert torch.equal(guarded, s)
    raised = torch.maximum(values, 4 * definite.floor(s) * torch.ones_like(values)).sort().values
    expected = torch.stack([torch.from_numpy(scipy.linalg.eigvalsh(each.double().numpy())) for each in guarded])
    torch.testing.assert_close(expected, raised.double().expand(2, 5), rtol=0, atol=400 * torch.finfo(dtype).eps)
    x = normal(2, 5, 5, dtype=dtype)
    assert torch.equal(definite.shorten(x, s), s)
    long = definite.shorten(x, 1e30 * s)
    bound = definite.reach(dtype) * x.abs().amax((-2, -1))
    torch.testing.assert_close(long.abs().amax((-2, -1)), bound, rtol=1e-5, atol=0)
    turned = torch.nn.functional.cosine_similarity(long.flatten(1).double(), s.flatten(1).double())
    assert ((1 - turned).abs() < 1e-6).all()


# Columns that stay orthonormal to 10·n·eps whatever comes.


def cyclic(n, angle):
    """Skew-symmetric with eigenvalues ±angle·i only, exactly so."""
    a = torch.zeros(n, n, dtype=torch.float64)
    even = torch.arange(0, n - 1, 2)
    a[even, even + 1], a[even + 1, even] = angle, -angle
    return a


ADVERSARIES = {
    "gaussian": lambda x: x,
    "tiny": lambda x: 1e-30 * x,
    "huge": lambda x: 1e30 * x,
    "zero": torch.zeros_like,
    "some-zero": lambda x: x * (torch.arange(x.shape[-2]) % 3 > 0)[:, None],
    "parallel-rows": lambda x: x[..., :1, :].expand_as(x),
    "nearly-parallel-rows": lambda x: x[..., :1, :] + 1e-3 * x,
    "parallel-columns": lambda x: 3 * x[..., :, :1].expand_as(x),
    "nearly-parallel-columns": lambda x: x[..., :, :1] + torch.finfo(x.dtype).eps ** 0.5 * x,
    "positive": lambda x: x.abs().to(x.dtype),
    "of-all-sizes": lambda x: x * torch.logspace(-30, 30, x.shape[-2], dtype=torch.float64)[:, None].to(x),
    "of-all-sizes-across": lambda x: x * torch.logspace(-30, 30, x.shape[-1], dtype=torch.float64).to(x),
    "of-size-ten": lambda x: 10 * x / x.abs(),
    "repeated-angles": lambda x: rotated_planes(x, 1.0),
    "angles-near-pi": lambda x: rotated_planes(x, math.pi * (1 - torch.finfo(x.dtype).eps)),
    "long-repeated-angles": lambda x: rotated_planes(x, 20.0),
}


def rotated_planes(x, angle):
    """From an x (..., n, p), equal singular values ``angle`` of its first columns in a random frame."""
    q = orthonormal.random(x.shape[-2], x.shape[-2], dtype=x.dtype)
    return (q @ cyclic(x.shape[-2], angle).to(x) @ q.mH)[..., : x.shape[-1]]


def tangent_step(function):
    def apply(x):
        point = orthonormal.random(*x.shape, dtype=x.dtype)
        return function(point, orthonormal.tangent(point, x))

    return apply


def vectors(function):
    return lambda x: function(reflections.unit_rows(x))


def eye(x):
    return torch.eye(x.shape[-2], dtype=x.dtype)


def turned(x):
    n = x.shape[-2]
    count = sum(layer_sizes(n, n))
    angles = x.real.flatten().repeat(2)[:count]
    return turn_layers(eye(x), turns(angles, angles.flip(0) if x.is_complex() else None), layer_sizes(n, n))


def rotated(x):
    n = x.shape[-2]
    q = orthonormal.random(n, n, dtype=x.dtype)
    for shift in range(10):
        pairs = torch.randperm(n)[: n // 2 * 2].view(2, -1)
        givens.rotate_(q, pairs, x.flatten().repeat(6)[shift : shift + n // 2])
    return q


def exponentiated(x):
    q, pairs = orthonormal.random(*eye(x).shape, dtype=x.dtype), torch.tril_indices(x.shape[-2], x.shape[-2], -1)
    givens.exponential_(q, pairs.flip(0), x.expand(x.shape).mT[: x.shape[-2]][pairs[0] % x.shape[-1], pairs[1]])
    return q


# Each takes any matrix (..., n, p) and returns one with orthonormal columns; those of skew matrices take square ones.
ORTHONORMAL = {
    "exponential": (lambda x: exponential(x - x.mH), FIELDS, True),
    "times-cayley": (lambda x: times_cayley(eye(x), x - x.mH), FIELDS, True),
    "polar-factor": (polar_factor, FIELDS, False),
    "polar-factor-square": (polar_factor, FIELDS, True),
    "polar-factor-of-determinant-1": (lambda x: polar_factor(x, torch.ones_like(x[..., 0, 0])), REAL, True),
    "random": (lambda x: corrected(orthonormal.random(*x.shape, dtype=x.dtype)), FIELDS, False),
    **{
        f"{name}{'-square' * is_square}": (tangent_step(function), FIELDS, is_square)
        for name, function in {
            **{name: on_point(name) for name in RETRACTIONS if name != "exp"},
            "canonical-geodesic": geodesic,
            "euclidean-geodesic": lambda x, v: geodesic(x, v, 1.0),
        }.items()
        for is_square in (False, True)
    },
    "compact-wy": (vectors(lambda u: first_columns(u, u.shape[-1])), REAL, True),
    "compact-wy-thin": (vectors(lambda u: first_columns(u, u.shape[-1] // 2)), REAL, True),
    "reflections": (vectors(lambda u: reflections.reflect(eye(u), u)), REAL, True),
    "haar-vectors": (lambda x: first_columns(reflections.haar_vectors(x), x.shape[-1]), REAL, True),
    "turns": (turned, FIELDS, True),
    "givens": (rotated, REAL, True),
    "exponential-in-place": (exponentiated, REAL, True),
}
OF_ORTHONORMAL = [
    pytest.param(function, is_square, dtype, id=f"{name}-{dtype}")
    for name, (function, dtypes, is_square) in ORTHONORMAL.items()
    for dtype in dtypes
]


@pytest.mark.parametrize(("function", "is_square", "dtype"), OF_ORTHONORMAL)
@cases("change", ADVERSARIES)
def test_orthonormal_whatever_comes(function, is_square, dtype, change):
    for n in (2, 5, 40) if dtype.is_complex else (2, 5, 40, 150):
        x = change(normal(n, n if is_square else n // 2, dtype=dtype))
        q = function(x)
        residual = orthonormal.residual(q).item()
        assert residual <= 10 * n * torch.finfo(dtype).eps, (n, residual / (n * torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-5, 1e-7])
def test_compact_wy_forms_of_many_nearly_parallel_vectors_are_orthogonal(noise, dtype):
    for n in (200, 400):
        u = reflections.unit_rows(normal(1, n, dtype=dtype) + noise * normal(n, n, dtype=dtype))
        assert orthonormal.residual(first_columns(u, n)) <= 10 * n * torch.finfo(dtype).eps
