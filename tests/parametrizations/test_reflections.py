"""Products of reflections and orthogonal weight normalisation against torch's own, dense products and autograd."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mnvi
from mnvi.manifolds import Orthogonal
from mnvi.parametrizations import CWY, OWN, TCWY, Householder
from tests.cases import cases
from tests.laws import assert_close

pytestmark = pytest.mark.usefixtures("float64")

SIZES = [(1, 1), (2, 1), (2, 2), (5, 3), (5, 5), (6, 4), (6, 6)]
EACH = pytest.mark.parametrize(("n", "count"), SIZES)
PRODUCTS = pytest.mark.parametrize("kind", [CWY, Householder])


def reflection(v):
    return torch.eye(len(v)) - 2 * torch.outer(v, v) / v.dot(v)


def dense(v):
    """H(v₁)···H(v_L) by dense matrices."""
    product = torch.eye(v.shape[-1])
    for each in v:
        product = product @ reflection(each)
    return product


def residual(q):
    return torch.linalg.matrix_norm(q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).max()


def plane(n, angle):
    """A rotation of the first two of n coordinates."""
    q, angle = torch.eye(n), torch.tensor(angle)
    q[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return q


# The matrices.


@EACH
@PRODUCTS
def test_the_product_is_the_dense_one(kind, n, count):
    v = torch.randn(count, n)
    assert_close(kind(count).matrix(v), dense(v))


@EACH
@PRODUCTS
def test_the_product_is_torchs(kind, n, count):
    columns = torch.randn(n, count).tril(-1) + torch.eye(n, count)
    expected = torch.linalg.householder_product(columns, 2 / columns.square().sum(0))
    assert_close(kind(count).matrix(columns.mT)[:, :count], expected)
    assert_close(TCWY().matrix(columns.mT), expected)


@EACH
def test_truncated_is_the_first_columns(n, count):
    v = torch.randn(3, count, n)
    assert_close(TCWY().matrix(v), CWY(count).matrix(v)[..., :count])


KINDS = {
    "gaussian": lambda v: v,
    "tiny": lambda v: 1e-30 * v,
    "huge": lambda v: 1e30 * v,
    "of-all-lengths": lambda v: v * torch.logspace(-44, 37, v.shape[-2], dtype=torch.float64)[:, None].to(v),
    "zero": torch.zeros_like,
    "some-zero": lambda v: v * (torch.arange(v.shape[-2]) % 3 > 0)[:, None],
    "equal": lambda v: v[..., :1, :].expand_as(v),
    "nearly-parallel": lambda v: v[..., :1, :] + 1e-3 * v,
    "nearly-parallel-or-opposite": lambda v: v[..., :1, :] * v[..., :1].sign() + 1e-5 * v,
    "of-few-directions": lambda v: v[..., :, :2] @ v[..., -2:, :] + 1e-4 * v,
    "half-of-them-nearly-parallel": lambda v: torch.cat([v[::2], v[:1] + 1e-3 * v[1::2]]),
    "positive": lambda v: v.abs(),
}


@cases("change", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "count"), [(3, 3), (16, 16), (64, 63), (200, 200), (400, 400)])
def test_orthogonal_whatever_the_vectors(n, count, dtype, change):
    v = change(torch.randn(count, n, dtype=dtype)).requires_grad_()
    for kind in (CWY(count), Householder(count)):
        q = kind.matrix(v)
        assert residual(q) < 10 * n * torch.finfo(dtype).eps
        assert torch.linalg.slogdet(q.double()).sign == (-1) ** count
        assert torch.autograd.grad(q[0].sum(), v)[0].isfinite().all()
    assert residual(TCWY().matrix(v)) < 10 * n * torch.finfo(dtype).eps


@cases("change", KINDS)
def test_the_product_is_that_of_reflections_one_by_one_whatever_the_vectors(change):
    v = change(torch.randn(60, 60))
    difference = torch.linalg.matrix_norm(CWY(60).matrix(v) - Householder(60).matrix(v))
    assert difference < 10 * 60 * torch.finfo(v.dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [64, 511, 512])
def test_large_ones_are_orthogonal(count, dtype):
    assert residual(CWY(count).matrix(torch.randn(count, 512, dtype=dtype))) < 10 * 512 * torch.finfo(dtype).eps


@pytest.mark.parametrize("count", [3, 4])
def test_weight_decay_does_no_harm(count):
    layer = mnvi.constrain(nn.Linear(4, 4, bias=False, dtype=torch.float32), "weight", CWY(count))
    before = layer.weight.clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=9.0)
    for _ in range(50):  # v shrinks to 10⁻⁵⁰, which is zero in float32
        (0 * layer.weight.sum()).backward()
        optimiser.step()
        assert residual(layer.weight) < 40 * torch.finfo(torch.float32).eps
        assert torch.linalg.slogdet(layer.weight).sign == (-1) ** count
    assert not layer.parametrizations.weight.original.any()
    assert not torch.equal(before, layer.weight)


# Derivatives.

MAPS = {
    f"{kind.__name__}-{n}-{count}": (kind(count), (count, n))
    for kind in (CWY, Householder)
    for n, count in ((1, 1), (5, 2), (5, 5))
} | {
    "CWY-batch": (CWY(4), (2, 4, 4)),
    "CWY-thin-batch": (CWY(2), (2, 2, 4)),
    "Householder-batch": (Householder(2), (2, 2, 4)),
    "TCWY": (TCWY(), (2, 5)),
    "TCWY-square": (TCWY(), (4, 4)),
    "TCWY-batch": (TCWY(), (2, 3, 4)),
    "OWN": (OWN(), (5, 3)),
    "OWN-plain": (OWN(center=False), (4, 4)),
}


@cases("case", MAPS)
def test_the_gradient_is_that_of_differences(case):
    kind, shape = case
    assert gradcheck(kind.matrix, torch.randn(shape).requires_grad_())


@cases("kind", {"CWY": CWY(3), "CWY-full": CWY(5), "Householder": Householder(3), "TCWY": TCWY()})
def test_the_gradients_of_rows_are_those_of_differences(kind):
    v = torch.randn(getattr(kind, "reflections", 3), 5).requires_grad_()
    n, p = kind.matrix(v).shape
    assert gradcheck(kind.rows, (torch.randn(2, p).requires_grad_(), v))
    assert gradcheck(kind.transposed_rows, (torch.randn(2, n).requires_grad_(), v))
    if isinstance(kind, CWY) and kind.reflections < 5:
        assert gradcheck(kind.factors, v)


@pytest.mark.parametrize("count", [60, 140, 150])
def test_gradients_in_blocks(count):
    """More rows than one block of the triangle, against autograd through the dense product."""
    v, g = torch.randn(count, 150).requires_grad_(), torch.randn(150, 150)
    expected = torch.autograd.grad(dense(v), v, g)[0]
    for kind in (CWY(count), Householder(count)):
        assert_close(torch.autograd.grad(kind.matrix(v), v, g)[0], expected, 1)
    u, p = right = CWY(150).thin(v) if count == 150 else CWY(count).factors(v)
    assert_close(torch.autograd.grad(torch.eye(150) - u.mT @ p, v, g)[0], expected, 1)
    assert len(right) == 2


def test_no_gradient_for_the_length_and_for_zero():
    v = torch.randn(4, 4).requires_grad_()
    grad = torch.autograd.grad(CWY(4).matrix(v), v, torch.randn(4, 4))[0]
    assert_close((grad * v).sum(-1), torch.zeros(4))
    zero = torch.zeros(4, 4).requires_grad_()
    assert not torch.autograd.grad(CWY(4).matrix(zero), zero, torch.randn(4, 4))[0].any()


# The inverse.


@PRODUCTS
@EACH
def test_every_reachable_matrix_has_coordinates(kind, n, count):
    product = kind(count)
    for rank in range(count, -1, -2):
        q = dense(torch.randn(rank, n)) if rank else torch.eye(n)
        v = product.coordinates(q)
        assert_close(product.matrix(v), q)
        assert_close(v.norm(dim=-1), torch.ones(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "count"), [(40, 40), (41, 41), (40, 12), (130, 129)])
def test_round_trips_of_larger_ones(n, count, dtype):
    v = torch.randn(2, count, n, dtype=dtype)
    q = CWY(count).matrix(v)
    back = CWY(count).matrix(CWY(count).coordinates(q))
    assert (back - q).abs().max() < 10 * n * torch.finfo(dtype).eps
    assert residual(back) < 10 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("angle", [3.14159, 1.0, 1e-3, 1e-7, 1e-9, 1e-13, 1e-15, 1e-30])
def test_round_trips_of_small_angles(angle):
    frame = Orthogonal().random(6, 6)
    for q in (plane(6, angle), frame @ plane(6, angle) @ frame.mT):
        for count in (2, 4, 6):
            assert_close(CWY(count).matrix(CWY(count).coordinates(q)), q)


@PRODUCTS
def test_matrices_out_of_reach(kind):
    with pytest.raises(ValueError, match=r"determinant -1, got one of 1"):
        kind(3).coordinates(dense(torch.randn(2, 5)))
    with pytest.raises(ValueError, match=r"determinant 1, got one of -1"):
        kind(4).coordinates(torch.stack([torch.eye(4), reflection(torch.randn(4))]))
    for needed in (3, 5):
        with pytest.raises(ValueError, match=f"takes {needed} reflections"):
            kind(1).coordinates(dense(torch.randn(needed, 6)))
    with pytest.raises(ValueError, match="takes 4 reflections"):  # a small angle is not mistaken for none
        kind(2).coordinates(plane(6, 1e-6) @ plane(6, 1.0).flip(0, 1))


STIEFEL = [(1, 1), (4, 1), (5, 3), (5, 4), (4, 4), (5, 5), (200, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "p"), STIEFEL)
def test_truncated_round_trips(n, p, dtype):
    w = TCWY().nearest(torch.randn(3, n, p, dtype=dtype))
    back = TCWY().matrix(TCWY().coordinates(w))
    assert (back - w).abs().max() < 10 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize(("n", "p"), STIEFEL)
def test_truncated_round_trips_of_columns_in_place(n, p):
    start = torch.eye(n, p)
    start[:, -1] *= (-1) ** p
    for angle in (0.0, 1e-17, 1e-12, 1e-8):
        w = plane(n, angle) @ start if n > 1 else start
        assert_close(TCWY().matrix(TCWY().coordinates(w)), w)


def test_truncated_square_matrices_have_a_determinant():
    with pytest.raises(ValueError, match="determinant -1, got one of 1"):
        TCWY().coordinates(torch.eye(3))


# Starts.


def assert_haar(q):
    """Moments up to order 4 of the first 2×2 entries of uniform matrices, draws (count, n, p), as z-scores."""
    n, (a, b, c, d) = q.shape[-2], q[:, :2, :2].flatten(1).unbind(-1)
    unit = 1 / ((n - 1) * n * (n + 2))
    moments = {0: [a, b, a * b, a * d, a * b * c, a**3 * b], 1 / n: [a**2, b**2, c**2, d**2]}
    moments |= {(n + 1) * unit: [a**2 * d**2], -unit: [a * b * c * d], 3 / (n * (n + 2)): [a**4, d**4]}
    for expected, draws in moments.items():
        for each in draws:
            assert abs((each.mean() - expected) / (each.std() / len(each) ** 0.5)) < 5


@cases(
    "case",
    {"full": (CWY(5), (5, 5)), "rotations": (CWY(6), (6, 6)), "thin": (TCWY(), (4, 2)), "tall": (TCWY(), (9, 3))},
)
def test_haar_is_uniform(case):
    kind, shape = case
    assert_haar(kind.matrix(kind.draw((20000, *shape))))


def test_haar_in_two_and_three_dimensions():
    """The angle of a rotation of the plane is uniform; that of Q = −R has the density (1 − cos θ)/π."""
    for n, mean in ((2, 0.0), (3, -0.5)):
        q = (-1) ** n * CWY(n).matrix(CWY(n).draw((20000, n, n)))
        cosine = (q.diagonal(dim1=-2, dim2=-1).sum(-1) - (n - 2)) / 2
        assert abs((cosine.mean() - mean) / (cosine.std() / 20000**0.5)) < 5
        assert abs((cosine.square().mean() - 0.5) / (cosine.square().std() / 20000**0.5)) < 5


@PRODUCTS
@pytest.mark.parametrize("init", ["haar", "henaff", "cayley", "identity"])
@EACH
def test_starts_are_in_reach(kind, n, count, init):
    product = kind(count, init=init)
    q = product.matrix(product.draw((2, n, n), generator=torch.Generator().manual_seed(1)))
    again = product.matrix(product.draw((2, n, n), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(q, again)
    product.coordinates(q)
    if init == "identity":
        assert_close(q, torch.tensor([1.0] * (n - 1) + [(-1.0) ** count]).diag().expand(2, n, n))
    elif init != "haar" and count > 1:
        assert not torch.equal(q[0], q[1])
        angles = torch.linalg.eigvals(q).imag.abs() > 1e-9
        assert (angles.sum(-1) <= 2 * (count // 2)).all()


def test_identity_pairs_reflect_different_directions():
    """Equal pairs get opposite gradients; were all pairs equal, the product could only learn to turn one plane."""
    v = CWY(8, init="identity").draw((8, 8))
    assert torch.linalg.matrix_rank(v) == 4
    assert_close(v[::2].abs(), v[1::2].abs())


@cases("kind", {"TCWY": TCWY, "OWN": OWN})
@pytest.mark.parametrize("init", ["haar", "henaff", "cayley", "identity"])
def test_thin_starts(kind, init):
    for shape in ((6, 3), (2, 7, 4), (3, 2)):
        start = kind(init=init)
        w = start.matrix(start.draw(shape))
        assert w.shape == shape
        assert residual(w) < 1e-13
    if kind is TCWY and init == "identity":
        assert_close(w, torch.eye(3, 2))


@PRODUCTS
@pytest.mark.parametrize("n", [4, 5])
def test_nearest_has_the_reachable_determinant(kind, n):
    for sign in (1, -1):
        x = torch.randn(n, n)
        x = x * torch.tensor([1.0] * (n - 1) + [sign * float(torch.linalg.det(x).sign())])
        u, _, vh = torch.linalg.svd(x)
        last = (-1) ** n * torch.linalg.det(u @ vh).sign()
        expected = u @ torch.diag(torch.cat([torch.ones(n - 1), last[None]])) @ vh
        assert_close(kind(n).nearest(x), expected)
        layer = nn.Linear(n, n)
        layer.weight.data.copy_(x)
        assert_close(mnvi.constrain(layer, "weight", kind(n), start="nearest").weight.detach(), expected)


# In modules.


class Batch(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


LAYERS = {
    "CWY": (lambda: nn.Linear(6, 6), lambda: CWY(6)),
    "CWY-thin": (lambda: nn.Linear(6, 6), lambda: CWY(3)),
    "Householder": (lambda: nn.Linear(6, 6), lambda: Householder(4)),
    "CWY-batch": (lambda: Batch(3, 5, 5), lambda: CWY(5)),
    "Householder-batch": (lambda: Batch(2, 2, 4, 4), lambda: Householder(2)),
    "TCWY": (lambda: nn.Linear(3, 7), TCWY),
    "TCWY-wide": (lambda: nn.Linear(7, 3), TCWY),
    "TCWY-square": (lambda: nn.Linear(4, 4), TCWY),
    "TCWY-kernel": (lambda: nn.Conv2d(2, 8, 3), TCWY),
    "TCWY-wide-kernel": (lambda: nn.Conv2d(2, 30, 3), TCWY),
    "TCWY-batch": (lambda: Batch(3, 4, 6), TCWY),
    "OWN": (lambda: nn.Linear(3, 7), OWN),
    "OWN-kernel": (lambda: nn.Conv2d(2, 8, 3), OWN),
    "OWN-square": (lambda: nn.Linear(4, 4), lambda: OWN(center=False)),
    "OWN-batch": (lambda: Batch(3, 4, 6), OWN),
}
IN_MODULES = cases("case", LAYERS)


def constrained(case):
    build, parametrization = case
    return mnvi.constrain(build(), "weight", parametrization())


@IN_MODULES
def test_constrained_weights(case):
    layer, other = constrained(case), constrained(case)
    layout = layer.parametrizations.weight[0].layout
    assert residual(layout.matrix(layer.weight)) < 1e-13
    goal = other.weight.detach()
    layer.weight = goal
    assert_close(layer.weight.detach(), goal)
    other.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    for each in (other, twin):
        assert torch.equal(each.weight, layer.weight)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (layer.weight * torch.randn_like(goal)).sum().backward()
        optimiser.step()
    assert residual(layout.matrix(layer.weight)) < 1e-13
    assert torch.equal(twin.weight, other.weight)


@IN_MODULES
def test_multiply_is_the_product_with_the_weight(case):
    layer = constrained(case)
    layout = layer.parametrizations.weight[0].layout
    if len(layout.size) > 2:
        return
    x = torch.randn(2, 3, layout.flat[-1])
    assert_close(mnvi.parametrizations.multiply(layer, "weight", x), x @ layer.weight.reshape(layout.flat).mT)
    assert_close(mnvi.parametrizations.multiply(layer, "weight", x[0, 0]), layer.weight.reshape(layout.flat) @ x[0, 0])


class LargestTensor(TorchDispatchMode):
    """The most numbers that any tensor made inside has."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor))])
        return out


