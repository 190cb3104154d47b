"""Coordinate descent on the orthogonal group: oracles, matchings, what is read, convergence, saving, bad input."""

import copy
import io
import math
import pickle

import pytest
import scipy.linalg
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mnvi.manifolds import Euclidean, Orthogonal, SpecialOrthogonal, Stiefel
from mnvi.optim import CoordinateDescent, RiemannianSGD
from mnvi.optim._matching import greedy_matching, heaviest_pairs, numbers, random_matching, random_pairs
from tests.cases import cases
from tests.laws import assert_close

pytestmark = pytest.mark.usefixtures("float64")

STEPS = {"plain": {}, "momentum": {"momentum": 0.8}, "adam": {"betas": (0.9, 0.99)}}
CHOICES = {
    "uniform": {},
    "uniform-block": {"block": 2},
    "uniform-any-block": {"block": 5, "disjoint": False},
    "southwell": {"selection": "gauss-southwell"},
    "southwell-block": {"selection": "gauss-southwell", "block": 0.2},
    "southwell-any-block": {"selection": "gauss-southwell", "block": 0.2, "disjoint": False},
}
RULES = {f"{a}-{b}": {**CHOICES[a], **STEPS[b]} for a in CHOICES for b in STEPS}


def rotation(*shape, dtype=None):
    return SpecialOrthogonal().random(*shape, dtype=dtype).requires_grad_()


def descent(*params, seed=0, **options):
    group = {"params": list(params), "manifold": Orthogonal()}
    return CoordinateDescent([group], **{"lr": 0.1, "generator": torch.Generator().manual_seed(seed)} | options)


def basis(d, j, k):
    h = torch.zeros(d, d)
    h[j, k], h[k, j] = 0.5**0.5, -(0.5**0.5)
    return h


def smooth(w):
    target = torch.arange(w.numel(), dtype=w.dtype).sin().view(w.shape)
    return ((w - target) ** 4).sum().div(10).exp().log1p() + (w * target.flip(-1)).sum().sin()


def run(optimiser, params, steps, loss=smooth):
    for _ in range(steps):
        optimiser.zero_grad()
        sum(loss(p) for p in params).backward()
        optimiser.step()


def moved(before, after):
    """The columns that differ."""
    return set((before != after).any(0).nonzero().flatten().tolist())


def all_derivatives(loss, w, h=1e-6):
    """Central differences along W exp(tH), in the order of the coordinates: the number, (j, l), derivative."""
    d = w.shape[-1]
    for number, (j, k) in enumerate(torch.triu_indices(d, d, 1).T.tolist()):
        turn = torch.from_numpy(scipy.linalg.expm(h * basis(d, j, k).numpy()))
        yield number, (j, k), ((loss(w @ turn) - loss(w @ turn.mT)) / (2 * h)).item()


