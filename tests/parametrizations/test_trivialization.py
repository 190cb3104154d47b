"""Dynamic trivializations: rebasing, Riemannian gradient descent as its limit, optimiser state, resuming."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import mnvi
from mnvi.manifolds import (
    SPD,
    CholeskySPD,
    Euclidean,
    GeneralLinear,
    Grassmann,
    Kronecker,
    Orthogonal,
    SpecialLinear,
    SpecialOrthogonal,
    Stiefel,
    Unitary,
)
from mnvi.manifolds.retractions import RETRACTIONS
from mnvi.optim import RiemannianSGD
from mnvi.parametrizations import Trivialization

SPACES = {
    **{f"so-{r}": (SpecialOrthogonal(retraction=r), (5, 5), torch.float64) for r in RETRACTIONS},
    "o": (Orthogonal(), (5, 5), torch.float64),
    "unitary": (Unitary(retraction="exp"), (4, 4), torch.complex128),
    **{
        f"stiefel-{m}-{r}": (Stiefel(m, r), (6, 3), torch.float64)
        for m in ("canonical", "euclidean")
        for r in ("qr", "cayley", "exp")
    },
    "grassmann": (Grassmann(), (6, 3), torch.float64),
    "spd": (SPD(), (4, 4), torch.float64),
    "spd-bures": (SPD(metric="bures-wasserstein"), (4, 4), torch.float64),
    "cholesky": (CholeskySPD(), (4, 4), torch.float64),
    "gl": (GeneralLinear(), (4, 4), torch.float64),
    "sl": (SpecialLinear(), (4, 4), torch.float64),
    "euclidean": (Euclidean(), (4, 3), torch.float64),
}
spaces = pytest.mark.parametrize(("manifold", "shape", "dtype"), list(SPACES.values()), ids=list(SPACES))


def constrained(parametrization, shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape, dtype=dtype))
    return mnvi.constrain(module, "weight", parametrization)


def descend(optimiser, weight, target, steps, value=lambda w: w):
    for _ in range(steps):
        optimiser.zero_grad()
        (value(weight()) - target).abs().square().sum().backward()
        optimiser.step()


@spaces
def test_rebased_at_every_step_it_is_riemannian_gradient_descent(manifold, shape, dtype):
    module = constrained(Trivialization(manifold, rebase_every=1, project_every=None), shape, dtype)
    point = nn.Parameter(module.weight.detach().clone())
    # A function of a Cholesky factor has to be one of the matrix that it stands for.
    value = (lambda a: a @ a.mT) if isinstance(manifold, CholeskySPD) else lambda w: w
    start, target = point.detach().clone(), torch.randn(shape, dtype=dtype)
    riemannian = RiemannianSGD([{"params": [point], "manifold": manifold}], lr=0.02, reproject_every=None)
    for _ in range(5):
        descend(torch.optim.SGD(module.parameters(), lr=0.02), lambda: module.weight, target, 1, value)
        descend(riemannian, lambda: point, target, 1, value)
        assert torch.allclose(module.weight, point, rtol=1e-10, atol=1e-10)
    assert (point - start).abs().max() > 0.01


@spaces
def test_a_rebase_leaves_the_weight_and_empties_the_coordinates(manifold, shape, dtype):
    trivialization = Trivialization(manifold)
    module = constrained(trivialization, shape, dtype)
    original = module.parametrizations.weight.original
    with torch.no_grad():
        original.add_(0.1 * torch.randn(shape, dtype=dtype))
    before = module.weight.detach().clone()
    trivialization.rebase(original)
    assert not original.any()
    assert torch.allclose(module.weight, before, rtol=1e-12, atol=1e-12)
    assert torch.allclose(trivialization.base, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("every", [1, 3, None, math.inf])
@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.RMSprop, RiemannianSGD])
def test_it_is_rebased_after_every_so_many_steps_of_any_optimiser(every, rule):
    trivialization = Trivialization(rebase_every=every, project_every=2)
    module = constrained(trivialization, (5, 5))
    optimiser = rule(module.parameters(), lr=0.01)
    original, bases = module.parametrizations.weight.original, [trivialization.base.clone()]
    for step in range(1, 8):
        descend(optimiser, lambda: module.weight, torch.ones(5, 5), 1)
        rebased = every in (1, 3) and step % every == 0
        assert bool(original.any()) is not rebased
        assert torch.equal(trivialization.base, bases[-1]) is not rebased
        bases.append(trivialization.base.clone())
    assert trivialization.steps == 7


def test_several_passes_before_a_step_count_once_and_other_optimisers_do_not():
    trivialization = Trivialization(rebase_every=2)
    module = constrained(trivialization, (4, 4))
    other = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        module.weight.sum().backward()
    optimiser.step()
    other.sum().backward()
    torch.optim.SGD([other], lr=0.1).step()
    optimiser.zero_grad()
    optimiser.step()  # without a gradient nothing moved
    assert trivialization.steps == 1


def test_what_happens_to_the_state_of_the_optimiser_is_chosen():
    states = {}
    for choice in ("keep", "transport", "reset"):
        trivialization = Trivialization(Stiefel("euclidean"), rebase_every=3, optimizer_state=choice)
        module = constrained(trivialization, (6, 3))
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        target = torch.randn(6, 3, dtype=torch.float64)
        descend(optimiser, lambda module=module: module.weight, target, 2)
        old = trivialization.base.clone()
        descend(optimiser, lambda module=module: module.weight, target, 1)
        assert not torch.equal(old, trivialization.base)
        states[choice] = (optimiser.state[module.parametrizations.weight.original], old, trivialization.base)
    assert not states["reset"][0]
    kept, old, new = states["keep"]
    moved = states["transport"][0]
    manifold = Stiefel("euclidean")
    assert torch.equal(kept["exp_avg_sq"], moved["exp_avg_sq"])
    expected = manifold.transport(old, new, manifold.tangent(old, kept["exp_avg"]))
    assert torch.allclose(moved["exp_avg"], expected)
    assert float((moved["exp_avg"] - kept["exp_avg"]).abs().max()) > 1e-4
    assert torch.allclose(manifold.tangent(new, moved["exp_avg"]), moved["exp_avg"])


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_resuming_in_the_middle_gives_the_same_steps(stop):
    target = torch.randn(5, 5, dtype=torch.float64)

    def start(seed):
        module = constrained(Trivialization(rebase_every=3, project_every=2), (5, 5), seed=seed)
        return module, torch.optim.Adam(module.parameters(), lr=0.05)

    whole, optimiser = start(0)
    descend(optimiser, lambda: whole.weight, target, 11)
    first, optimiser = start(0)
    descend(optimiser, lambda: first.weight, target, stop)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimiser = start(1)
    second.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    descend(optimiser, lambda: second.weight, target, 11 - stop)
    assert torch.equal(whole.weight, second.weight)


def test_a_copy_is_followed_on_its_own():
    module = constrained(Trivialization(rebase_every=2), (4, 4))
    copied = copy.deepcopy(module)
    target = torch.ones(4, 4)
    descend(torch.optim.SGD(module.parameters(), lr=0.01), lambda: module.weight, target, 1)
    descend(torch.optim.SGD(copied.parameters(), lr=0.01), lambda: copied.weight, target, 2)
    assert (module.parametrizations.weight[0].steps, copied.parametrizations.weight[0].steps) == (1, 2)
    assert not copied.parametrizations.weight.original.any()


def test_many_rebases_stay_orthogonal_in_float32():
    torch.manual_seed(0)
    linear = mnvi.constrain(nn.Linear(32, 32), "weight", Trivialization(rebase_every=1, project_every=100))
    optimiser = torch.optim.RMSprop(linear.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (linear.weight * torch.randn(32, 32)).sum().backward()
        optimiser.step()
    defect = torch.linalg.matrix_norm(linear.weight.detach().T @ linear.weight.detach() - torch.eye(32), 2)
    assert defect < 10 * 32 * torch.finfo(torch.float32).eps


def test_lbfgs_and_closures_see_one_problem_a_step():
    trivialization = Trivialization(rebase_every=1)
    module = constrained(trivialization, (4, 4))
    target = SpecialOrthogonal().random(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = (module.weight - target).square().sum()
        loss.backward()
        return loss

    values = [optimiser.step(closure).item() for _ in range(8)]
    assert trivialization.steps == 8
    assert float(closure().detach()) < 1e-10 < values[0]


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="one tensor"):
        Trivialization(Kronecker())
    with pytest.raises(TypeError, match="did you mean Stiefel"):
        Trivialization(Stiefel)
    with pytest.raises(ValueError, match="rebase_every"):
        Trivialization(rebase_every=0)
    with pytest.raises(TypeError, match="project_every"):
        Trivialization(project_every=1.5)
    with pytest.raises(ValueError, match="optimizer_state"):
        Trivialization(optimizer_state="drop")
    with pytest.raises(ValueError, match="init 'henaff'"):
        Trivialization(SPD(), init="henaff")
    with pytest.raises(ValueError, match="needs a group"):
        Trivialization(Stiefel(), init="henaff")


def test_a_step_that_overflows_says_so():
    module = constrained(Trivialization(rebase_every=1), (4, 4))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module.weight.sum().backward()
    module.parametrizations.weight.original.grad.fill_(torch.nan)
    with pytest.raises(ValueError, match="finite"):
        optimiser.step()


@spaces
def test_coordinates_that_are_not_finite_are_refused(manifold, shape, dtype):
    if isinstance(manifold, Euclidean):
        return
    module = constrained(Trivialization(manifold), shape, dtype)
    nn.init.constant_(module.parametrizations.weight.original, torch.nan)
    with pytest.raises(ValueError, match="finite"):
        module.weight  # noqa: B018


def test_a_base_without_numbers_can_change_its_precision():
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", Trivialization())
    with torch.no_grad():
        linear.parametrizations.weight[0].base.fill_(torch.nan)
    assert linear.double().parametrizations.weight[0].base.dtype == torch.float64
    meta = mnvi.constrain(nn.Linear(4, 4), "weight", Trivialization()).to("meta").double()
    assert meta.parametrizations.weight[0].base.dtype == torch.float64


def test_a_copy_that_only_ever_runs_compiled_is_followed_too():
    module = copy.deepcopy(constrained(Trivialization(rebase_every=1), (4, 4)))
    compiled = torch.compile(lambda: module.weight.sum(), fullgraph=True, backend="eager")
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        compiled().backward()
        optimiser.step()
    assert module.parametrizations.weight[0].rebases == 3


def test_parameters_that_were_replaced_are_followed_by_multiply():
    linear = mnvi.constrain(nn.Linear(4, 4), "weight", Trivialization(rebase_every=1))
    linear.load_state_dict({name: each.clone() for name, each in linear.state_dict().items()}, assign=True)
    optimiser = torch.optim.SGD(linear.parameters(), 0.1)
    mnvi.parametrizations.multiply(linear, "weight", torch.randn(2, 4)).sum().backward()
    optimiser.step()
    assert linear.parametrizations.weight[0].steps == 1