@cases(
    "case",
    {
        "CWY": (40, 40, CWY(4)),
        "tall": (40, 20, TCWY()),
        "wide": (20, 40, TCWY()),
        "Householder": (40, 40, Householder(4)),
    },
)
def test_products_that_make_no_large_matrix(case):
    rows, columns, parametrization = case
    layer = mnvi.constrain(nn.Linear(columns, rows), "weight", parametrization)
    x = torch.randn(3, columns).requires_grad_()
    with LargestTensor() as watch:
        mnvi.parametrizations.multiply(layer, "weight", x).square().sum().backward()
    assert watch.size <= rows * columns if rows != columns else watch.size <= 4 * 40
    assert layer.parametrizations.weight.original.grad is not None
    with LargestTensor() as watch:
        layer.weight.sum().backward()
    assert watch.size == rows * columns  # the weight itself, and in a thin one nothing larger


def test_truncated_weights_take_memory_in_proportion():
    v = TCWY().draw((3000, 4)).requires_grad_()
    with LargestTensor() as watch:
        TCWY().matrix(v).square().sum().backward()
    assert watch.size == 3000 * 4


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
@pytest.mark.parametrize("kernel", [CWY, Householder])
def test_a_recurrent_layer_of_few_reflections_makes_no_kernel(kernel, nonlinearity):
    rnn = mnvi.rnn.OrthogonalRNN(3, 40, kernel=kernel(5), nonlinearity=nonlinearity)
    x = torch.randn(6, 2, 3)
    results = []
    for context in (nullcontext(), parametrize.cached()):  # which keeps the kernel
        rnn.zero_grad()
        with context, LargestTensor() as watch:
            output, _ = rnn(x)
            output.square().sum().backward()
        assert watch.size <= 6 * 2 * 40 if not results else watch.size >= 40 * 40
        results.append([output, *(parameter.grad for parameter in rnn.parameters())])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