def same(left, right):
    """Equal to the last bit, in nested containers too."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


# One step


@cases("choice", CHOICES)
def test_a_step_is_the_exponential_of_the_chosen_partial_derivatives(choice):
    """With finite differences for the derivatives and scipy for the exponential; the choice is read off the moments."""
    w = rotation(7, 7)
    before, lr = w.detach().clone(), 0.05
    derivatives = {number: (pair, g) for number, pair, g in all_derivatives(smooth, before)}
    optimiser = descent(w, lr=lr, momentum=0.5, **choice)
    run(optimiser, [w], 1)
    chosen = optimiser.state[w]["momentum_buffer"].nonzero().flatten().tolist()
    assert len(chosen) == {0.2: 3 if choice.get("disjoint", True) else 4}.get(block := choice.get("block", 1), block)
    a = sum(-lr * derivatives[i][1] * basis(7, *derivatives[i][0]) for i in chosen)
    torch.testing.assert_close(w.detach(), before @ torch.from_numpy(scipy.linalg.expm(a.numpy())), rtol=0, atol=1e-8)
    assert (w - before @ torch.from_numpy(scipy.linalg.expm(-a.numpy()))).abs().max() > 1e-4  # the sign is seen
    assert (w - before @ torch.from_numpy(scipy.linalg.expm(a.numpy() / 2**0.5))).abs().max() > 1e-4  # and the √2
    if choice.get("disjoint", True):
        columns = [column for i in chosen for column in derivatives[i][0]]
        assert len(set(columns)) == len(columns)
        assert moved(before, w.detach()) == set(columns)


@cases("shape", {"even": 8, "odd": 9})
def test_gauss_southwell_takes_the_largest_partial_derivatives(shape):
    """The first greedily among disjoint pairs, in plain Python, from finite differences."""
    w = rotation(shape, shape)
    order = sorted(all_derivatives(smooth, w.detach()), key=lambda entry: -abs(entry[2]))
    greedy, used = [], set()
    for number, pair, _ in order:
        if not used & set(pair):
            greedy.append(number)
            used |= set(pair)
    for block in (1, 2, shape // 2):
        for disjoint, expected in ((True, greedy), (False, [number for number, *_ in order])):
            twin = w.detach().clone().requires_grad_()
            optimiser = descent(twin, selection="gauss-southwell", block=block, disjoint=disjoint, betas=(0.9, 0.9))
            run(optimiser, [twin], 1)
            assert set(optimiser.state[twin]["turns"].nonzero().flatten().tolist()) == set(expected[:block])


@cases("step", {name: STEPS[name] for name in ("plain", "momentum")})
@pytest.mark.parametrize("maximize", [False, True])
def test_all_coordinates_together_are_riemannian_gradient_descent(step, maximize):
    """Momentum is transported alike: its coordinates stay while the frame turns, which is left translation."""
    ours = rotation(6, 6)
    theirs = ours.detach().clone().requires_grad_()
    group = {"params": [theirs], "manifold": Orthogonal(retraction="exp")}
    run(descent(ours, lr=0.03, block=1.0, disjoint=False, maximize=maximize, **step), [ours], 12)
    run(RiemannianSGD([group], lr=0.03, maximize=maximize, **step), [theirs], 12)
    assert_close(ours.detach(), theirs.detach(), 1e3)


def test_the_adam_like_rule_is_torchs_adam_on_the_turns_of_each_coordinate():
    """torch's Adam on ordinary parameters, one a coordinate, fed with a coordinate's gradients as they were seen."""
    w = rotation(5, 5)
    optimiser = descent(w, lr=0.02, betas=(0.8, 0.9), eps=1e-3)
    pairs = torch.triu_indices(5, 5, 1).T.tolist()
    twins = [torch.zeros((), requires_grad=True) for _ in pairs]
    adams = [torch.optim.Adam([twin], lr=0.02, betas=(0.8, 0.9), eps=1e-3) for twin in twins]
    turns = [0] * len(pairs)
    for _ in range(60):
        before = w.detach().clone()
        run(optimiser, [w], 1)
        j, k = sorted(moved(before, w.detach()))
        i = pairs.index([j, k])
        turns[i] += 1
        twins[i].grad = (w.grad * (before @ basis(5, j, k))).sum()
        start = twins[i].item()
        adams[i].step()
        turn = scipy.linalg.expm((twins[i].item() - start) * basis(5, j, k).numpy())
        assert_close(w.detach(), before @ torch.from_numpy(turn), 1e3)
    assert max(turns) > 3
    assert optimiser.state[w]["turns"].tolist() == turns


def test_the_angles_of_the_adam_like_rule_do_not_depend_on_the_scale_of_the_loss():
    results = []
    for scale in (1.0, 2.0**20):
        torch.manual_seed(1)
        w = rotation(6, 6)
        run(descent(w, block=3, betas=(0.9, 0.99), eps=0), [w], 10, lambda w, scale=scale: scale * smooth(w))
        results.append(w.detach())
    assert_close(*results)


@cases("rule", RULES)
@pytest.mark.parametrize("angle", [1e-9, 0.3, 100.0, 1e6])
def test_any_angle_keeps_orthogonality_and_the_determinant(rule, angle):
    for dtype in (torch.float32, torch.float64):
        w = rotation(8, 8, dtype=dtype)
        run(descent(w, **rule, lr=angle), [w], 5)
        assert Orthogonal().residual(w.detach()) < 30 * 8 * torch.finfo(dtype).eps
        assert torch.linalg.det(w.detach()) > 0.9


def test_rotations_do_not_drift_in_float32():
    """Rounding errors must add up as a random walk, in all columns of 1,000 steps, for angles of one small size."""
    w = rotation(20, 20, dtype=torch.float32)
    optimiser = descent(w, lr=1e-3, block=10, betas=(0.0, 0.0))
    for _ in range(1000):
        w.grad = w @ torch.ones(20, 20, dtype=torch.float32).triu(1)
        optimiser.step()
    assert Orthogonal().residual(w.detach().double()) < 20 * 1000**0.5 * torch.finfo(torch.float32).eps


def test_reprojection_comes_every_so_many_steps():
    w = rotation(6, 6)
    optimiser = descent(w, reproject_every=4)
    with torch.no_grad():
        w.mul_(1.0001)
    for i in range(1, 6):
        run(optimiser, [w], 1)
        assert (Orthogonal().residual(w.detach()) < 1e-13) == (i >= 4)


# Matchings


def brute_force(weights, size):
    d = len(weights)
    order = sorted(((j, k) for k in range(d) for j in range(k)), key=lambda pair: -weights[pair].item())
    chosen, used = [], set()
    for j, k in order:
        if len(chosen) < size and not used & {j, k} and weights[j, k] > 0:
            chosen.append([j, k])
            used |= {j, k}
    return chosen


def symmetric(a):
    return (a + a.mT).fill_diagonal_(0)


WEIGHTS = {
    "random": lambda d: symmetric(torch.rand(d, d)),
    "heavy-tailed": lambda d: symmetric(torch.rand(d, d).pow(-8)),
    "rank-two": lambda d: symmetric(torch.outer(torch.rand(d), torch.rand(d))),
    "a-chain": lambda d: symmetric(torch.diag(torch.arange(1.0, d), 1)),
    "mostly-zero": lambda d: symmetric(torch.rand(d, d) * (torch.rand(d, d) < 1 / d)),
    "zero": lambda d: torch.zeros(d, d),
}


@cases("weights", WEIGHTS)
@pytest.mark.parametrize("d", [2, 3, 10, 31])
def test_greedy_matching_is_the_brute_force_one(weights, d):
    w = weights(d)
    for size in {1, d // 3 or 1, d // 2}:
        assert greedy_matching(w, size).T.tolist() == brute_force(w, size)


@pytest.mark.parametrize("d", [2, 5, 12])
def test_greedy_matching_of_equal_weights_takes_all_columns(d):
    pairs = greedy_matching(torch.ones(d, d), d // 2)
    assert pairs.shape == (2, d // 2)
    assert len(set(pairs.flatten().tolist())) == pairs.numel()


@pytest.mark.parametrize("draw", [random_matching, random_pairs])
def test_random_pairs_are_uniform(draw):
    """z-scores of the counts of all pairs of 6 columns, by the binomial's standard error."""
    generator, d, size, draws = torch.Generator().manual_seed(3), 6, 2, 4000
    counts = torch.zeros(15)
    for _ in range(draws):
        pairs = draw(d, size, generator)
        assert pairs.shape == (2, size)
        assert (pairs[0] < pairs[1]).all()
        if draw is random_matching:
            assert len(set(pairs.flatten().tolist())) == 2 * size
        counts[numbers(pairs, d)] += 1
    share = size / 15
    assert ((counts - draws * share) / (draws * share * (1 - share)) ** 0.5).abs().max() < 5


