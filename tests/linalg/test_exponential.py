"""The matrix exponential against scipy's and torch's, its derivatives against finite differences and torch's."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mnvi.linalg.exponential import exponential, times_exponential
from tests.cases import cases
from tests.laws import assert_close

REAL, COMPLEX = torch.float64, torch.complex128
NORMS = [0.0, 1e-8, 1e-3, 0.1, 0.5, 1.0, 1.3, 3.0, 10.0, 100.0, 1e3]


def gaussian(n, norm, dtype=REAL):
    a = torch.randn(n, n, dtype=dtype)
    return a * (norm / torch.linalg.matrix_norm(a, 2))


def skew(n, norm, dtype=REAL):
    a = gaussian(n, 1.0, dtype)
    a = a - a.mH
    return a * (norm / torch.linalg.matrix_norm(a, 2))  # exactly skew-Hermitian, as a product of each with a number


def scaled_nilpotent(size):
    return size * torch.ones(5, 5, dtype=REAL).triu(1)


MATRICES = {
    "gaussian": lambda norm, dtype: gaussian(6, norm, dtype),
    "skew": lambda norm, dtype: skew(6, norm, dtype),
    "hermitian": lambda norm, dtype: -(lambda a: a @ a.mH)(gaussian(6, norm**0.5, dtype)),
    "one-by-one": lambda norm, dtype: -gaussian(1, norm, dtype).abs().to(dtype),
}


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def with_gradient(function, a, g):
    a = a.detach().clone().requires_grad_()
    y = function(a)
    return y.detach(), torch.autograd.grad(y, a, g)[0]


@cases("make", MATRICES)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("norm", NORMS)
def test_equals_scipys_exponential(make, dtype, norm):
    a = make(norm, dtype)
    tolerance = 100 * max(1.0, norm) * torch.finfo(dtype).eps  # the condition number is at least the norm
    expected = torch.from_numpy(scipy.linalg.expm(a.numpy()))
    assert (exponential(a) - expected).norm() <= tolerance * expected.norm()


@cases("make", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("norm", [each for each in NORMS if each <= 10])
def test_single_precision_equals_torchs_exponential(make, dtype, norm):
    a = make(norm, dtype)
    g, double = torch.randn_like(a), COMPLEX if dtype.is_complex else REAL
    y, grad = with_gradient(exponential, a, g)
    expected, expected_grad = with_gradient(torch.matrix_exp, a.to(double), g.to(double))
    assert y.dtype == grad.dtype == dtype
    assert relative(y.to(double), expected) < 1e-6 * max(1.0, norm / 3)
    assert relative(grad.to(double), expected_grad) < 1e-5


@pytest.mark.parametrize("make", [gaussian, skew])
def test_single_precision_equals_torchs_exponential_at_the_size_of_a_layer(make):
    a, g = make(128, 3.0, torch.float32), torch.randn(128, 128)
    y, grad = with_gradient(exponential, a, g)
    expected, expected_grad = with_gradient(torch.matrix_exp, a.double(), g.double())
    assert relative(y.double(), expected) < 1e-6
    assert relative(grad.double(), expected_grad) < 1e-5


@cases("make", MATRICES)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("norm", [0.0, 1e-8, 0.1, 0.6, 1.19, 1.21, 3.0, 20.0])
def test_gradient_equals_torchs_in_all_directions(make, dtype, norm):
    a = make(norm, dtype)
    g = torch.randn_like(a)
    for actual, expected in zip(with_gradient(exponential, a, g), with_gradient(torch.matrix_exp, a, g), strict=True):
        assert relative(actual, expected) < 1e-13 * max(1.0, norm)


@cases("make", MATRICES)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("norm", [1e-4, 1.0, 8.0])
def test_derivatives_are_those_of_finite_differences(make, dtype, norm):
    a = make(norm, dtype).requires_grad_()
    assert gradcheck(exponential, a)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("make", [gaussian, skew])
def test_second_derivatives(make, dtype):
    a = torch.stack([make(3, 0.3, dtype), make(3, 3.0, dtype)]).requires_grad_()
    assert gradgradcheck(exponential, a)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("scale", [0.1, 6.0])
def test_the_skew_part_of_the_gradient_is_enough_for_a_matrix_made_skew(dtype, scale):
    def short(x):
        return exponential(x - x.mH, skew_hermitian=True)

    x = (scale * torch.randn(2, 3, 3, dtype=dtype)).requires_grad_()
    assert gradcheck(short, x)
    assert gradgradcheck(short, x)


@pytest.mark.parametrize("size", [2.0**-200, 2.0**100, 2.0**600])
def test_second_derivatives_are_linear_in_the_gradient_of_any_size(size):
    x, g, direction = (torch.randn(4, 4, dtype=REAL) for _ in range(3))

    def second(g):
        a = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(exponential(a), a, g, create_graph=True)
        return torch.autograd.grad(first, a, direction)[0]

    assert_close(second(size * g) / size, second(g))


def test_third_derivative():
    a = gaussian(2, 1.0).requires_grad_()
    direction, total = torch.randn(2, 2, dtype=REAL), exponential(a).sum()
    for _ in range(3):
        total = (torch.autograd.grad(total, a, create_graph=True)[0] * direction).sum()
    blocks = torch.kron(torch.eye(4, dtype=REAL), a.detach())  # exp of this with E above it holds the series in t
    blocks += torch.kron(torch.ones(3, dtype=REAL).diag(1), direction)
    assert_close(total, 6 * torch.matrix_exp(blocks)[:2, 6:].sum())


@pytest.mark.parametrize("make", [gaussian, skew])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
def test_a_batch_of_different_norms_is_each_of_its_matrices(make, dtype):
    a = torch.stack([make(4, norm, dtype) for norm in (0.0, 1e-8, 0.5, 2.0, 40.0, 300.0)]).reshape(2, 3, 4, 4)
    g = torch.randn_like(a)
    whole = with_gradient(exponential, a, g)
    for index in np.ndindex(2, 3):
        for together, alone in zip(whole, with_gradient(exponential, a[index], g[index]), strict=True):
            assert relative(together[index], alone) < 1e-12


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12])
def test_nilpotent_matrices_of_any_size(size):
    """exp is the polynomial I + a + ... + a⁴/24, whose terms differ by many orders of magnitude."""
    a = scaled_nilpotent(size)
    expected = torch.stack([torch.linalg.matrix_power(a, k) / math.factorial(k) for k in range(5)]).sum(0)
    assert ((exponential(a) - expected).abs() <= 1e-13 * expected.abs()).all()


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
def test_a_huge_norm_with_small_powers_costs_no_accuracy(size):
    a = torch.tensor([[1.0, size], [0, -1]], dtype=REAL)
    expected = torch.tensor([[math.e, size * math.sinh(1)], [0, 1 / math.e]], dtype=REAL)
    assert ((exponential(a) - expected).abs() <= 1e-13 * expected.abs()).all()


@pytest.mark.parametrize("norm", [1.0, 1e2, 1e4, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, REAL], ids=str)
def test_skew_matrices_of_any_norm_have_unitary_exponentials(norm, dtype):
    n = 8
    a = torch.stack([skew(n, norm, dtype), skew(n, 1.0, dtype)]).requires_grad_()
    q = exponential(a)
    assert torch.isfinite(torch.autograd.grad(q.abs().sum(), a, retain_graph=True)[0]).all()
    eps = torch.finfo(dtype).eps
    assert torch.linalg.matrix_norm(q.mH @ q - torch.eye(n)).max() < 10 * n * eps
    assert relative(q[1], torch.matrix_exp(a[1])) < 20 * eps * n
    if norm <= 1e4:  # the error in the angles is that of a's own rounding
        double = a.detach().to(COMPLEX)
        assert relative(q.to(COMPLEX), torch.matrix_exp(double)) < 20 * norm * eps


@pytest.mark.parametrize("angle", [4.4, math.pi, 1e3, 1e5])
def test_plane_rotations(angle):
    a = torch.tensor([[0, -angle], [angle, 0]], dtype=REAL)
    c, s = math.cos(angle), math.sin(angle)
    x = torch.randn(3, 2, dtype=REAL)
    assert_close(exponential(a), torch.tensor([[c, -s], [s, c]], dtype=REAL), 10 + angle)
    assert_close(times_exponential(x, a), x @ torch.tensor([[c, -s], [s, c]], dtype=REAL), 10 + angle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_angles_and_growth_rates(dtype):
    """Also those at the ends of what the polynomials reach."""
    x = torch.linspace(0, 20, 5000, dtype=dtype)
    turn = torch.tensor([[0.0, -1], [1, 0]], dtype=dtype)
    q, eps = exponential(x[:, None, None] * turn), torch.finfo(dtype).eps
    for actual, expected in ((q[:, 0, 0], x.double().cos()), (q[:, 1, 0], x.double().sin())):
        assert ((actual - expected).abs() < 10 * eps * x.clamp(min=1)).all()
    x = torch.cat([-x, x])[:, None, None]
    assert ((exponential(x) / x.double().exp() - 1).abs() < 100 * eps * x.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, REAL, torch.complex64, COMPLEX])
def test_zero_gives_the_identity_exactly(dtype):
    a = torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True)
    g = torch.randn_like(a)
    y, grad = with_gradient(exponential, a, g)
    assert torch.equal(y, torch.eye(3, dtype=dtype).expand(2, 3, 3))
    assert torch.equal(grad, g)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 4, 4), (2, 0, 0)])
def test_empty_batches(shape):
    a = torch.zeros(shape)
    for each in with_gradient(exponential, a, a):
        assert each.shape == shape


class Products(TorchDispatchMode):
    """Counts the matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.baddbmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("norm", "corner", "products"), [(4.39, -1, 12), (8.79, -1, 15), (17.5, -1, 18), (2.34, 1, 12), (4.69, 1, 15)]
)
def test_three_products_for_each_of_the_polynomial_and_each_squaring(norm, corner, products):
    a = torch.zeros(20, 20)
    a[0, 1], a[1, 0] = norm, norm * corner
    a.requires_grad_()
    with Products() as counter:
        exponential(a).sum().backward()
    assert counter.count == products
    if corner < 0:
        with Products() as counter:
            exponential(a, skew_hermitian=True).sum().backward()
        assert counter.count == products - 1