# torch's own: tracing an autograd Function instantiates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    layer, x = mnvi.constrain(nn.Linear(6, 6, bias=False), "weight", CWY(6)), torch.randn(2, 6)
    traced = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(traced(x), layer(x))
    found, expected = (
        torch.autograd.grad(each(x).square().sum(), [*layer.parameters()])[0] for each in (traced, layer)
    )
    assert_close(found, expected)
    torch._dynamo.reset()


# Orthogonal weight normalisation.


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_own_is_the_formula_by_eigenvectors(scale):
    v = scale * torch.randn(3, 6, 4)
    for centre in (True, False):
        centred = v - v.mean(-2, keepdim=True) if centre else v
        values, vectors = torch.linalg.eigh(centred.mT @ centred)
        expected = centred @ vectors @ (values**-0.5).diag_embed() @ vectors.mT
        assert_close(OWN(centre).matrix(v), expected, 1e3)
    assert_close(OWN().matrix(v).sum(-2), torch.zeros(3, 4))


def test_own_keeps_its_own_matrices_only():
    w = OWN().matrix(torch.randn(6, 4))
    assert_close(OWN().matrix(OWN().coordinates(w)), w)
    assert_close(OWN().nearest(3 * w + 5), w)
    plain = OWN(center=False).matrix(torch.randn(6, 4))
    assert_close(OWN(center=False).coordinates(plain), plain)
    with pytest.raises(ValueError, match="mean zero"):
        OWN().coordinates(plain)