def test_coordinates_are_numbered_row_by_row():
    pairs = torch.triu_indices(7, 7, 1)
    assert numbers(pairs, 7).tolist() == list(range(21))
    assert heaviest_pairs(symmetric(torch.rand(7, 7)), 21).shape == (2, 21)


# What a uniform step reads


@cases("step", STEPS)
def test_a_uniform_step_reads_the_gradient_of_its_two_columns_only(step):
    w = rotation(30, 30)
    twin = w.detach().clone().requires_grad_()
    gradient = torch.randn(30, 30)
    w.grad = gradient.clone()
    descent(w, **step).step()
    columns = moved(twin.detach(), w.detach())
    assert len(columns) == 2
    twin.grad = torch.full((30, 30), math.nan)
    twin.grad[:, list(columns)] = gradient[:, list(columns)]
    descent(twin, **step).step()
    assert torch.equal(w, twin)


class Largest(TorchDispatchMode):
    """The size of the largest array that is made anew, and the names of what wrote into a whole parameter."""

    def __init__(self, d):
        super().__init__()
        self.whole, self.numel, self.written = (d, d), 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        storages = {arg.untyped_storage().data_ptr() for arg in args if torch.is_tensor(arg)}
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in storages:
                self.numel = max(self.numel, t.numel())
        if func._schema.is_mutable and tuple(args[0].shape) == self.whole:
            self.written.add(str(func))
        return result


