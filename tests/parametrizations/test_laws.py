"""The laws of every parametrization: a row of ``CASES`` each."""

import copy
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import mnvi
from mnvi.manifolds import SPD, GeneralLinear, Grassmann, Orthogonal, SpecialLinear, SpecialOrthogonal, Stiefel, Unitary
from mnvi.parametrizations import (
    CWY,
    EUNN,
    OWN,
    TCWY,
    URNN,
    Cayley,
    Exponential,
    Householder,
    ScaledCayley,
    Trivialization,
    factors,
    multiply,
)

REAL, COMPLEX = (torch.float32, torch.float64), (torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Case:
    make: Any  # a new parametrization
    shapes: tuple = ((7, 7), (8, 8), (1, 1))  # of weights
    dtypes: tuple = REAL
    orthonormal: bool = True
    assignable: bool = True  # whether every matrix that it makes can be assigned again
    roundtrip: float = 100.0  # of a matrix that it made, times n·eps


TALL = ((8, 3), (5, 5), (6, 1), (3, 8))
CASES = {
    "exponential": Case(lambda: Exponential(), dtypes=REAL + COMPLEX),
    "exponential-haar": Case(lambda: Exponential(init="haar"), dtypes=REAL + COMPLEX, roundtrip=1e4),
    "exponential-det": Case(lambda: Exponential(-1, init="cayley")),
    "cayley": Case(lambda: Cayley(), dtypes=REAL + COMPLEX),
    "cayley-henaff": Case(lambda: Cayley(init="henaff")),
    "scaled-cayley": Case(lambda: ScaledCayley(), dtypes=REAL + COMPLEX, roundtrip=1e3),
    "scaled-cayley-1": Case(lambda: ScaledCayley(1)),
    "householder": Case(lambda: Householder(1)),
    "cwy": Case(lambda: CWY(1)),
    "cwy-3": Case(lambda: CWY(3), ((7, 7), (8, 8))),
    "cwy-7": Case(lambda: CWY(7), ((7, 7), (8, 8)), roundtrip=1e3),
    "cwy-henaff": Case(lambda: CWY(7, init="henaff"), ((7, 7), (8, 8)), roundtrip=1e3),
    "tcwy": Case(lambda: TCWY(), TALL),
    "own": Case(lambda: OWN(), ((8, 3), (6, 1), (3, 8))),
    "own-plain": Case(lambda: OWN(center=False), TALL),
    "eunn-2": Case(lambda: EUNN(2), ((7, 7), (8, 8)), dtypes=REAL + COMPLEX, assignable=False),
    "eunn-8": Case(lambda: EUNN(8), dtypes=REAL + COMPLEX),
    "urnn": Case(lambda: URNN(), dtypes=COMPLEX, assignable=False),
    "dtriv": Case(lambda: Trivialization(SpecialOrthogonal(retraction="exp"))),
    "dtriv-cayley": Case(lambda: Trivialization(SpecialOrthogonal(retraction="cayley"), init="henaff")),
    "dtriv-qr": Case(lambda: Trivialization(SpecialOrthogonal())),
    "dtriv-unitary": Case(lambda: Trivialization(Unitary(retraction="exp"), init="cayley"), dtypes=COMPLEX),
    "dtriv-stiefel": Case(lambda: Trivialization(Stiefel()), TALL),
    "dtriv-grassmann": Case(lambda: Trivialization(Grassmann()), ((8, 3), (3, 8))),
    "dtriv-spd": Case(lambda: Trivialization(SPD()), ((5, 5),), orthonormal=False),
    "dtriv-gl": Case(lambda: Trivialization(GeneralLinear()), ((5, 5),), orthonormal=False),
    "dtriv-sl": Case(lambda: Trivialization(SpecialLinear()), ((5, 5),), orthonormal=False),
}
ALL = [(name, shape, dtype) for name, case in CASES.items() for shape in case.shapes for dtype in case.dtypes]
IDS = [f"{name}-{'x'.join(map(str, shape))}-{str(dtype)[6:]}" for name, shape, dtype in ALL]
every = pytest.mark.parametrize(("name", "shape", "dtype"), ALL, ids=IDS)
FIRST = [(name, case.shapes[0], dtype) for name, case in CASES.items() for dtype in case.dtypes[-1:]]


def each_case_but(*names):
    rows = [row for row in FIRST if row[0] not in names]
    return pytest.mark.parametrize(("name", "shape", "dtype"), rows, ids=[name for name, *_ in rows])


each_case = each_case_but()
each_orthonormal = each_case_but(*(name for name, case in CASES.items() if not case.orthonormal))
# Those that reach a part of the group have no nearest point in closed form.
each_with_nearest = each_case_but("householder", "cwy", "cwy-3", *(k for k, c in CASES.items() if not c.assignable))


def layer(name, shape, dtype, **options):
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    return mnvi.constrain(linear, "weight", CASES[name].make(), **options)


def moved(linear, scale=0.3):
    """The layer after a step of all its unconstrained parameters."""
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, dtype=parameter.dtype))
    return linear


