"""Choosing by held-out data: the least of losses made by hand, and the judge's densities."""

import copy
import math

import pytest
import torch
from torch import nn

import mnvi
from mnvi._fitting import judging
from mnvi._fitting.data_forms import examples
from mnvi._fitting.judging import NUM_SAMPLES, Judged, best, judge
from mnvi._fitting.members import OneMember, members
from mnvi._fitting.models import Objective
from mnvi._progress import Progress


def judged(table, epochs=10, model=0):
    """A trial for each row of ``table``, kl_weight → NLL."""
    return [Judged(model, epochs, weight, 1.0, nll) for weight, nll in table.items()]


TABLES = {  # the NLL at each weight, and which is best
    "the least": ({1.0: 2.0, 0.1: 1.0, 0.01: 1.1}, 0.1),
    "the largest": ({1.0: 0.9, 0.1: 1.0}, 1.0),
    "equal": ({0.1: 1.0, 1.0: 1.0, 0.01: 1.0}, 1.0),
    "negative": ({1.0: -1.0, 0.1: -1.2}, 0.1),
    "those that failed": ({1.0: math.inf, 0.3: math.nan, 0.1: 1.0, 0.01: -math.nan}, 0.1),
}


@pytest.mark.parametrize(("table", "weight"), TABLES.values(), ids=TABLES)
def test_the_weight_of_the_least_loss_is_best(table, weight):
    [found] = best(judged(table), 1, own=False)
    assert found.kl_weight == weight
    [found] = best(judged(dict(reversed(table.items()))), 1, own=True)
    assert found.kl_weight == weight


def test_the_number_of_epochs_is_that_of_the_least_loss():
    trials = judged({1.0: 2.1, 0.1: 1.4}, epochs=10) + judged({1.0: 1.6, 0.1: 1.3}, epochs=20)
    [found] = best(trials, 1, own=False)
    assert (found.epochs, found.kl_weight) == (20, 0.1)


MINE, ITS = {1.0: 1.0, 0.1: 2.0}, {1.0: 5.0, 0.1: 1.0}


def test_models_with_data_of_their_own_choose_each_for_itself():
    trials = [*judged(ITS, model=1), *judged(MINE, model=0)]
    assert [(each.model, each.kl_weight) for each in best(trials, 2, own=True)] == [(0, 1.0), (1, 0.1)]


def test_models_of_the_same_data_choose_one_weight():
    trials = [*judged(ITS, model=1), *judged(MINE, model=0)]
    assert [(each.model, each.kl_weight) for each in best(trials, 2, own=False)] == [(0, 0.1), (1, 0.1)]


def test_nothing_is_chosen_where_every_trial_failed():
    with pytest.raises(ValueError, match="no trial"):
        best(judged({1.0: math.inf, 0.1: math.nan}), 1, own=False)


# The judge ------------------------------------------------------------------------------------------------------------

X = torch.randn(703, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(703, 1, generator=torch.Generator().manual_seed(2))


def objectives(count):
    return [Objective(nn.Linear(3, 1), mnvi.likelihoods.Gaussian(0.7)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_is_the_mean_density_of_the_held_out_targets(count):
    models = objectives(count)
    numbers = torch.arange(3, 700, 2)
    found = judge(members(models), examples("data", (X, Y)), numbers, True, Progress("test", None))
    for objective, (widening, nll) in zip(models, found, strict=True):
        expected = torch.distributions.Normal(objective.model(X[numbers]), 0.7).log_prob(Y[numbers])[:, 0]
        assert -nll == pytest.approx(expected.mean().item(), rel=1e-4)
        assert widening == 1.0  # a known scale stays


def test_models_are_judged_by_their_own_data():
    models = objectives(2)
    pairs = [(X, Y), (X + 1, Y - 1)]
    found = judge(members(models), examples("data", pairs, 2), None, False, Progress("test", None))
    for objective, (x, y), (_, nll) in zip(models, pairs, found, strict=True):
        expected = torch.distributions.Normal(objective.model(x), 0.7).log_prob(y)[:, 0]
        assert -nll == pytest.approx(expected.mean().item(), rel=1e-4)


def test_a_posterior_is_judged_by_the_mixture_of_its_draws():
    layer = mnvi.MNLinear(3, 1, posterior=mnvi.posteriors.Diagonal())
    outputs = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    together = members([Objective(layer, mnvi.likelihoods.Gaussian(0.7))])
    [(_, nll)] = judge(together, examples("data", (X[:9], Y[:9])), None, False, Progress("test", None))
    outputs = [each for each in outputs if len(each) == 9]  # without the look at its size
    densities = torch.stack([torch.distributions.Normal(each, 0.7).log_prob(Y[:9])[:, 0].exp() for each in outputs])
    assert len(outputs) == NUM_SAMPLES
    assert outputs[0].ne(outputs[1]).all()
    assert -nll == pytest.approx(densities.mean(0).log().mean().item(), rel=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_large_draws_are_judged_in_parts(own, monkeypatch):
    """The noise is that of every fifth example, the loss that of all; no draws hold more numbers than they may."""
    models = [Objective(nn.Linear(3, 2), mnvi.likelihoods.Gaussian()) for _ in range(2)]
    x, y = X[:30], torch.cat([Y[:30], 2 * Y[30:60]], 1)
    pairs = [(x, y), (x + 1, y)] if own else [(x, y)] * 2
    data = examples("data", pairs, 2) if own else examples("data", (x, y))
    together = members(models)
    calls, draws = [], OneMember.draws
    monkeypatch.setattr(OneMember, "draws", lambda *args: calls.append(draws(*args)) or calls[-1])
    monkeypatch.setattr(judging, "TOGETHER", 2 * 30 * NUM_SAMPLES * 2 - 1)
    monkeypatch.setattr(judging, "ALONE", 6 * NUM_SAMPLES * 2)
    found = judge(together, data, None, True, Progress("test", None))
    assert [each.numel() for [each] in calls] == [6 * NUM_SAMPLES * 2] * 10
    for objective, (x, y), (widening, nll) in zip(models, pairs, found, strict=True):
        likelihood = copy.deepcopy(objective.likelihood)
        assert widening == pytest.approx(likelihood.calibrate_(objective.model(x[::5])[None], y[::5]), rel=1e-4)
        assert nll == pytest.approx(likelihood(objective.model(x), y).item(), rel=1e-4)


def test_the_look_at_the_size_uses_no_random_numbers():
    layer = mnvi.MNLinear(3, 1)
    together, data = members([Objective(layer, mnvi.likelihoods.Gaussian(0.7))]), examples("data", (X[:9], Y[:9]))
    torch.manual_seed(3)
    [(_, nll)] = judge(together, data, None, False, Progress("test", None))
    torch.manual_seed(3)
    [draws] = together.draws(data.batch(torch.arange(9)), NUM_SAMPLES, False)
    assert nll == -mnvi.likelihoods.Gaussian(0.7).log_prob(draws, Y[:9]).double().mean().item()


class Undecided(nn.Module):
    """Its parameters are finite, and its outputs no numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x[:, :2] * self.weight * math.nan


def test_outputs_that_are_no_numbers_are_judged_infinite():
    objective = Objective(Undecided(), mnvi.likelihoods.Categorical())
    data = examples("data", (torch.randn(9, 3), torch.zeros(9, dtype=torch.long)))
    with Progress("judging", 0) as progress:
        [(widening, nll)] = judge(members([objective]), data, None, True, progress)
    assert (widening, nll) == (1.0, math.inf)