def test_works_without_gradients_and_under_functorch():
    a, g = skew(5, 2.0), torch.randn(5, 5, dtype=REAL)
    expected, expected_grad = with_gradient(torch.matrix_exp, a, g)
    with torch.no_grad():
        y = exponential(a.clone().requires_grad_())
    assert not y.requires_grad
    assert_close(y, expected)
    assert_close(torch.func.grad(lambda a: (exponential(a) * g).sum())(a), expected_grad)
    hessian_rows = torch.func.grad(lambda a: (torch.func.grad(lambda a: (exponential(a) * g).sum())(a) * g).sum())(a)
    assert torch.isfinite(hessian_rows).all()
    base = torch.randn(5, 5, dtype=REAL, requires_grad=True)
    (base @ exponential(a)).sum().backward()
    assert base.grad is not None
    assert a.grad is None


def test_the_argument_and_the_gradient_stay_as_they_are():
    a, g = skew(5, 30.0).requires_grad_(), torch.randn(5, 5, dtype=REAL)
    before, g_before, y = a.detach().clone(), g.clone(), exponential(a)
    first = torch.autograd.grad(y, a, g, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, a, g)[0], first)
    assert torch.equal(a, before)
    assert torch.equal(g, g_before)


def test_layouts_do_not_matter():
    a = torch.randn(4, 3, 2, 4, dtype=REAL).permute(2, 1, 0, 3)
    g = torch.ones((), dtype=REAL).expand(a.shape)
    for actual, expected in zip(
        with_gradient(exponential, a, g), with_gradient(exponential, a.contiguous(), g.clone()), strict=True
    ):
        assert_close(actual, expected)