def defect(weight):
    matrix = weight.detach().mT if weight.shape[-2] < weight.shape[-1] else weight.detach()
    return float(torch.linalg.matrix_norm(matrix.mH @ matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype), 2))


def distance(a, b):
    return float((a - b).detach().abs().max())


def tolerance(weight, factor=10.0):
    return factor * max(5, *weight.shape[-2:]) * torch.finfo(weight.dtype).eps


@every
def test_the_weight_is_on_the_manifold_wherever_the_parameters_are(name, shape, dtype):
    for scale in (0.0, 0.3, 30.0) if CASES[name].orthonormal else (0.0, 0.3):
        linear = moved(layer(name, shape, dtype), scale)
        weight = linear.weight
        assert weight.shape == shape
        assert weight.dtype == dtype
        if CASES[name].orthonormal:
            assert defect(weight) < tolerance(weight)
        else:
            linear.parametrizations.weight[0].space.check(weight.detach())


SMOOTH = ("exponential", "cayley", "scaled-cayley", "dtriv", "dtriv-qr", "dtriv-cayley", "dtriv-stiefel")
LARGE = {
    **{name: CASES[name].make for name in SMOOTH},
    **{"cwy": lambda: CWY(250), "cwy-20": lambda: CWY(20), "householder": lambda: Householder(250), "tcwy": TCWY},
    **{"own": OWN, "eunn": lambda: EUNN(30), "urnn": URNN},
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_a_large_weight_in_single_precision_is_orthogonal(name, scale):
    torch.manual_seed(0)
    shape = (250, 40) if name in ("tcwy", "own", "dtriv-stiefel") else (250, 250)
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.complex64 if name == "urnn" else torch.float32)
    weight = moved(mnvi.constrain(linear, "weight", LARGE[name]()), scale).weight
    assert defect(weight) < tolerance(weight)


ORTHONORMAL = [name for name, case in CASES.items() if case.orthonormal and case.dtypes != COMPLEX]


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_it_stays_on_the_manifold_in_a_higher_precision(name):
    shape = CASES[name].shapes[0]
    single = moved(layer(name, shape, torch.float32))
    loaded = layer(name, shape, torch.float64)
    loaded.load_state_dict(single.state_dict())
    for weight in (loaded.weight, single.double().weight):
        assert weight.dtype == torch.float64
        assert defect(weight) < tolerance(weight)


@pytest.mark.parametrize("init", ["henaff", "cayley"])
@pytest.mark.parametrize("make", [Trivialization, CWY, TCWY, Exponential, OWN])
def test_starts_are_orthogonal_whatever_the_seed(make, init):
    reach = {CWY: {"reflections": 2}, OWN: {"center": False}}.get(make, {})
    for seed in range(40):
        linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        mnvi.constrain(linear, "weight", make(init=init, **reach), generator=torch.Generator().manual_seed(seed))
        assert defect(linear.weight) < tolerance(linear.weight)