# Errors.

BAD = {
    "more-reflections-than-rows": (lambda: (nn.Linear(4, 4), CWY(5)), ValueError, "at least 5 rows"),
    "not-square": (lambda: (nn.Linear(4, 3), CWY(2)), ValueError, "square"),
    "householder-not-square": (lambda: (nn.Linear(4, 3), Householder(2)), ValueError, "square"),
    "no-reflections": (lambda: CWY(0), ValueError, "reflections must be at least 1"),
    "half-reflections": (lambda: Householder(1.5), TypeError, "reflections must be an int"),
    "init": (lambda: TCWY(init="zero"), ValueError, "init must be one of"),
    "center": (lambda: OWN(center=1), TypeError, "center must be True or False"),
    "square-and-centred": (lambda: (nn.Linear(4, 4), OWN()), ValueError, "more rows than columns"),
    "complex": (
        lambda: (nn.Linear(4, 4, dtype=torch.complex128), CWY(2)),
        ValueError,
        "needs a weight of",
    ),
}


@cases("case", BAD)
def test_refused(case):
    build, error, message = case
    with pytest.raises(error, match=message):
        mnvi.constrain(*((built := build())[:1]), "weight", built[1])


@cases("parametrization", {"CWY": CWY(4), "Householder": Householder(4), "TCWY": TCWY(), "OWN": OWN(center=False)})
def test_a_weight_off_the_manifold_is_refused(parametrization):
    layer = mnvi.constrain(nn.Linear(4, 4), "weight", copy.deepcopy(parametrization))
    with pytest.raises(ValueError, match="not a point"):
        layer.weight = 2 * layer.weight.detach()
    with pytest.raises(ValueError, match="start='nearest'"):
        mnvi.constrain(nn.Linear(4, 4), "weight", copy.deepcopy(parametrization), start="weight")


@cases("kind", {"CWY": CWY(4), "CWY-thin": CWY(2), "Householder": Householder(2), "TCWY": TCWY(), "OWN": OWN()})
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(kind, bad):
    v = torch.randn(6, 4) if isinstance(kind, OWN) else torch.randn(getattr(kind, "reflections", 3), 4)
    v[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        kind.matrix(v)
