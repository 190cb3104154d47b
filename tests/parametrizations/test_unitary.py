"""EUNN and URNN: the mesh of rotations and the composition of fast transforms."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import mnvi
from mnvi.manifolds import Orthogonal, SpecialOrthogonal, Unitary
from mnvi.parametrizations import EUNN, URNN, constrain, multiply
from mnvi.parametrizations._initial_skew import cayley_blocks, henaff_blocks
from tests.cases import cases
from tests.laws import assert_close

REAL, COMPLEX = [torch.float32, torch.float64], [torch.complex64, torch.complex128]
SIZES = [*range(1, 10), 32]
KERNELS = {
    **{f"EUNN-{layers}-{n}": (lambda layers=layers: EUNN(layers), n) for layers, n in [(1, 4), (3, 5), (5, 4), (8, 8)]},
    "EUNN-reflection": (lambda: EUNN(4, determinant=-1), 4),
    "EUNN-one": (lambda: EUNN(2), 1),
    **{f"URNN-{n}": (URNN, n) for n in (1, 2, 5, 8)},
}
TABLE = {
    f"{name}-{dtype}".replace("torch.", ""): (make, n, dtype)
    for name, (make, n) in KERNELS.items()
    for dtype in REAL + COMPLEX
    if dtype.is_complex or make is not URNN
}
PRECISE = {name: row for name, row in TABLE.items() if row[1] <= 5 and row[2] in (torch.float64, torch.complex128)}


def layer(make, n, dtype, **options):
    return constrain(nn.Linear(n, n, bias=False, dtype=dtype), "weight", make(), **options)


def originals(module):
    return list(module.parametrizations.weight.parameters())


def manifold(dtype):
    return Unitary() if dtype.is_complex else Orthogonal()


def orthogonal(n, dtype, determinant=1):
    """A Haar matrix, of this determinant where it is real."""
    if dtype.is_complex:
        return Unitary().random(n, n, dtype=dtype)
    q = SpecialOrthogonal().random(n, n, dtype=dtype)
    return torch.cat([q[1:], -q[:1] * determinant * (-1) ** n]) if n > 1 else q * determinant


def assert_unitary(q):
    n = q.shape[-1]
    residual = torch.linalg.matrix_norm(q.mH @ q - torch.eye(n, dtype=q.dtype))
    assert residual.max() <= 10 * n * torch.finfo(q.dtype).eps


# Against dense products.


def rotation(n, i, theta, phi):
    block = np.eye(n, dtype=complex)
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    block[i : i + 2, i : i + 2] = turn @ np.diag([np.exp(1j * phi), 1])
    return block


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("layers", "n"), [(1, 4), (2, 2), (3, 5), (5, 5), (6, 4), (3, 1)])
def test_eunn_is_a_product_of_rotations_in_turn(layers, n, dtype):
    module = layer(lambda: EUNN(layers, determinant=-1, init="haar"), n, dtype, start="draw")
    theta, phi, phases = [*originals(module), None, None][:3]
    signs = np.diag([1.0] * (n - 1) + [-1.0])
    dense = signs.astype(complex) if phases is None else np.diag(np.exp(1j * phases.detach().numpy()))
    pairs = [i for each in range(layers) for i in range(each % 2, n - 1, 2)]
    assert len(theta) == len(pairs)
    for k, i in enumerate(pairs):
        dense = dense @ rotation(n, i, theta[k].item(), 0.0 if phi is None else phi[k].item())
    expected = torch.from_numpy(dense)
    assert_close(module.weight.detach(), expected if dtype.is_complex else expected.real)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_urnn_is_a_product_of_dense_transforms(n):
    module = layer(URNN, n, torch.complex128)
    phases, vectors = (each.detach().numpy() for each in originals(module))
    order = module.parametrizations.weight[0].permutation.numpy()
    fourier = scipy.linalg.dft(n, scale="sqrtn")
    permutation = np.eye(n)[order]
    d1, d2, d3 = (np.diag(np.exp(1j * each)) for each in phases)
    h1, h2 = (np.eye(n) - 2 * np.outer(v, v.conj()) / np.vdot(v, v) for v in vectors[..., 0] + 1j * vectors[..., 1])
    dense = d3 @ h2 @ fourier.conj().T @ d2 @ permutation @ h1 @ fourier @ d1
    assert_close(module.weight.detach(), torch.from_numpy(dense))


# Laws of both.


@cases("row", TABLE)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-20, 1.0, 1e4, 1e37])
def test_is_unitary_whatever_the_numbers_are(row, scale):
    module = layer(*row)
    with torch.no_grad():
        for each in originals(module):
            each.copy_(torch.randn_like(each) * scale)
    assert_unitary(module.weight.detach())


@cases("row", TABLE)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_rows_are_multiplied_without_the_matrix(row, shape):
    module = layer(*row)
    x = torch.randn(*shape, row[1], dtype=row[2])
    expected = x @ module.weight.mT
    found = multiply(module, "weight", x)
    assert_close(found, expected)
    outer = torch.randn_like(expected)
    grads = (torch.autograd.grad(each, originals(module), outer) for each in (found, expected))
    for of_rows, of_matrix in zip(*grads, strict=True):
        assert_close(of_rows, of_matrix)


@cases("row", PRECISE)
def test_gradients_are_those_of_finite_differences(row):
    module = layer(*row)
    parametrization, inputs = module.parametrizations.weight[0], originals(module)
    x = torch.randn(2, row[1], dtype=row[2], requires_grad=True)
    assert torch.autograd.gradcheck(parametrization, inputs)
    assert torch.autograd.gradcheck(parametrization.multiply, (x, *inputs))


@cases("row", TABLE)
def test_state_dict_and_deepcopy_carry_everything(row):
    first, second = layer(*row), layer(*row)
    second.load_state_dict(first.state_dict())
    for other in (second, copy.deepcopy(first)):
        assert torch.equal(other.weight, first.weight)


@cases("row", TABLE)
def test_a_generator_fixes_the_start(row):
    first, second = (layer(*row, start="draw", generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("make", [lambda: EUNN(3), lambda: EUNN(5), URNN], ids=["few", "all", "urnn"])
def test_a_batch_of_weights(make):
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(2, 3, 5, 5, dtype=torch.complex128))
    constrain(module, "w", make())
    parametrization = module.parametrizations.w[0]
    assert_unitary(module.w.detach())
    one = [each[1, 2] for each in module.parametrizations.w.parameters()]
    assert_close(parametrization.matrix(*one), module.w[1, 2])


@cases("row", {"EUNN": (lambda: EUNN(2), 4, torch.float32), "URNN": (URNN, 4, torch.complex64)})
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_traces_under_compile_without_a_graph_break(row):
    module = layer(*row)
    x = torch.randn(3, row[1], dtype=row[2])
    torch._dynamo.reset()
    assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


@cases("row", {"EUNN": (lambda: EUNN(8), 8, torch.float32), "URNN": (URNN, 8, torch.complex64)})
def test_autocast_leaves_the_precision_alone(row):
    module = layer(*row)
    x = torch.randn(3, row[1], dtype=row[2])
    expected = module.weight, multiply(module, "weight", x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.weight, multiply(module, "weight", x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# The angles of a matrix.


@pytest.mark.parametrize(
    ("determinant", "dtype"), [*product((1, -1), REAL), *product((1,), COMPLEX)], ids=lambda each: str(each)
)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_n_layers_reach_every_matrix(dtype, n, extra, determinant):
    q = orthogonal(n, dtype, determinant)
    module = layer(lambda: EUNN(n + extra, determinant=determinant), n, dtype)
    module.weight = q
    assert (module.weight - q).abs().max() <= 10 * n * torch.finfo(dtype).eps
    assert all(each.abs().max() <= math.pi + 1e-5 for each in originals(module) if each.numel())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_matrices_with_zeros_are_reached_too(dtype, n):
    swaps = torch.eye(n, dtype=dtype).flip(0)
    swaps[0] *= torch.linalg.det(swaps)
    for q in (torch.eye(n, dtype=dtype), swaps, torch.block_diag(orthogonal(n - 1, dtype), torch.ones(1, 1))):
        module = nn.Linear(n, n, bias=False, dtype=dtype)
        with torch.no_grad():
            module.weight.copy_(q)
        assert_close(constrain(module, "weight", EUNN(n), start="weight").weight.detach(), q.to(dtype))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_no_phase_of_n_layers_is_idle(n):
    module = layer(lambda: EUNN(n), n, torch.complex128)
    inputs = tuple(each.detach() for each in originals(module))
    jacobian = torch.autograd.functional.jacobian(
        lambda *each: torch.view_as_real(module.parametrizations.weight[0](*each)).flatten(), inputs
    )
    assert torch.linalg.matrix_rank(torch.cat(jacobian, 1), rtol=1e-9) == n * n  # the dimension of U(n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_nearest_is_the_nearest_of_its_determinant(dtype):
    module = nn.Linear(5, 5, bias=False, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(orthogonal(5, dtype, -1) + 0.1 * torch.randn(5, 5, dtype=dtype))
    u, _, v = torch.linalg.svd(module.weight.detach())
    eunn = EUNN(5) if dtype.is_complex else EUNN(5, determinant=-1)
    assert_close(constrain(module, "weight", eunn, start="nearest").weight.detach(), u @ v)


# Starts.


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("name", ["henaff", "cayley", "identity"])
def test_starts_of_blocks(name, layers, n, dtype):
    block = {"henaff": henaff_blocks, "cayley": cayley_blocks}.get(name)
    generator = torch.Generator().manual_seed(5)
    module = layer(lambda: EUNN(layers, init=name), n, dtype, start="draw", generator=generator)
    skew = block(n, torch.Generator().manual_seed(5)) if block else torch.zeros(n, n)
    assert_close(module.weight.detach(), torch.linalg.matrix_exp(skew.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_the_haar_start_has_the_moments_of_the_group(dtype):
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(4000, 3, 3, dtype=dtype))
    q = constrain(module, "w", EUNN(4), start="draw").w.detach()
    expected = {2: 1 / 3, 4: 2 / 12 if dtype.is_complex else 3 / 15}  # E|q|ᵏ of a coordinate on the sphere
    for power, mean in expected.items():
        sample = q.abs() ** power
        assert ((sample.mean(0) - mean) / (sample.std(0) / 4000**0.5)).abs().max() < 5
    trace = q.diagonal(dim1=-2, dim2=-1).sum(-1).abs() ** 2  # of an irreducible representation: 1 on average
    assert abs(trace.mean() - 1) / (trace.std() / 4000**0.5) < 5


def test_few_layers_start_at_uniform_angles():
    module = layer(lambda: EUNN(30), 40, torch.complex128)
    for each in originals(module):
        assert each.abs().max() <= math.pi
    theta = originals(module)[0].detach()
    assert abs(theta.mean()) / (math.pi / 3**0.5 / len(theta) ** 0.5) < 5
    assert theta.abs().max() > 3


def test_a_reflection_by_zero_is_none_and_stays_differentiable():
    module = layer(URNN, 6, torch.complex128)
    vectors = originals(module)[1]
    nn.init.zeros_(vectors)
    module.weight.real.sum().backward()
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))


# Recurrent layers.


@cases("kernel", {"real": (EUNN(4), None), "complex": (EUNN(8), torch.complex64), "urnn": (URNN(), torch.complex64)})
def test_runs_as_a_recurrent_kernel(kernel):
    rnn = mnvi.rnn.OrthogonalRNN(3, 8, kernel=kernel[0], dtype=kernel[1])
    output, _ = rnn(torch.randn(5, 2, 3, dtype=kernel[1]))
    output.abs().square().sum().backward()
    assert output.shape == (5, 2, 8)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in rnn.parameters())


# Errors.


@cases(
    "call",
    {
        "no-layers": (lambda: EUNN(0), ValueError, "layers must be at least 1"),
        "half-layers": (lambda: EUNN(2.5), TypeError, "layers must be an int"),  # type: ignore[arg-type]
        "determinant": (lambda: EUNN(2, determinant=0), ValueError, "determinant must be 1 or -1, got 0"),
        "init": (lambda: EUNN(2, init="uniform"), ValueError, "init must be one of"),
        "wide": (lambda: constrain(nn.Linear(4, 3), "weight", EUNN(2)), ValueError, "square weight"),
        "tall": (
            lambda: constrain(nn.Linear(3, 4, dtype=torch.complex64), "weight", URNN()),
            ValueError,
            "square weight",
        ),
        "real": (
            lambda: layer(URNN, 4, torch.float32),
            ValueError,
            r"complex weight .*, got one of torch.float32",
        ),
        "twice": (lambda: [layer(lambda p=p: p, 4, torch.float32) for p in [EUNN(2)] * 2], ValueError, "attached"),
    },
)
def test_errors(call):
    make, error, match = call
    with pytest.raises(error, match=match):
        make()


REFUSED = {
    "few-layers": (lambda: EUNN(3), torch.float64, 1, "up to 3 rows, got 4; use layers=4"),
    "determinant": (lambda: EUNN(4), torch.float64, -1, "determinant 1, got one of -1"),
    "other-determinant": (lambda: EUNN(4, determinant=-1), torch.float64, 1, "determinant -1, got one of 1"),
    "urnn": (URNN, torch.complex128, 1, "part of U"),
}


@cases("row", REFUSED)
def test_a_weight_out_of_reach_is_refused_and_a_start_drawn(row):
    make, dtype, determinant, match = row
    q = orthogonal(4, dtype, determinant)
    module = layer(make, 4, dtype)
    before = module.weight.detach()
    with pytest.raises(ValueError, match=match):
        module.weight = q
    assert torch.equal(module.weight, before)
    plain = nn.Linear(4, 4, bias=False, dtype=dtype)
    with torch.no_grad():
        plain.weight.copy_(q)
    with pytest.raises(ValueError, match=match):
        constrain(plain, "weight", make(), start="weight")
    assert torch.equal(plain.weight, q)
    with pytest.warns(UserWarning, match=match):
        constrain(plain, "weight", make())
    assert_unitary(plain.weight.detach())


def test_a_weight_off_the_group_is_refused():
    module = layer(lambda: EUNN(4), 4, torch.float64)
    with pytest.raises(ValueError, match="not a point"):
        module.weight = torch.randn(4, 4, dtype=torch.float64)