@every
def test_assigning_a_weight_gives_it_back(name, shape, dtype):
    case = CASES[name]
    linear = moved(layer(name, shape, dtype))
    weight = linear.weight.detach()
    other = layer(name, shape, dtype, start="draw")
    if not case.assignable:
        with pytest.raises(ValueError):
            other.weight = weight
        return
    other.weight = weight
    assert distance(other.weight, weight) < tolerance(weight, case.roundtrip)


@each_case
def test_a_weight_off_the_manifold_is_refused_and_nothing_changes(name, shape, dtype):
    linear = layer(name, shape, dtype)
    before = copy.deepcopy(linear.state_dict())
    off = -(torch.eye(*shape, dtype=dtype) + torch.ones(*shape, dtype=dtype))
    with pytest.raises(ValueError):
        linear.weight = off
    after = linear.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(ValueError):
        mnvi.constrain(_plain(off), "weight", CASES[name].make(), start="weight")


def _plain(weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


@each_with_nearest
def test_the_nearest_point_is_offered(name, shape, dtype):
    case = CASES[name]
    start = layer(name, shape, dtype).weight.detach()
    near = start + 0.05 * torch.randn_like(start) * (name != "dtriv-spd")
    linear = mnvi.constrain(_plain(near), "weight", case.make(), start="nearest")
    if name != "own":  # whose columns have mean zero
        assert distance(linear.weight, start) < 0.3


@each_case
def test_a_step_changes_the_weight_along_its_gradient(name, shape, dtype):
    linear = moved(layer(name, shape, dtype), 0.1)
    target = torch.randn(shape, dtype=dtype)

    def loss():
        return (linear.weight - target).abs().square().sum()

    value = loss()
    value.backward()
    gradients = [p.grad for p in linear.parameters()]
    assert any(g.abs().max() > 1e-3 for g in gradients)
    slope = sum(float(g.abs().square().sum()) for g in gradients)
    rate = 1e-6 / max(1.0, slope)
    with torch.no_grad():
        for p in linear.parameters():
            p.sub_(rate * p.grad)
        lower = loss()
    expected = rate * slope
    # Where the gradient is a Riemannian one the two differ by the metric, which is of the order of one.
    factor = 100.0 if name in ("dtriv-spd", "dtriv-stiefel") else 1.01
    assert expected / factor < (value - lower).item() < expected * factor


@each_case
def test_multiply_is_the_product_with_the_weight(name, shape, dtype):
    linear = moved(layer(name, shape, dtype))
    x = torch.randn(2, 4, shape[1], dtype=dtype)
    expected = x @ linear.weight.mT
    actual = multiply(linear, "weight", x)
    assert actual.shape == expected.shape
    assert distance(actual, expected) < tolerance(linear.weight, 100)
    with pytest.raises(ValueError, match="rows of shape"):
        multiply(linear, "weight", x[..., :-1])


@each_case
def test_state_dict_and_copies_give_the_same_weight(name, shape, dtype):
    linear = moved(layer(name, shape, dtype))
    file = io.BytesIO()
    torch.save(linear.state_dict(), file)
    file.seek(0)
    other = layer(name, shape, dtype, generator=torch.Generator().manual_seed(7))
    other.load_state_dict(torch.load(file, weights_only=True))
    fresh = copy.deepcopy(linear)  # before any forward
    assert torch.equal(other.weight, linear.weight)
    assert torch.equal(fresh.weight, linear.weight)
    again = copy.deepcopy(linear)  # and after one
    linear.weight.abs().sum().backward()
    moved(linear)
    assert torch.equal(again.weight, fresh.weight)
    assert not torch.equal(linear.weight, fresh.weight)


@each_case
def test_the_draw_follows_the_generator(name, shape, dtype):
    draws = [
        layer(name, shape, dtype, start="draw", generator=torch.Generator().manual_seed(i)).weight for i in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@each_orthonormal
def test_weight_decay_cannot_break_it(name, shape, dtype):
    linear = layer(name, shape, dtype)
    determinant = torch.linalg.slogdet(linear.weight).sign if shape[0] == shape[1] and dtype in REAL else None
    optimiser = torch.optim.SGD(linear.parameters(), lr=1.0, weight_decay=0.999)
    for _ in range(200):
        optimiser.zero_grad()
        (0 * linear.weight.real.sum()).backward()  # abs() of a tiny complex number can have the gradient NaN
        optimiser.step()
    assert defect(linear.weight) < tolerance(linear.weight)
    if determinant is not None:
        assert torch.linalg.slogdet(linear.weight).sign == determinant


@each_case
def test_autocast_leaves_the_matrix_in_full_precision(name, shape, dtype):
    linear = moved(layer(name, shape, CASES[name].dtypes[0]))
    expected = linear.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear.weight.dtype == expected.dtype
        assert torch.equal(linear.weight, expected)


def test_a_weight_on_the_manifold_is_kept_and_others_are_drawn():
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    q[:, 0] *= torch.linalg.slogdet(q).sign
    assert distance(mnvi.constrain(_plain(q), "weight", Exponential()).weight, q) < 1e-12
    assert distance(mnvi.constrain(_plain(q), "weight", Exponential(), start="draw").weight, q) > 0.1
    random = mnvi.constrain(_plain(torch.randn(6, 6, dtype=torch.float64)), "weight", Exponential())
    assert defect(random.weight) < 1e-13


def turned(angle, n, dtype):
    """A rotation with one angle given and the others random, computed in double precision."""
    angles = torch.cat([torch.tensor([angle], dtype=torch.float64), 3 * torch.rand(n // 2 - 1, dtype=torch.float64)])
    cos, sin = angles.cos(), angles.sin()
    blocks = torch.block_diag(*torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2))
    frame = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    return (frame @ blocks @ frame.mT).to(dtype)


@pytest.mark.parametrize(("n", "distance"), [(300, 1e-3), (64, 1e-4), (64, 1e-5)])
def test_a_rotation_with_an_angle_near_pi_is_kept_in_single_precision(n, distance):
    q = turned(torch.pi - distance, n, torch.float32)
    layer = nn.Linear(n, n)
    with torch.no_grad():
        layer.weight.copy_(q)
    mnvi.constrain(layer, "weight", Exponential(), start="weight")
    assert (layer.weight - q).detach().abs().max() < 10 * n * torch.finfo(torch.float32).eps


def test_what_single_precision_cannot_hold_is_refused():
    layer = mnvi.constrain(nn.Linear(64, 64), "weight", Cayley())
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="leads back to this matrix only up to"):
        layer.weight = turned(torch.pi - 1e-6, 64, torch.float32)
    assert torch.equal(layer.weight, before)


def test_an_orthogonal_layer_of_256_can_be_constrained_with_several_threads():
    layer = nn.Linear(256, 256)
    nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        layer.weight[0] *= torch.linalg.slogdet(layer.weight).sign
    before, threads = layer.weight.detach().clone(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        mnvi.constrain(layer, "weight", Exponential(), start="weight")
    finally:
        torch.set_num_threads(threads)
    assert (layer.weight - before).detach().abs().max() < 1e-5


def test_a_weight_nearly_on_the_manifold_is_kept_there():
    near = SpecialOrthogonal().random(6, 6) + 1e-5 * torch.randn(6, 6)
    for make in (Exponential, Cayley, Trivialization, lambda: CWY(6)):
        linear = nn.Linear(6, 6)
        with torch.no_grad():
            linear.weight.copy_(near)
        weight = mnvi.constrain(linear, "weight", make(), start="weight").weight
        assert distance(weight, near) < 1e-4
        assert defect(weight) < tolerance(weight)


def test_a_weight_on_the_manifold_is_not_dropped_in_silence():
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0])))
    with pytest.warns(UserWarning, match=r"not kept, .* there are Exponential\(-1\) and Trivialization\(Orthogonal"):
        mnvi.constrain(copy.deepcopy(linear), "weight", Exponential())
    with pytest.warns(UserWarning, match="not kept, .* not a point of SpecialOrthogonal"):
        mnvi.constrain(copy.deepcopy(linear), "weight", Trivialization())
    kept = mnvi.constrain(copy.deepcopy(linear), "weight", Trivialization(Orthogonal())).weight
    assert torch.equal(kept, linear.weight)