@cases("step", STEPS)
def test_a_uniform_step_makes_no_array_larger_than_its_columns(step):
    d = 150
    w = rotation(d, d)
    w.grad = torch.randn(d, d)
    uniform, southwell = descent(w, **step), descent(w, selection="gauss-southwell", **step)
    uniform.step()
    southwell.step()
    with Largest(d) as largest:
        uniform.step()
    assert largest.numel <= 4 * d
    assert largest.written == {"aten.index_copy_.default"}
    with Largest(d) as largest:  # a control: this one reads all
        southwell.step()
    assert largest.numel >= d * d


# Problems with a known answer


@cases("rule", RULES)
def test_every_rule_solves_a_procrustes_problem(rule):
    """min ‖AW − B‖² over rotations, whose solution scipy knows."""
    a = torch.eye(4) + 0.1 * torch.randn(4, 4)
    b = a @ SpecialOrthogonal().random(4, 4) + 0.1 * torch.randn(4, 4)
    best = torch.from_numpy(scipy.linalg.orthogonal_procrustes(a, b)[0])
    w = SpecialOrthogonal().retract(best, SpecialOrthogonal().tangent(best, torch.randn(4, 4))).requires_grad_()
    assert (w - best).abs().max() > 0.3
    optimiser = descent(w, lr=0.05 if "momentum" in rule else 0.1, **rule)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.993 if "betas" in rule else 1.0)
    for _ in range(300):
        w.grad = 2 * a.mT @ (a @ w.detach() - b)
        optimiser.step()
        schedule.step()
    assert (w - best).abs().max() < 0.02


@cases("choice", CHOICES)
def test_eigenvalues(choice):
    """min tr NWᵀSW over orthogonal W sorts the eigenvalues of S against N."""
    q, n = Orthogonal().random(4, 4), torch.diag(torch.arange(4.0))
    s = q @ torch.diag(torch.arange(4.0)) @ q.mT
    w = rotation(4, 4)
    optimiser = descent(w, lr=0.1, **choice)
    for _ in range(600):
        w.grad = 2 * s @ w.detach() @ n
        optimiser.step()
    assert (w.mT @ s @ w - torch.diag(torch.arange(4.0).flip(0))).abs().max() < 1e-3


# Groups, batches, saving


