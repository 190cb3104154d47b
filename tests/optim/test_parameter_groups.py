"""Learning rates: groups of parameters, weight decay and schedules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import SWALR

import mnvi
from mnvi import ELBO, MNLinear
from mnvi.posteriors import MatrixNormal
from mnvi.priors import GroupARD
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, randomise
from tests.models import mlp

pytestmark = pytest.mark.usefixtures("float64")


@cases("family", SOME_FAMILIES)
def test_parameter_groups_are_disjoint_and_complete(family):
    model = mlp(posterior=family, prior=GroupARD(learn=True))
    groups = mnvi.parameter_groups(model, lr=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    of = {group["name"]: {names[id(p)].split(".", 1)[1] for p in group["params"]} for group in groups}
    assert of["means"] >= {"weight", "bias"}
    assert all("posterior" not in name for name in of["means"])
    assert all(name.rsplit(".")[-1].startswith("log_") for name in of["log_diagonals"])
    assert all("off_diagonal" in name or "loading" in name for name in of.get("off_diagonals", ()))
    torch.optim.Adam(groups).step()


def test_rates_of_the_groups():
    groups = {g["name"]: g["lr"] for g in mnvi.parameter_groups(mlp(), lr=0.01)}
    assert set(groups) == {"means", "log_diagonals", "off_diagonals"}
    assert groups["means"] == 0.01
    assert groups["off_diagonals"] <= 0.1 * groups["means"]
    rates = mnvi.parameter_groups(mlp(), lr=0.01, log_diagonals=0.5, off_diagonals=0.25)
    assert [g["lr"] for g in rates] == pytest.approx([0.01, 0.005, 0.0025])


def test_groups_of_other_models():
    assert [g["name"] for g in mnvi.parameter_groups(nn.Linear(2, 2))] == ["means"]
    shared = MNLinear(4, 4, posterior=MatrixNormal())
    assert sum(len(g["params"]) for g in mnvi.parameter_groups(nn.Sequential(shared, shared))) == 6


@pytest.mark.parametrize("name", ["lr", "log_diagonals", "off_diagonals"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_rates_are_positive_numbers(name, value, error):
    with pytest.raises(error, match=name):
        mnvi.parameter_groups(mlp(), **{name: value})


def test_training_with_the_groups_lowers_the_loss():
    model = mlp()
    x, target = torch.randn(64, 4), torch.randint(3, (64,))
    elbo, optimiser = ELBO(64), torch.optim.Adam(mnvi.parameter_groups(model, lr=0.03))
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss, *_ = elbo(F.cross_entropy(model(x), target), model)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@cases("family", SOME_FAMILIES)
def test_weight_decay_shrinks_means_and_nothing_else(family):
    """With gradients of zero a step of AdamW is its decay alone: θ ← (1 − lr·decay)·θ."""
    model = randomise(mlp(posterior=family, prior=GroupARD(learn=True)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(mnvi.parameter_groups(model, lr=0.1), weight_decay=0.5).step()
    for name, p in model.named_parameters():
        decayed = "posterior" not in name and "prior" not in name
        assert_close(p.detach(), 0.95 * before[name] if decayed else before[name])


def test_the_default_decay_of_the_optimiser_stays_for_means():
    groups = torch.optim.AdamW(mnvi.parameter_groups(mlp())).param_groups
    default = torch.optim.AdamW([torch.zeros(1)]).param_groups[0]["weight_decay"]
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "means": default,
        "log_diagonals": 0,
        "off_diagonals": 0,
    }


def one_cycle(optimiser, rates):
    return OneCycleLR(optimiser, max_lr=[10 * rate for rate in rates], total_steps=9)


def averaging(optimiser, rates):
    return SWALR(optimiser, swa_lr=[0.5 * rate for rate in rates], anneal_epochs=4)


@pytest.mark.parametrize("schedule", [one_cycle, averaging])
def test_schedules_with_a_rate_for_each_group_keep_the_ratios(schedule):
    groups = mnvi.parameter_groups(mlp(), lr=0.1, log_diagonals=0.5)
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.SGD(groups)
    schedule = schedule(optimiser, rates)
    seen = set()
    for _ in range(8):
        optimiser.step()
        schedule.step()
        now = [group["lr"] for group in optimiser.param_groups]
        assert [rate / now[0] for rate in now] == pytest.approx([rate / rates[0] for rate in rates])
        seen.add(now[0])
    assert len(seen) > 3


MODEL, NOISE = mlp(), nn.Parameter(torch.zeros(2))
BESIDE = {
    "a likelihood": (lambda: mnvi.likelihoods.Gaussian(), ["likelihoods"]),
    "an objective": (lambda: ELBO(5, likelihood=mnvi.likelihoods.StudentT(shape=(2,))), ["likelihoods"]),
    "a parameter": (lambda: NOISE, ["likelihoods"]),
    "a network": (lambda: nn.Linear(3, 2), ["means", "means"]),
    "a part of the model": (lambda: MODEL[0], []),
    "a parameter of the model": (lambda: MODEL[0].weight, []),
    "an objective without a likelihood": (lambda: ELBO(5), []),
}


@cases("row", BESIDE)
@pytest.mark.parametrize("kind", [list, tuple])
def test_groups_of_what_trains_together(row, kind):
    """The groups of the model alone, with each parameter beside it once, where it belongs."""
    beside, kinds = row[0](), row[1]
    groups = mnvi.parameter_groups(kind([MODEL, beside]), lr=0.5, off_diagonals=0.1)
    own = {p for group in mnvi.parameter_groups(MODEL) for p in group["params"]}
    names = {p: group["name"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert [name for p, name in names.items() if p not in own] == kinds
    assert {p: names[p] for p in own} == {
        p: group["name"] for group in mnvi.parameter_groups(MODEL) for p in group["params"]
    }
    for group in groups:
        assert group["lr"] == (0.05 if group["name"] == "off_diagonals" else 0.5)
        assert ("weight_decay" in group) == (group["name"] != "means")
    others = mnvi.other_parameters(kind([MODEL, beside]))
    assert [p for p in others if p not in own] == [p for p in names if p not in own]
    assert [p for p in others if p in own] == mnvi.other_parameters(MODEL)


NO_MODELS = {
    "parameters": lambda: MODEL.parameters(),
    "a list of parameters": lambda: [*MODEL.parameters()],
    "a parameter": lambda: NOISE,
    "names": lambda: [MODEL, "likelihood"],
    "a tensor": lambda: [MODEL, torch.zeros(2)],
    "nothing": lambda: [],
    "groups": lambda: [MODEL, {"params": [NOISE]}],
}


@cases("made", NO_MODELS)
@pytest.mark.parametrize("function", [mnvi.parameter_groups, mnvi.other_parameters])
def test_what_has_no_model_is_refused(made, function):
    with pytest.raises(TypeError, match="model must be"):
        function(made())


@pytest.mark.parametrize("second", [mnvi.likelihoods.Gaussian(), NOISE])
def test_a_second_module_in_the_place_of_the_rate_is_explained(second):
    with pytest.raises(TypeError, match=rf"lr must be a number, got a {type(second).__name__}; .*one list"):
        mnvi.parameter_groups(MODEL, second)


def test_the_scale_of_a_likelihood_is_a_group_of_its_own_without_decay():
    model = mnvi.Sequential(MNLinear(3, 2))
    elbo = mnvi.ELBO(10, likelihood=mnvi.likelihoods.Gaussian())
    groups = {group["name"]: group for group in mnvi.parameter_groups(torch.nn.ModuleList([model, elbo]), lr=0.5)}
    assert [id(p) for p in groups["likelihoods"]["params"]] == [id(p) for p in elbo.parameters()]
    assert (groups["likelihoods"]["lr"], groups["likelihoods"]["weight_decay"]) == (0.5, 0.0)