def test_a_weight_without_numbers_is_refused():
    with pytest.raises(ValueError, match="on the meta device"):
        mnvi.constrain(nn.Linear(4, 4, device="meta"), "weight", CWY(2))


@pytest.mark.parametrize("name", ["exponential", "cayley", "cwy", "tcwy", "own", "dtriv", "eunn-8"])
def test_half_precision_is_refused(name):
    linear = layer(name, CASES[name].shapes[0], torch.float32).half()
    with pytest.raises(TypeError, match=r"needs parameters of .* got torch.float16"):
        linear.weight  # noqa: B018


def test_the_same_parametrization_is_not_used_twice():
    shared = Cayley()
    mnvi.constrain(nn.Linear(4, 4), "weight", shared)
    with pytest.raises(ValueError, match="attached to a weight already"):
        mnvi.constrain(nn.Linear(4, 4), "weight", shared)


@pytest.mark.parametrize(
    ("make", "weight", "message"),
    [
        (Exponential, (4, 5), "square"),
        (Cayley, (5, 4), "square"),
        (lambda: CWY(5), (4, 4), "5"),
        (lambda: Householder(5), (4, 4), "5"),
        (lambda: ScaledCayley(5), (4, 4), "5"),
        (URNN, (4, 4), "complex"),
        (lambda: Trivialization(SpecialOrthogonal()), (4, 3), "square"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make, weight, message):
    linear = nn.Linear(weight[1], weight[0])
    before = linear.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        mnvi.constrain(linear, "weight", make())
    assert torch.equal(linear.weight, before)
    assert not parametrize.is_parametrized(linear)


def test_arguments_are_checked():
    linear = nn.Linear(4, 4)
    with pytest.raises(TypeError, match="parametrization"):
        mnvi.constrain(linear, "weight", nn.Identity())
    with pytest.raises(TypeError, match="did you mean"):
        mnvi.constrain(linear, "weight", Cayley)
    with pytest.raises(ValueError, match="no parameter 'kernel'"):
        mnvi.constrain(linear, "kernel", Cayley())
    with pytest.raises(ValueError, match="start must be one of"):
        mnvi.constrain(linear, "weight", Cayley(), start="random")
    with pytest.raises(ValueError, match="two dimensions"):
        mnvi.constrain(linear, "bias", Cayley())
    with pytest.raises(ValueError, match="init must be one of"):
        Exponential(init="orthogonal")
    with pytest.raises(ValueError, match="determinant"):
        Exponential(2)
    for number in (-1, True, 0.5):
        with pytest.raises(ValueError, match="negative_ones"):
            ScaledCayley(number)
    for real in (Exponential(-1), ScaledCayley(2)):
        with pytest.raises(ValueError, match="real weight"):
            mnvi.constrain(nn.Linear(4, 4, dtype=torch.complex64), "weight", real)
    with pytest.raises(ValueError, match="complex64"):
        mnvi.constrain(nn.Linear(4, 4, dtype=torch.complex64), "weight", TCWY())
    with pytest.raises(ValueError, match="float32"):
        mnvi.constrain(nn.Linear(4, 4, dtype=torch.bfloat16), "weight", Cayley())
    mnvi.constrain(linear, "weight", Cayley())
    with pytest.raises(ValueError, match="has a parametrization already"):
        mnvi.constrain(linear, "weight", Cayley())
    with pytest.raises(ValueError, match="not constrained"):
        multiply(nn.Linear(4, 4), "weight", torch.ones(4))
    with pytest.raises(ValueError, match="not attached"):
        Exponential()(torch.zeros(6))


def test_the_exponential_says_what_it_does_not_reach():
    linear = mnvi.constrain(nn.Linear(4, 4, dtype=torch.float64), "weight", Exponential())
    reflection = torch.eye(4, dtype=torch.float64)
    reflection[0, 0] = -1
    with pytest.raises(ValueError, match="determinant"):
        linear.weight = reflection
    half_turn = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64))
    with pytest.raises(ValueError, match="π"):
        linear.weight = half_turn
    with pytest.raises(ValueError, match="eigenvalue"):
        mnvi.constrain(nn.Linear(4, 4, dtype=torch.float64), "weight", Cayley()).weight = half_turn