@cases("step", STEPS)
def test_one_optimiser_serves_a_whole_model_with_torchs_steps_for_the_rest(step):
    kernel, special, bias = rotation(5, 5), rotation(4, 4), torch.randn(3, 2, requires_grad=True)
    twin = bias.detach().clone().requires_grad_()
    groups = [
        {"params": [kernel], "manifold": Orthogonal()},
        {"params": [special], "manifold": SpecialOrthogonal(), "selection": "gauss-southwell", "block": 2},
        {"params": [bias], "weight_decay": 0.1},
        {"params": [torch.randn(3, requires_grad=True)], "manifold": Euclidean()},
    ]
    start = kernel.detach().clone(), special.detach().clone()
    run(CoordinateDescent(groups, lr=0.01, **step), [kernel, special, bias], 5)
    torchs = torch.optim.Adam if "betas" in step else torch.optim.SGD
    run(torchs([twin], lr=0.01, weight_decay=0.1, **step), [twin], 5)
    assert torch.equal(bias, twin)
    for p, old in zip((kernel, special), start, strict=True):
        assert_close(Orthogonal().residual(p.detach()), 0.0)
        assert (p != old).any()


@cases("rule", RULES)
def test_a_batch_is_stepped_as_its_matrices_one_after_the_other(rule):
    batch = rotation(2, 3, 6, 6)
    single = [w.detach().clone().requires_grad_() for w in batch.flatten(0, 1)]
    target = torch.randn(2, 3, 6, 6)
    run(descent(batch, **rule), [batch], 6, lambda x: (x * target).sum())
    optimiser = descent(*single, **rule)
    for _ in range(6):
        for w, t in zip(single, target.flatten(0, 1), strict=True):
            w.grad = t.clone()
        optimiser.step()
    assert_close(batch.detach().flatten(0, 1), torch.stack(single).detach())


def test_an_empty_batch_has_nothing_to_turn():
    w = torch.zeros(0, 4, 4, requires_grad=True)
    run(descent(w, momentum=0.5), [w], 2, lambda w: w.sum())


def test_parameters_are_updated_in_place_whatever_their_layout():
    w = SpecialOrthogonal().random(6, 6)
    results = []
    for layout in (w, w.mT.contiguous().mT, torch.stack([w, w], -1)[..., 0]):
        p = layout.detach().requires_grad_()
        place = p.data_ptr()
        run(descent(p, block=2, lr=0.01), [p], 5)
        assert p.data_ptr() == place
        results.append(p.detach().clone())
    for other in results[1:]:
        assert_close(other, results[0])


