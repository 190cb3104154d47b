"""Solves, inverses and determinants: what scipy finds, in every way of differentiating and transforming them."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from mnvi.linalg import inverse, slogdet, solve
from tests.cases import cases
from tests.linalg.cases import square

# What torch itself imports at its first forward derivative and compilation.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`torch.jit.script",
        ".*should not be instantiated",
        "`torch._prims_common.check`",
        "Please use `torch.vmap`",
        "Skipping serialization of skipfiles",
    )
]

DTYPES = {"real": torch.float64, "complex": torch.complex128}
BATCHES = {"none": (), "few": (2,), "nested": (2, 3)}
SIZES = {"small": 3, "large": 40}  # batches of more than 32 rows go another way


def from_the_right(a, b):
    return solve(a, b, left=False)


def log_size(a):
    return slogdet(a)[1]


# Each with whether it takes a right side, and torch's own for single matrices, which is right.
FUNCTIONS = {
    "solve": (solve, 2, torch.linalg.solve),
    "solve-from-the-right": (lambda a, b: from_the_right(a, b.mT), 2, lambda a, b: torch.linalg.solve(a.mT, b).mT),
    "inverse": (inverse, 1, torch.linalg.inv),
    "log-determinant": (log_size, 1, lambda a: torch.linalg.slogdet(a).logabsdet),
}


def arguments(count, batch, n, dtype=torch.float64):
    a = square(*batch, n=n, dtype=dtype)
    return (a, torch.randn(*batch, n, 2, dtype=dtype))[:count]


def close(actual, expected, c=1e3):
    torch.testing.assert_close(actual, expected, rtol=0, atol=c * torch.finfo(actual.dtype).eps)


def one_by_one(function, count, *tensors):
    """``function`` of every matrix of a batch."""
    batch = tensors[0].shape[:-2]
    flat = zip(*(each.reshape(-1, *each.shape[-2:]) for each in tensors), strict=True)
    results = torch.stack([function(*each) for each in flat])
    return results.view(*batch, *results.shape[1:])


@cases("function", FUNCTIONS)
@cases("dtype", DTYPES)
@cases("batch", BATCHES)
def test_derivatives_in_every_mode(function, dtype, batch):
    function, count, _ = function
    inputs = [each.requires_grad_() for each in arguments(count, batch, 3, dtype)]
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@cases("n", SIZES)
@cases("function", FUNCTIONS)
@cases("dtype", DTYPES)
def test_first_and_second_derivatives_are_torchs_of_each_matrix(function, dtype, n):
    function, count, oracle = function
    inputs, directions = arguments(count, (2,), n, dtype), arguments(count, (2,), n, dtype)

    def derivatives(function):
        leaves = [each.clone().requires_grad_() for each in inputs]
        y = function(*leaves)
        first = torch.autograd.grad(
            (y * torch.linspace(0, 1, y.numel()).view(y.shape)).real.sum(), leaves, create_graph=True
        )
        along = sum((each * d.conj()).real.sum() for each, d in zip(first, directions, strict=True))
        return [y, *first, *torch.autograd.grad(along, leaves)]

    for actual, expected in zip(
        derivatives(function), derivatives(lambda *x: one_by_one(oracle, count, *x)), strict=True
    ):
        assert ((actual - expected).norm() / expected.norm()) < 1e-13


@cases("function", FUNCTIONS)
@cases("n", SIZES)
def test_forward_derivatives_of_one_argument_alone(function, n):
    function, count, oracle = function
    inputs, directions = arguments(count, (2,), n), arguments(count, (2,), n)
    for which in range(count):
        with forward_ad.dual_level():
            dual = [
                forward_ad.make_dual(x, t) if i == which else x
                for i, (x, t) in enumerate(zip(inputs, directions, strict=True))
            ]
            actual = forward_ad.unpack_dual(function(*dual)).tangent
            expected = forward_ad.unpack_dual(one_by_one(oracle, count, *dual)).tangent
        close(actual, expected)


TRANSFORMS = {
    "itself": lambda f: f,
    "jacrev": func.jacrev,
    "jacfwd": func.jacfwd,
    "hessian": lambda f: func.hessian(lambda *x: f(*x).sum()),
    "reverse-twice": lambda f: func.jacrev(func.jacrev(lambda *x: f(*x).sum())),
    "jvp": lambda f: lambda *x: func.jvp(f, x, tuple(map(torch.sin, x)))[1],
    "grad": lambda f: func.grad(lambda *x: f(*x).square().sum()),
}
# torch's own is called for one matrix at a time: its forward derivative under vmap is wrong from the second matrix on.
VMAPS = {
    "vmap": func.vmap,
    "vmap-twice": lambda f: lambda *x: func.vmap(func.vmap(f))(*(each[None] for each in x))[0],
    "vmap-over-the-last": lambda f: lambda *x: func.vmap(f, in_dims=-1)(*(each.movedim(0, -1) for each in x)),
}


@cases("over", VMAPS)
@cases("transform", TRANSFORMS)
@cases("function", FUNCTIONS)
def test_transforms_are_those_of_torchs_for_each_matrix(function, transform, over):
    function, count, oracle = function
    inputs = arguments(count, (3,), 3)
    expected = torch.stack([transform(oracle)(*(each[i] for each in inputs)) for i in range(3)])
    close(over(transform(function))(*inputs), expected)


@pytest.mark.parametrize("transform", ["jvp", "grad"])
@cases("n", SIZES)
@cases("function", FUNCTIONS)
def test_transforms_take_batches_too(function, transform, n):
    function, count, oracle = function
    transform, inputs = TRANSFORMS[transform], arguments(count, (3,), n)
    expected = torch.stack([transform(oracle)(*(each[i] for each in inputs)) for i in range(3)])
    close(transform(function)(*inputs), expected)


@cases("function", {key: FUNCTIONS[key] for key in ("solve", "solve-from-the-right")})
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0)], ids=["matrices", "right-sides"])
@cases("n", SIZES)
def test_vmap_over_one_argument_alone(function, in_dims, n):
    function, _, oracle = function
    inputs = [x if dim == 0 else x[0] for x, dim in zip(arguments(2, (3,), n), in_dims, strict=True)]
    actual = func.vmap(function, in_dims)(*inputs)
    expected = [oracle(*(x[i] if dim == 0 else x for x, dim in zip(inputs, in_dims, strict=True))) for i in range(3)]
    close(actual, torch.stack(expected))


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [((), (3,)), ((3,), ()), ((2, 1), (3,)), ((2, 3), (1, 3)), ((1,), (4, 2)), ((0,), ()), ((), (2, 0))],
)
@cases("n", SIZES)
def test_batches_broadcast(of_a, of_b, n):
    a, b = square(*of_a, n=n, dtype=torch.float64).requires_grad_(), torch.randn(*of_b, n, 2, dtype=torch.float64)
    b.requires_grad_()
    batch = torch.broadcast_shapes(of_a, of_b)
    x, y = solve(a, b), solve(a, b.mT, left=False)
    assert x.shape == (*batch, n, 2)
    assert y.shape == (*batch, 2, n)
    close(a @ x, b.expand(*batch, n, 2))
    close(y @ a, b.mT.expand(*batch, 2, n))
    gradients = torch.autograd.grad(x.sum() + y.sum(), (a, b))
    assert [each.shape for each in gradients] == [a.shape, b.shape]


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 3, 3), (0, 40, 40), (2, 0, 40, 40)])
@cases("dtype", DTYPES)
def test_nothing_has_an_inverse_and_the_determinant_1(shape, dtype):
    a = torch.zeros(shape, dtype=dtype, requires_grad=True)
    x, (sign, size) = inverse(a), slogdet(a)
    assert x.shape == shape
    assert x.dtype == sign.dtype == dtype
    assert size.dtype == torch.float64
    assert torch.equal(sign, torch.ones(shape[:-2], dtype=dtype))
    assert torch.equal(size, torch.zeros(shape[:-2], dtype=torch.float64))
    assert torch.autograd.grad(x.real.sum() + size.sum(), a)[0].shape == shape
    assert solve(a, a[..., :0]).shape == (*shape[:-1], 0)


@pytest.mark.parametrize("shape", [(4, 0), (40, 0), (2, 4, 0), (2, 40, 0)])
def test_no_right_sides_have_no_solutions(shape):
    b = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    x = solve(square(*shape[:-2], n=shape[-2], dtype=torch.float64), b)
    assert x.shape == shape
    assert torch.autograd.grad(x.sum(), b)[0].shape == shape


@cases("batch", BATCHES)
@cases("n", SIZES)
@cases("dtype", DTYPES)
def test_a_singular_matrix_says_so_by_its_numbers_and_leaves_the_others(batch, n, dtype):
    a, b = square(*batch, n=n, dtype=dtype), torch.randn(*batch, n, 2, dtype=dtype)
    good = a.clone()
    first = (0,) * len(batch)
    a[first] = torch.ones(n, n)
    for x, expected in ((solve(a, b), solve(good, b)), (inverse(a), inverse(good))):
        worst = x[first].abs().nan_to_num(torch.inf, torch.inf).max()
        assert worst > 1e12
        if batch:
            close(x.flatten(0, -3)[1:], expected.flatten(0, -3)[1:])
    sign, size = slogdet(a)
    good_size = slogdet(good)[1]
    assert size[first] < -25  # at most 40 rows within rounding of singular
    assert size[first] == -torch.inf or sign[first].abs() == pytest.approx(1)
    if batch:
        close(size.flatten()[1:], good_size.flatten()[1:])


@cases("batch", BATCHES)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
@cases("dtype", DTYPES)
def test_determinants_of_every_sign_are_those_of_scipy(batch, n, dtype):
    a = torch.randn(*batch, n, n, dtype=dtype)
    a[..., 0, :] *= torch.sign(torch.randn(*batch, 1))
    sign, size = slogdet(a)
    expected = torch.tensor([scipy.linalg.det(each.numpy()) for each in a.reshape(-1, n, n)], dtype=dtype).view(batch)
    assert ((sign * size.exp() - expected).abs() <= 1e-12 * n * expected.abs() * np.linalg.cond(a.numpy()).max()).all()


@pytest.mark.parametrize("n", [2, 40])
@cases("batch", BATCHES)
def test_determinants_that_overflow_have_a_logarithm(n, batch):
    a = square(*batch, n=n, dtype=torch.float64)
    for scale in (1e-150, 1e150):
        sign, size = slogdet(scale * a)
        assert torch.equal(sign, slogdet(a)[0])
        close(size - n * np.log(scale), slogdet(a)[1], 1e6)


@cases("batch", BATCHES)
@cases("n", SIZES)
def test_rows_of_any_size_are_solved_as_scipy_solves_them(batch, n):
    a = square(*batch, n=n, dtype=torch.float64) * torch.logspace(-3, 3, n, dtype=torch.float64)[:, None]
    b = torch.randn(*batch, n, 2, dtype=torch.float64)
    x = solve(a, b)
    # The backward error: ‖ax − b‖ against ‖a‖‖x‖.
    error = torch.linalg.matrix_norm(a @ x - b) / (torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(x))
    assert error.max() < 10 * n * torch.finfo(torch.float64).eps


@pytest.mark.parametrize(("batch", "n"), [((), 3), ((2, 2), 3), ((3,), 40)], ids=["one", "small", "large"])
def test_compiled_they_are_the_same_with_their_gradients(n, batch):
    def all_of_them(a, b):
        sign, size = slogdet(a)
        return solve(a, b), solve(a, b.mT, left=False), inverse(a), sign, size

    def with_gradients(function):
        a, b = (each.clone().requires_grad_() for each in inputs)
        results = function(a, b)
        return *results, *torch.autograd.grad(sum(each.sum() for each in results), (a, b))

    inputs = arguments(2, batch, n)
    expected = with_gradients(all_of_them)
    torch._dynamo.reset()
    actual = with_gradients(torch.compile(all_of_them, fullgraph=True))
    for one, other in zip(actual, expected, strict=True):
        close(one, other)


BAD = {
    "not-square": (torch.ones(2, 3), torch.ones(2, 1)),
    "other-rows": (torch.ones(3, 3), torch.ones(2, 1)),
    "other-batch": (torch.ones(2, 3, 3), torch.ones(5, 3, 1)),
    "other-dtype": (torch.ones(2, 3, 3), torch.ones(2, 3, 1, dtype=torch.float64)),
}


@cases("bad", BAD)
def test_what_does_not_fit_is_refused(bad):
    with pytest.raises((RuntimeError, ValueError)):
        solve(*bad)


@pytest.mark.parametrize("function", [lambda a: solve(a, torch.randn(2, 5, 1)), inverse, slogdet])
def test_matrices_that_are_not_square_are_refused(function):
    with pytest.raises(ValueError, match=r"needs a square shape \(..., n, n\), got \(2, 5, 4\)"):
        function(torch.randn(2, 5, 4))
