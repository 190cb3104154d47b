"""One training: the batches, the rates, the rise of the KL's weight."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import mnvi
from mnvi._fitting.data_forms import examples
from mnvi._fitting.members import members
from mnvi._fitting.models import Objective
from mnvi._fitting.trial import Plan, Trial, pieces, rise

X = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(11, 1, generator=torch.Generator().manual_seed(2))
PLAN = Plan(epochs=3, batch_size=5, lr=0.01, draws=1, warmup=0.5, seed=4)


def trial(model=None, weights=(1.0,), seeds=(4,), plan=PLAN, numbers=range(11)):
    model = mnvi.Sequential(mnvi.MNLinear(3, 1)) if model is None else model
    objectives = [Objective(model, mnvi.likelihoods.Gaussian()) for _ in weights]
    return Trial(members(objectives), weights, seeds, examples("data", (X, Y)), torch.tensor([*numbers]), plan)


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 5, [5, 5]), (12, 5, [5, 5, 2]), (11, 5, [5, 6]), (3, 5, [3]), (1, 5, [1]), (3, 1, [1, 1, 1]), (3, 2, [3])],
)
def test_a_last_batch_of_one_example_joins_the_one_before(count, size, sizes):
    numbers = torch.arange(2 * count).view(2, count)
    found = pieces(numbers, size)
    assert [each.shape[1] for each in found] == sizes
    assert torch.cat(found, 1).equal(numbers)


def test_an_epoch_has_every_example_once_in_a_new_order():
    one = trial(numbers=[0, 2, 3, 5, 7])
    orders = []
    for _ in range(3):
        orders.append(one.order())
        list(one.run_epoch())
    assert all(sorted(order.tolist()) == [0, 2, 3, 5, 7] for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) > 1


def test_the_order_follows_from_seed_and_epoch_alone():
    first, second = trial(), trial()
    torch.manual_seed(77)
    list(second.run_epoch())
    first.records = second.records
    assert first.order().equal(second.order())
    assert not trial(seeds=(5,)).order().equal(trial().order())


def test_models_of_one_seed_see_the_same_batches_and_others_their_own():
    assert trial(weights=(1.0, 0.1), seeds=(4, 4)).order().equal(trial().order())
    together = trial(weights=(1.0, 0.1), seeds=(4, 5)).order()
    assert together.equal(torch.stack([trial().order(), trial(seeds=(5,)).order()]))


# Rates and weights ----------------------------------------------------------------------------------------------------


def test_every_rate_follows_half_a_cosine_to_zero():
    one = trial()
    rates = one.rates
    optimizer = torch.optim.Adam([{"params": nn.Parameter(torch.zeros(1)), "lr": rate} for rate in rates])
    schedule = CosineAnnealingLR(optimizer, T_max=one.steps)
    for _ in range(PLAN.epochs):
        for _ in one.run_epoch():
            assert [g["lr"] for g in one.optimizer.param_groups] == pytest.approx(schedule.get_last_lr())
            optimizer.step()
            schedule.step()
    assert one.step == one.steps == 6  # 11 examples are batches of 5 and 6
    assert schedule.get_last_lr() == pytest.approx([0.0] * len(rates))


def test_rates_differ_as_parameter_groups_have_them_and_by_the_number_of_inputs():
    model = nn.Sequential(nn.Linear(256, 3), nn.Linear(3, 1))
    groups = members([Objective(model, mnvi.likelihoods.Gaussian())]).groups(0.01, 3.0)
    rates = {tuple(p.shape): group["lr"] for group in groups for p in group["params"]}
    assert rates == pytest.approx({(3, 256): 0.005, (3,): 0.01, (1, 3): 0.01, (1,): 0.01, (): 0.01})
    of_layer = members([Objective(mnvi.MNLinear(4, 2), mnvi.likelihoods.Gaussian())]).groups(0.01, 3.0)
    assert {group["name"]: group["lr"] for group in of_layer}["log_diagonals"] == pytest.approx(0.03)


def test_the_weight_of_the_kl_rises_linearly():
    assert [rise(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rise(0, 0) == 1


@pytest.mark.parametrize(("warmup", "share"), [(0.0, 1.0), (1.0, 0.25)])
def test_the_first_step_minimises_nll_plus_the_risen_kl_per_example(warmup, share):
    class Fixed(mnvi.Module):
        """Its output does not depend on the weights, so that the gradient is that of the KL alone."""

        def __init__(self):
            super().__init__()
            self.layer = mnvi.MNLinear(3, 1)

        def forward(self, x):
            return x[:, :1] * 0

    model = Fixed()
    one = trial(model, (0.5,), plan=Plan(2, 5, 0.01, 2, warmup, 0), numbers=range(9))  # of 11: four steps
    expected = torch.autograd.grad(model.kl(), model.layer.weight)[0] * share * 0.5 / 9
    next(one.run_epoch())
    torch.testing.assert_close(model.layer.weight.grad, expected)


def test_records_are_means_over_the_steps_in_nats_per_example():
    model = nn.Linear(3, 1)
    one = trial(model, plan=Plan(1, 4, 1e-9, 1, 0.0, 0))
    losses = [
        -torch.distributions.Normal(model(X[b]), 1.0).log_prob(Y[b]).sum(1).mean() for b in pieces(one.order(), 4)
    ]
    list(one.run_epoch())
    [record] = one.records
    assert record["nll"] == pytest.approx([torch.stack(losses).mean().item()], rel=1e-5)
    assert (record["epoch"], record["kl"]) == (1, [0.0])


def test_two_draws_are_averaged():
    outputs = []
    model = mnvi.Sequential(mnvi.MNLinear(3, 1))
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    one = trial(model, plan=Plan(1, 11, 0.01, 2, 0.0, 0))
    order = one.order()
    [(nll, _)] = list(one.run_epoch())
    expected = [-torch.distributions.Normal(each, 1.0).log_prob(Y[order]).mean() for each in outputs]
    assert len(outputs) == 2
    torch.testing.assert_close(nll[0], torch.stack(expected).mean())


# Losses that are not finite -------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_layer():
    model = mnvi.Sequential(mnvi.MNLinear(3, 3), nn.ReLU(), mnvi.MNLinear(3, 1))
    one = trial(model)
    list(one.run_epoch())
    with torch.no_grad():
        model[2].weight[0, 1] = torch.inf
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"epoch 2, KL weight 1: the loss is not finite, .*KL of 2 \(weight is not"):
        list(one.run_epoch())
    assert model[0].weight.equal(before)


def test_of_several_models_it_names_the_model():
    model = mnvi.Sequential(mnvi.MNLinear(3, 1))
    one = trial(model, (1.0, 0.1), (4, 4))
    with torch.no_grad():
        one.members.parameters["model.0.bias"][1] = torch.nan
    with pytest.raises(ValueError, match=r"epoch 1, of 2 models, number 1, KL weight 0.1: .*\(nan.* 0\.bias"):
        list(one.run_epoch())


def test_logarithms_of_scales_go_ten_times_as_fast():
    """Adam's first step moves every entry by its rate."""
    one = trial()
    before = {name: p.detach().clone() for name, p in one.members.parameters.items()}
    next(one.run_epoch())
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in one.members.parameters.items()}
    [scale] = {round(value, 4) for name, value in moved.items() if "log_diagonal" in name}
    assert scale == pytest.approx(10 * moved["model.0.weight"], rel=1e-2)
    assert moved["model.0.weight"] == pytest.approx(PLAN.lr, rel=1e-2)