@cases("rule", RULES)
def test_the_seed_decides(rule):
    start, results = rotation(7, 7), []
    for seed in (0, 0, 1):
        w = start.detach().clone().requires_grad_()
        run(descent(w, seed=seed, **rule), [w], 5)
        results.append(w.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == ("selection" in rule)


def test_without_a_generator_torchs_seed_decides():
    results, start = [], rotation(7, 7)
    for _ in range(2):
        torch.manual_seed(5)
        w = start.detach().clone().requires_grad_()
        run(descent(w, generator=None), [w], 5)
        results.append(w.detach())
    assert torch.equal(*results)


@cases("rule", RULES)
def test_a_resumed_run_takes_the_same_steps(rule):
    w, v = rotation(6, 6), torch.randn(3, requires_grad=True)
    groups = [{"params": [w], "manifold": Orthogonal()}, {"params": [v]}]
    optimiser = CoordinateDescent(groups, lr=0.01, generator=torch.Generator().manual_seed(4), **rule)
    run(optimiser, [w, v], 6)
    file = io.BytesIO()
    torch.save((optimiser.state_dict(), w.detach(), v.detach()), file)
    run(optimiser, [w, v], 6)
    file.seek(0)
    state_dict, *values = torch.load(file, weights_only=True)
    w2, v2 = (value.requires_grad_() for value in values)
    groups = [{"params": [w2], "manifold": Orthogonal()}, {"params": [v2]}]
    resumed = CoordinateDescent(groups, generator=torch.Generator(), **rule)
    resumed.load_state_dict(state_dict)
    run(resumed, [w2, v2], 6)
    assert torch.equal(w, w2)
    assert torch.equal(v, v2)
    assert same(resumed.state_dict(), optimiser.state_dict())


@cases("step", STEPS)
def test_copies_and_pickles_continue_alike(step):
    w = rotation(6, 6)
    optimiser = descent(w, block=2, **step)
    run(optimiser, [w], 3)
    for twin in (copy.deepcopy(optimiser), pickle.loads(pickle.dumps(optimiser))):
        original, mine = copy.deepcopy((optimiser, w))
        other = twin.param_groups[0]["params"][0]
        run(original, [mine], 3)
        run(twin, [other], 3)
        assert torch.equal(mine, other)


def test_loading_the_state_of_a_generator_needs_one():
    w = rotation(4, 4)
    saved = descent(w).state_dict()
    assert saved["param_groups"][0]["manifold"] == repr(Orthogonal())
    with pytest.raises(ValueError, match="give CoordinateDescent a generator"):
        descent(w, generator=None).load_state_dict(saved)
    plain = descent(w, generator=None).state_dict()
    assert "generator" not in plain
    descent(w).load_state_dict(plain)
    with pytest.raises(ValueError, match="saved state on Orthogonal"):
        CoordinateDescent([w], generator=torch.Generator()).load_state_dict(saved)


def test_closures_and_tensor_learning_rates():
    results, start = [], rotation(5, 5)
    for lr in (0.03, torch.tensor(0.03), torch.tensor([0.03])):
        w = start.detach().clone().to(torch.float32).requires_grad_()
        optimiser = descent(w, lr=lr, block=2)

        def closure(w=w, optimiser=optimiser):
            optimiser.zero_grad()
            loss = smooth(w)
            loss.backward()
            return loss

        for _ in range(3):
            assert optimiser.step(closure).requires_grad
        results.append(w.detach())
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


@cases("step", STEPS)
def test_schedules_drive_rates_and_momenta(step):
    w = rotation(5, 5)
    optimiser = descent(w, **step)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=10)
    seen = set()
    for _ in range(9):
        run(optimiser, [w], 1)
        schedule.step()
        seen.add(optimiser.param_groups[0]["lr"])
    assert len(seen) > 3


def test_parameters_without_a_gradient_are_passed_over():
    w, v = rotation(5, 5), rotation(5, 5)
    before = v.detach().clone()
    optimiser = descent(w, v)
    w.grad = torch.randn(5, 5)
    optimiser.step()
    assert torch.equal(v, before)
    assert v not in optimiser.state


@cases("choice", CHOICES)
def test_a_gradient_of_zero_changes_nothing(choice):
    w = rotation(6, 6)
    before = w.detach().clone()
    w.grad = torch.zeros(6, 6)
    descent(w, **choice).step()
    assert_close(w.detach(), before)


# Bad input


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ({"manifold": Stiefel()}, TypeError, r"Orthogonal\(\) and SpecialOrthogonal\(\), got Stiefel"),
        ({"manifold": Orthogonal}, TypeError, "did you mean Orthogonal"),
        ({"params": [torch.ones(3, 3)]}, ValueError, "parameter 0 of group 1, .*not a point of Orthogonal"),
        ({"params": [torch.ones(3, 2)]}, ValueError, "needs a square shape"),
        ({"params": [torch.ones(1, 1)]}, ValueError, "parameter 0 of group 1, .*at least 2 columns, got 1"),
        ({"params": [torch.eye(3, dtype=torch.complex128)]}, ValueError, "needs real numbers"),
        ({"selection": "random"}, ValueError, "selection must be one of 'uniform', 'gauss-southwell', got 'random'"),
        ({"block": 4}, ValueError, "block must be at most 3 disjoint pairs of 6 columns, got 4"),
        ({"block": 16, "disjoint": False}, ValueError, "block must be at most 15 pairs of 6 columns, got 16"),
        ({"block": 0}, ValueError, "block must be at least 1"),
        ({"block": 1.5}, ValueError, r"a fraction in \(0, 1\]"),
        ({"block": math.nan}, ValueError, r"a fraction in \(0, 1\]"),
        ({"block": "all"}, TypeError, "block must be an int"),
        ({"block": True}, TypeError, "block must be an int"),
        ({"disjoint": 1}, TypeError, "disjoint must be True or False"),
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"momentum": -1.0}, ValueError, "momentum must be"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
        ({"eps": -1.0}, ValueError, "eps must be"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9, 0.99), "momentum": 0.5}, ValueError, "replace momentum, got momentum 0.5"),
        ({"reproject_every": -1}, ValueError, "reproject_every"),
    ],
)
def test_bad_groups_are_refused(group, error, words):
    good = {"params": [rotation(6, 6)], "manifold": Orthogonal()}
    bad = {"params": [rotation(6, 6)], "manifold": Orthogonal(), **group}
    with pytest.raises(error, match=words):
        CoordinateDescent([good, bad])
    optimiser = CoordinateDescent([good])
    with pytest.raises(error, match=words):
        optimiser.add_param_group(bad)
    assert len(optimiser.param_groups) == 1


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="generator must be"):
        CoordinateDescent([rotation(3, 3)], generator=3)