def test_full_precision_under_autocast():
    a, g = skew(32, 3.0, torch.float32), torch.randn(32, 32)
    expected = with_gradient(exponential, a, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for actual, exact in zip(with_gradient(exponential, a, g), expected, strict=True):
            assert torch.equal(actual, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_compiled_it_is_the_same(dtype):
    torch._dynamo.reset()
    compiled = torch.compile(exponential, fullgraph=True, backend="aot_eager")
    for length in (1.0, 1000.0):
        a = skew(4, length, dtype)
        for actual, expected in zip(*(with_gradient(each, a, a) for each in (compiled, exponential)), strict=True):
            assert_close(actual, expected)
    with pytest.raises(ValueError, match="must be finite"):
        compiled(torch.full_like(a, math.nan))
    torch._dynamo.reset()


TRANSFORMS = {
    "jvp": lambda f, a: torch.func.jvp(f, (a,), (a,))[1],
    "grad": lambda f, a: torch.func.grad(lambda b: f(b).square().sum())(a),
    "jacrev": lambda f, a: torch.func.jacrev(f)(a),
}


# torch's own: its forward derivatives load decompositions written in it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@cases("transform", TRANSFORMS)
def test_compiled_transforms_are_those_of_torchs(transform):
    torch._dynamo.reset()
    a = gaussian(3, 1.0)
    compiled = torch.compile(lambda a: transform(exponential, a), backend="aot_eager")
    assert_close(compiled(a), transform(torch.linalg.matrix_exp, a))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_compiled_call_has_forward_derivatives():
    torch._dynamo.reset()
    a, compiled = gaussian(3, 1.0), torch.compile(exponential, backend="aot_eager")
    compiled(a)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(compiled(forward_ad.make_dual(a, a))).tangent
    assert_close(tangent, TRANSFORMS["jvp"](torch.linalg.matrix_exp, a))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (torch.full((2, 2), math.nan), r"a weight must be finite, got NaN or infinite entries in shape \(1, 2, 2\)"),
        (torch.tensor([[0, math.inf], [-math.inf, 0]]), "a weight must be finite"),
        (torch.tensor([[0, complex(0, math.nan)], [0, 0]]), "a weight must be finite"),
        (torch.zeros(3, 2), r"a weight needs a square shape \(..., n, n\), got \(3, 2\)"),
        (torch.zeros(3), r"a weight needs a square shape \(..., n, n\), got \(3,\)"),
        (torch.zeros(2, 2, dtype=torch.float16), r"a weight must have a dtype of .*, got torch\.float16"),
        (torch.zeros(2, 2, dtype=torch.int64), r"a weight must have a dtype of .*, got torch\.int64"),
    ],
    ids=["nan", "infinite", "complex-nan", "not-square", "vector", "half", "integer"],
)
def test_bad_input_is_refused(a, message):
    with pytest.raises(ValueError, match=message):
        exponential(a, "a weight")
    with pytest.raises(ValueError, match=message.replace("a weight", "the argument of the exponential")):
        exponential(a)
