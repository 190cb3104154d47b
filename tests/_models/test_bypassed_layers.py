"""Weights that are read past the forward of their layer are refused in the first training pass."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mnvi
from mnvi import to_bayesian, to_deterministic
from tests.cases import cases
from tests.models import X, mlp

pytestmark = pytest.mark.usefixtures("float64")


class FusedAttention(nn.Module):
    """As torchvision's Swin: the weights of two layers go to a function, a third is called."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.gate = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v) * self.gate(x).sigmoid()
        return F.linear(mixed, self.proj.weight, self.proj.bias)


class OnlyProjection(FusedAttention):
    def forward(self, x):
        return self.qkv(x)[..., :4] @ self.proj.weight.T + self.gate(x)


class InDictionary(FusedAttention):
    def forward(self, x):
        return {"loss": super().forward(x).sum(), "none": None, "pair": (x,)}


@dataclass
class Output:
    """What a model of one's own may return."""

    hidden: torch.Tensor
    extra: None = None


class InDataclass(FusedAttention):
    def forward(self, x):
        return [Output(super().forward(x))]


PAST = {
    "fused": (FusedAttention, ["qkv", "proj"]),
    "projection": (OnlyProjection, ["proj"]),
    "dictionary": (InDictionary, ["qkv", "proj"]),
    "dataclass": (InDataclass, ["qkv", "proj"]),
}


@cases("row", PAST)
def test_a_weight_read_past_its_layer_is_refused_by_name_in_the_first_training_pass(row):
    build, names = row
    model = to_bayesian(nn.Sequential(build()))
    x = torch.randn(2, 5, 4)
    model.eval()(x)  # nothing to see in eval mode
    model.train()
    with torch.no_grad():
        model(x)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"weight of {', '.join(f'.0.{name}.' for name in names)}, but"):
            model(x)
    rest = to_bayesian(nn.Sequential(build()), skip=[f"0.{name}" for name in names])
    rest(x)
    assert not rest._forward_hooks


class Reading(nn.Module):
    """Reads a weight that it also draws, sums all parameters, and leaves a layer out of some passes."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.expert = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, expert=False):
        if self.used.weight.dtype != x.dtype:
            x = x.to(self.used.weight.dtype)
        y = F.linear(self.used(x), self.used.weight.mT)
        penalty = sum(p.square().sum() for p in self.parameters())
        return (self.expert(y) if expert else y).sum() + penalty


@pytest.mark.parametrize("expert", [False, True])
def test_layers_that_draw_or_take_no_part_are_not_refused(expert):
    model = to_bayesian(Reading())
    assert model._forward_hooks
    model(X, expert)
    assert not model._forward_hooks
    frozen = to_bayesian(FusedAttention())
    for layer in (frozen.qkv, frozen.proj):
        layer.eval()
    frozen(torch.randn(2, 5, 4))
    assert not frozen._forward_hooks


def test_variances_given_from_outside_are_not_missed():
    model = to_bayesian(nn.Sequential(nn.Linear(4, 4)))
    scale = torch.ones((), requires_grad=True)
    given = {name: scale * p.detach() for name, p in model.named_parameters() if "posterior" in name}
    torch.func.functional_call(model, given, (X,)).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_that_draw_are_not_refused(reentrant):
    model = to_bayesian(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=reentrant)

    model = to_bayesian(Checkpointed())
    model(X.clone().requires_grad_()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # torch's tracer of functions
def test_a_converted_model_compiles_copies_and_pickles_before_its_first_pass():
    model = to_bayesian(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(X)
        assert not twin._forward_hooks
    assert not to_deterministic(model)._forward_hooks
    assert not mnvi.sparsity.compact(model)._forward_hooks
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(X).shape == (7, 3)
    assert torch.equal(torch.export.export(model.eval(), (X,)).module()(X), model(X))
    model.train()(X)
    assert not model._forward_hooks


class Checkpointed(nn.Module):
    def __init__(self, reentrant, **options):
        super().__init__()
        self.body, self.reentrant = mlp(**options), reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


class WithPenalty(torch.nn.Module):
    """Returns its output and the squares of all weights, also of a layer that does not run."""

    def __init__(self):
        super().__init__()
        self.a, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        output = {"logits": self.a(x), "penalty": self.a.weight.square().sum() + self.unused.weight.norm()}
        output["self"] = output
        return output


def test_a_penalty_of_the_weights_is_no_reading_past_the_layer():
    model = to_bayesian(WithPenalty())
    assert model(torch.randn(2, 3))["logits"].shape == (2, 3)