def assert_refused(optimiser, params, words):
    before = copy.deepcopy(([p.detach() for p in params], optimiser.state_dict()))
    with pytest.raises(ValueError, match=words):
        optimiser.step()
    assert same(([p.detach() for p in params], optimiser.state_dict()), before)


BAD = {
    "nan": (lambda g: g.fill_(math.nan), "gradient of parameter 1 of group 0, .* is not finite"),
    "infinite": (lambda g: g.fill_(-math.inf), "gradient of parameter 1 of group 0, .* is not finite"),
    "one-nan-a-column": (lambda g: g[:1].fill_(math.nan), "gradient of parameter 1 of group 0, .* is not finite"),
    "sparse": (lambda g: g.to_sparse(), "gradient of parameter 1 of group 0, .* is sparse"),
}


@cases("rule", CHOICES | {name: RULES[name] for name in ("uniform-momentum", "southwell-block-adam")})
@cases("bad", BAD)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_bad_gradient_changes_nothing_not_even_the_generator(rule, bad, steps):
    spoil, words = bad
    w, v = rotation(6, 6), rotation(6, 6)
    optimiser = descent(w, v, **rule)
    run(optimiser, [w, v], steps)
    w.grad, v.grad = torch.randn(6, 6), spoil(torch.randn(6, 6)) if "sparse" in words else torch.randn(6, 6)
    if "sparse" not in words:
        spoil(v.grad)
    assert_refused(optimiser, [w, v], words)
    assert bool(optimiser.state) == bool(steps)


@cases("choice", {name: CHOICES[name] for name in CHOICES if "southwell" in name})
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gauss_southwell_sees_one_bad_number(choice, value):
    w = rotation(6, 6)
    w.grad = torch.randn(6, 6)
    w.grad[2, 3] = value
    assert_refused(descent(w, **choice), [w], "gradient of parameter 0 of group 0, .* is not finite")


def test_a_bad_euclidean_gradient_stops_the_whole_step():
    w, v = rotation(6, 6), torch.randn(3, requires_grad=True)
    groups = [{"params": [("kernel", w)], "manifold": Orthogonal()}, {"params": [("bias", v)]}]
    optimiser = CoordinateDescent(groups, generator=torch.Generator())
    w.grad, v.grad = torch.randn(6, 6), torch.full((3,), math.inf)
    assert_refused(optimiser, [w, v], "gradient of parameter 'bias'")
    w.grad, v.grad = torch.full((6, 6), math.nan), torch.randn(3)
    assert_refused(optimiser, [w, v], "gradient of parameter 'kernel'")


@cases("step", STEPS)
def test_a_step_that_overflows_changes_nothing(step):
    w = rotation(6, 6)
    optimiser = descent(w, lr=1e200, **step)
    w.grad = 1e200 * torch.randn(6, 6)
    assert_refused(optimiser, [w], "step of parameter 0 of group 0, .* is not finite")