@pytest.mark.parametrize("init", ["henaff", "cayley", "identity"])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_block_initialisers_rotate_pairs_and_leave_an_odd_row(init, n):
    weight = mnvi.constrain(nn.Linear(n, n, dtype=torch.float64), "weight", Exponential(init=init), start="draw").weight
    blocks = torch.block_diag(*[torch.ones(2, 2)] * (n // 2), *[torch.ones(1, 1)] * (n % 2)).bool()
    assert not weight[~blocks].any()
    angles = torch.linalg.eigvals(weight.detach()).angle().abs()
    assert float(angles.max()) <= {"henaff": torch.pi, "cayley": 1.0, "identity": 0.0}[init]
    if n % 2:
        assert weight[-1, -1] == 1


def test_haar_weights_have_the_moments_of_the_uniform_distribution():
    traces = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        linear = nn.Linear(6, 6, dtype=torch.float64)
        traces.append(
            mnvi.constrain(linear, "weight", Exponential(init="haar"), start="draw", generator=generator).weight.trace()
        )
    traces = torch.stack(traces).detach()
    for moment, expected in ((traces, 0.0), (traces**2, 1.0)):  # E tr Q = 0, E (tr Q)² = 1
        z = (moment.mean() - expected) / (moment.std() / len(moment) ** 0.5)
        assert abs(float(z)) < 5


@pytest.mark.parametrize(("out", "channels", "groups"), [(6, 4, 1), (4, 6, 2), (40, 3, 1)])
def test_convolution_kernels_are_constrained_as_matrices(out, channels, groups):
    conv = mnvi.constrain(nn.Conv2d(channels, out, 3, groups=groups, dtype=torch.float64), "weight", TCWY())
    matrix = conv.weight.flatten(1)  # (out, channels/groups·9)
    assert defect(matrix) < 1e-13
    assert conv(torch.randn(2, channels, 8, 8, dtype=torch.float64)).shape == (2, out, 6, 6)


def test_a_batch_of_weights():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(3, 2, 5, 5, dtype=torch.float64))
    mnvi.constrain(module, "weight", Exponential())
    eye = torch.eye(5, dtype=torch.float64).expand(3, 2, 5, 5)
    assert distance(module.weight.mT @ module.weight, eye) < 1e-13
    assert not torch.equal(module.weight[0, 0], module.weight[0, 1])
    with pytest.raises(ValueError, match="batch"):
        multiply(module, "weight", torch.ones(5, dtype=torch.float64))


def test_the_matrix_is_mapped_once_while_cached(monkeypatch):
    linear = mnvi.constrain(nn.Linear(5, 5), "weight", Exponential())
    calls = []
    original = Exponential.phi
    monkeypatch.setattr(Exponential, "phi", lambda self, a: calls.append(1) or original(self, a))
    with parametrize.cached():
        x = torch.randn(2, 5)
        for _ in range(10):
            x = linear(x)
    x.sum().backward()
    assert len(calls) == 1


def test_the_weight_is_left_where_it_is_when_the_parametrization_comes_off():
    linear = mnvi.constrain(nn.Linear(5, 5), "weight", CWY(5))
    weight = linear.weight.detach().clone()
    parametrize.remove_parametrizations(linear, "weight")
    assert torch.equal(linear.weight, weight)
    assert isinstance(linear.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(make, dtype) for make in (Exponential, Cayley, ScaledCayley) for dtype in (torch.float64, torch.complex128)]
    + [(lambda: Trivialization(rebase_every=None), torch.float64)],
)
def test_gradients_by_finite_differences(make, dtype):
    torch.manual_seed(0)
    linear = mnvi.constrain(nn.Linear(4, 4, dtype=dtype), "weight", make())
    chain = linear.parametrizations.weight
    originals = [chain.original] if chain.is_tensor else [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
    inputs = [(p.detach() + 0.2 * torch.randn_like(p)).requires_grad_() for p in originals]
    assert torch.autograd.gradcheck(chain[0], inputs)


def test_signs_are_those_of_the_state_dict():
    square = lambda parametrization: mnvi.constrain(nn.Linear(4, 4), "weight", parametrization)  # noqa: E731
    for source, target in (
        (ScaledCayley(2), ScaledCayley(0)),
        (Exponential(-1), Exponential()),
        (ScaledCayley(1), Cayley()),
    ):
        old, new = square(source), square(target)
        new.load_state_dict(old.state_dict())
        assert torch.equal(new.weight, old.weight)
        new.weight = old.weight.detach()
        assert distance(new.weight, old.weight) < tolerance(old.weight)


@pytest.mark.parametrize("make", [lambda: EUNN(4), Exponential, lambda: CWY(4), Trivialization])
def test_a_real_weight_is_not_given_a_complex_matrix(make):
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", make())
    before = linear.weight.detach().clone()
    with pytest.raises(ValueError, match=r"attached to a real weight, got one of torch.complex64|dtype"):
        linear.weight = torch.diag(torch.tensor([1j, -1j, 1, 1]))
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize("make", [lambda: Exponential(-1), lambda: CWY(2), Trivialization])
def test_multiply_keeps_the_dimensions_of_its_rows(make):
    linear, x = mnvi.constrain(nn.Linear(4, 4), "weight", make()), torch.randn(4)
    assert multiply(linear, "weight", x).shape == (4,)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("make", [Exponential, lambda: CWY(3), TCWY, Trivialization])
def test_a_weight_cannot_become_complex_afterwards(make):
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", make()).to(torch.complex64)
    with pytest.raises(TypeError, match=r"made real or complex; convert it before mnvi.constrain"):
        _ = linear.weight
    with pytest.raises(TypeError, match="made real or complex"):
        multiply(linear, "weight", torch.randn(2, 4, dtype=torch.complex64))


def test_second_derivatives_raise_where_there_are_none():
    for make in (lambda: CWY(4), lambda: Householder(3), TCWY, lambda: EUNN(3)):
        linear = moved(mnvi.constrain(nn.Linear(4, 4, dtype=torch.float64), "weight", make()))
        (gradient,) = torch.autograd.grad(linear.weight.sum(), list(linear.parameters())[-1:], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            gradient.square().sum().backward()


def test_second_derivatives_are_never_left_out_in_silence():
    """Torch takes a gradient that does not depend on its parameters for one of slope zero."""
    for make in (lambda: CWY(4), lambda: Householder(3), TCWY, lambda: EUNN(3)):
        linear = moved(mnvi.constrain(nn.Linear(4, 4, dtype=torch.float64), "weight", make()))
        parametrization, (original,) = linear.parametrizations.weight[0], list(linear.parameters())[-1:]
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.functional.hessian(lambda x: parametrization(x).pow(3).sum(), original.detach())  # noqa: B023
        (gradient,) = torch.autograd.grad(parametrization(original).sum(), original, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad((gradient + original**2).sum(), original)


def test_a_complex_own_weight_has_the_right_gradient():
    own = OWN()
    mnvi.constrain(nn.Linear(2, 4, dtype=torch.complex128), "weight", own)
    v = torch.randn(4, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(own, (v,))


def test_a_batch_as_large_as_its_matrices():
    for make in (Cayley, ScaledCayley, Exponential, lambda: CWY(3), Trivialization):
        module = nn.Module()
        module.weight = nn.Parameter(torch.randn(3, 3, 3, dtype=torch.float64))
        weight = mnvi.constrain(module, "weight", make()).weight
        assert distance(weight.mT @ weight, torch.eye(3, dtype=torch.float64).expand(3, 3, 3)) < 1e-13


@each_case
def test_everything_can_be_used_inside_autocast(name, shape, dtype):
    linear = layer(name, shape, CASES[name].dtypes[0])
    x = torch.randn(3, shape[1], dtype=linear.weight.dtype)

    def gradients():
        loss = linear.weight.abs().square().sum() + linear.weight.real.sum()
        return torch.autograd.grad(loss, list(linear.parameters()))

    outside = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = multiply(linear, "weight", x if x.is_complex() else x.bfloat16())
        inside = gradients()
    assert y.dtype == linear.weight.dtype
    if name.startswith(("cwy", "householder", "tcwy", "eunn")):  # whose backward passes are written by hand
        for a, b in zip(inside, outside, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_multiply_is_right_for_large_angles_and_many_rows():
    for make in (Exponential, Cayley, ScaledCayley):
        linear = mnvi.constrain(nn.Linear(65, 65, dtype=torch.float64), "weight", make())
        for scale in (1e-3, 1.0, 1e2, 1e4):
            with torch.no_grad():
                next(p for p in linear.parameters() if p.numel() > 65).normal_(std=scale)
            for rows in (1, 200):
                x = torch.randn(rows, 65, dtype=torch.float64)
                assert distance(multiply(linear, "weight", x), x @ linear.weight.mT) < 1e-9


def test_a_refused_assignment_leaves_a_trivialization_as_it_was():
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", Trivialization())
    before = linear.weight.detach().clone()
    for wrong in (torch.eye(4, dtype=torch.float64), torch.eye(5), torch.eye(4)[None]):
        with pytest.raises(ValueError):
            linear.weight = wrong
    assert torch.equal(linear.weight, before)


def test_parameters_are_contiguous_and_own_parametrizations_can_be_written():
    for manifold in (Stiefel(), Grassmann(), SpecialOrthogonal(), Unitary()):
        dtype = torch.complex64 if isinstance(manifold, Unitary) else None
        linear = mnvi.constrain(nn.Linear(5, 5, dtype=dtype), "weight", Trivialization(manifold))
        assert all(p.is_contiguous() for p in linear.parameters())


def test_a_failed_constrain_leaves_the_parametrization_usable():
    cayley = Cayley(init="haar")
    with pytest.raises(TypeError):
        mnvi.constrain(nn.Linear(4, 4), "weight", cayley, start="draw", generator=3)
    mnvi.constrain(nn.Linear(4, 4), "weight", cayley)


def test_multiply_refuses_a_chain_of_parametrizations():
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", Cayley())
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    with pytest.raises(ValueError, match="further parametrizations"):
        multiply(linear, "weight", torch.ones(4))


@each_case
def test_factors_make_the_weight(name, shape, dtype):
    linear = layer(name, shape, dtype)
    made = factors(linear, "weight")
    if len(made) == 1:
        assert torch.equal(made[0], linear.weight)
        return
    u, p = made
    assert u.shape == p.shape
    assert len(u) < shape[0]
    assert distance(torch.eye(shape[0], dtype=dtype) - u.mT @ p, linear.weight) < 1e-10


def test_factors_of_few_reflections_are_thin_and_of_every_other_weight_the_weight():
    linear = mnvi.constrain(nn.Linear(5, 5), "weight", CWY(2))
    assert [each.shape for each in factors(linear, "weight")] == [(2, 5), (2, 5)]
    with parametrize.cached():
        assert factors(linear, "weight")[0] is linear.weight
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert torch.equal(*factors(linear, "weight"), linear.weight)
    plain = nn.Linear(3, 2)
    assert factors(plain, "weight") == (plain.weight,)
