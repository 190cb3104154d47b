"""Conversion of whole networks, and what optimisers, schedules, replicas and checkpointing do with the result."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import PRIORS, SOME_FAMILIES, assert_close, cases, dense_covariance, randomise
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import SWALR
from torch.utils.checkpoint import checkpoint

import mnvi
from mnvi import MNConv2d, MNLinear, frozen_sample, sampling, to_bayesian, to_deterministic
from mnvi.layers import BayesianLayer

pytestmark = pytest.mark.usefixtures("float64")

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def mlp(**options):
    return mnvi.Sequential(MNLinear(4, 6, **options), nn.Tanh(), MNLinear(6, 3, **options))


# Learning rates -------------------------------------------------------------------------------------------------------


@cases("family", SOME_FAMILIES)
def test_weight_decay_shrinks_means_and_nothing_else(family):
    """With gradients of zero a step of AdamW is its decay alone: θ ← (1 − lr·decay)·θ."""
    model = randomise(mlp(posterior=family, prior=mnvi.priors.GroupARD(learn=True)))
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


# Replicas -------------------------------------------------------------------------------------------------------------


def replica(model):
    """What ``DataParallel`` makes of a model on each device: modules without parameters, whose tensors are copies."""
    copies = {parameter: parameter.clone() for parameter in model.parameters()}
    modules = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in modules.items():
        for name, child in module._modules.items():
            setattr(twin, name, modules[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, copies[parameter])
    return modules[model]


REPLICATED = {
    "conv": (lambda **options: MNConv2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "transposed": (lambda **options: mnvi.MNConvTranspose2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "linear": (lambda **options: MNLinear(4, 3, **options), (7, 4)),
}


@pytest.mark.parametrize("estimator", ["local", "weight"])
@cases("layer", REPLICATED)
@cases("family", SOME_FAMILIES)
def test_replicas_draw_as_their_model_and_send_it_gradients(family, layer, estimator):
    build, shape = layer
    model, x = build(posterior=family, estimator=estimator), torch.randn(shape)
    twin = replica(model)
    assert not list(twin.parameters())
    draws = []
    for module in (model, twin):
        torch.manual_seed(1)
        draws.append(module(x))
    assert torch.equal(*draws)
    assert_close(twin.kl(), model.kl().detach())
    with frozen_sample(twin):
        assert torch.equal(twin(x), twin(x))
    (draws[1].square().sum() + twin.kl()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@cases("prior", PRIORS)
def test_replicas_have_the_kl_of_every_prior(prior):
    model = MNLinear(4, 3, prior=prior)
    if not model.kl().isclose(model.kl()):  # precisions that a call improves
        for _ in range(50):
            model.kl()
    assert_close(replica(model).kl(), model.kl().detach())


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_replicas_of_orthogonal_recurrent_layers_run(nonlinearity):
    model = mnvi.rnn.OrthogonalRNN(3, 4, nonlinearity=nonlinearity, num_layers=2)
    x = torch.randn(5, 2, 3)
    expected, _ = model(x)
    output, _ = replica(model)(x)
    assert_close(output, expected.detach())
    output.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(TypeError, match="complex"):
        replica(model)(x.to(torch.complex128))
