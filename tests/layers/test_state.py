"""What other tools read and write of a Bayesian layer: checkpoints, averages, pruning, the meta device, 16 bits."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mnvi
from mnvi import posteriors, priors
from mnvi.parametrizations import CWY, EUNN, Exponential, Trivialization
from mnvi.sparsity import prune, report
from tests.cases import PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close, assert_moments
from tests.models import mlp

pytestmark = pytest.mark.usefixtures("float64")

GIVEN = {
    "normal-tensor": lambda n, p: priors.Normal(torch.rand(n, p) + 0.5),
    "normal-row": lambda n, p: priors.Normal(torch.rand(p) + 0.5),
    "matrix-normal": lambda n, p: priors.MatrixNormal(
        torch.randn(n, p), torch.rand(n, n).tril() + torch.eye(n), torch.rand(p, p).tril() + torch.eye(p)
    ),
}
ALL_PRIORS = {name: lambda n, p, prior=prior: prior for name, prior in PRIORS.items()} | GIVEN
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(**options):
    options = {"posterior": posteriors.MatrixNormal(), **options}
    return mnvi.Sequential(mnvi.MNLinear(6, 8, **options), nn.Tanh(), mnvi.MNLinear(8, 3, **options))


def pruned_network(**options):
    return prune(network(**options), fraction=0.5)


def loss(model):
    return model(X).square().sum() + model.kl() / 10


def step(model, optimiser):
    optimiser.zero_grad()
    loss(model).backward()
    optimiser.step()


def zeros(layer):
    return layer.pruned != 0


def assert_used_as_stored(layer):
    """A plain layer that loads the stored weight gives the layer's outputs, and draws are 0 where it is pruned."""
    saved = layer.state_dict()
    assert not saved["weight"][saved["pruned"] != 0].any()
    x = torch.randn(4, layer.in_features)
    mode = layer.training
    assert_close(F.linear(x, saved["weight"], saved["bias"]), layer.eval()(x).detach())
    layer.train(mode)
    assert not layer.draw_weight()[zeros(layer)].any()


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Pruned means stay zero -----------------------------------------------------------------------------------------------

OPTIMISERS = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw-one-by-one": lambda p: torch.optim.AdamW(p, 0.01, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


@cases("optimiser", OPTIMISERS)
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_pruned_means_stay_zero_under_momentum_from_before_the_pruning(optimiser, estimator):
    model = network(estimator=estimator)
    optimiser = optimiser(model.parameters())
    for _ in range(3):
        step(model, optimiser)
    prune(model, fraction=0.5)
    left = report(model).left
    for _ in range(3):
        step(model, optimiser)
        assert not any(layer.weight[zeros(layer)].any() for layer in (model[0], model[2]))
        assert all(layer.weight.grad[zeros(layer)].abs().max() < 1 for layer in (model[0], model[2]))
    assert report(model).left == left == 36
    for layer in (model[0], model[2]):
        assert_used_as_stored(layer)


def test_negative_control_the_momentum_would_move_them():
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    step(model, optimiser)
    moved = optimiser.state[model[0].weight]["momentum_buffer"].clone()
    prune(model, fraction=0.5)
    assert (moved[zeros(model[0])] != 0).all()


def test_a_copy_and_a_pickle_of_a_pruned_model_keep_their_zeros_too():
    model = pruned_network()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(twin.eval()(X), model.eval()(X))
        optimiser = torch.optim.Adam(twin.train().parameters(), 0.1, weight_decay=0.1)
        optimiser.zero_grad()
        loss(twin).backward()
        twin[0].weight.grad += 1  # what no forward pass masks
        optimiser.step()
        assert not twin[0].weight[zeros(twin[0])].any()
        assert torch.equal(twin[0].pruned, model[0].pruned)


def test_what_is_written_past_the_optimisers_is_not_saved():
    layer = prune(mnvi.MNLinear(6, 4), fraction=0.5)
    with torch.no_grad():
        layer.weight += 1
    assert not layer.state_dict()["weight"][zeros(layer)].any()
    with torch.no_grad():
        layer.weight += 1
    assert not layer.train().weight[zeros(layer)].any()


def test_saving_between_the_forward_and_the_backward_pass_is_allowed():
    model = pruned_network()
    expected = torch.autograd.grad(model.kl(), model[0].weight)[0]
    value = model.kl()
    model.state_dict()
    model.eval().train()
    assert torch.equal(torch.autograd.grad(value, model[0].weight)[0], expected)


@pytest.fixture(params=[False, True], ids=["in place", "by swapping"])
def conversion(request):
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("conversion")
def test_a_pruned_layer_that_was_converted_and_loaded_keeps_its_zeros():
    layer = prune(mnvi.MNLinear(6, 4), fraction=0.5).float().double()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    layer.float()
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], 0.1).step()
    assert layer.weight.count_nonzero() == 12
    assert not layer.weight[zeros(layer)].any()


def test_the_plain_network_of_a_pruned_model_trains_as_any_other():
    plain = mnvi.to_deterministic(pruned_network())
    before = plain[0].weight.detach().clone()
    optimiser = torch.optim.SGD(plain.parameters(), 0.1)
    plain(X).square().sum().backward()
    optimiser.step()
    assert (plain[0].weight[before == 0] != 0).any()


def test_resetting_a_pruned_layer_ends_its_pruning():
    layer = prune(mnvi.MNLinear(6, 4), fraction=0.5)
    layer.reset_parameters()
    assert not layer.is_pruned
    assert (layer.weight != 0).all()
    assert (layer.draw_weight() != 0).all()


@pytest.fixture
def clean_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch's own: tracing an autograd Function instantiates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("clean_compiler")
def test_a_compiled_layer_notices_that_it_is_pruned_and_is_one_graph():
    model = network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X)
    prune(model, fraction=0.5)
    compiled(X).sum().backward()
    assert not model[0].weight.grad[zeros(model[0])].any()
    assert model[0].weight.grad.any()


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_carries_the_pruning(tmp_path):
    model, other = pruned_network(prior=priors.GroupARD()), network(prior=priors.GroupARD())
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "saved", no_dist=True)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    other.load_state_dict(state)
    assert report(other).left == report(model).left == 36
    assert_close(other.eval()(X), model.eval()(X))
    for layer in (other[0], other[2]):
        assert_used_as_stored(layer)


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_sharded_mean_stays_zero_where_it_is_pruned(mesh):
    layer = prune(mnvi.MNLinear(6, 4), fraction=0.5)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))  # as FSDP2 leaves it
    optimiser = torch.optim.Adam(layer.train().parameters(), 0.1)
    before, layer.weight.grad = layer.weight.full_tensor().clone(), torch.ones_like(layer.weight)
    optimiser.step()
    after = layer.weight.full_tensor()
    assert not after[zeros(layer)].any()
    assert (after != before)[~zeros(layer)].all()


@pytest.mark.parametrize("notice", ["eval", "sampling", "frozen_sample", "report", "to_deterministic", "state_dict"])
def test_tensors_written_in_place_are_noticed(notice):
    model, other = pruned_network(), network()
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            tensor.copy_(model.state_dict()[name])
        other[0].weight += 1
    if notice == "eval":
        assert not other.eval()[0].mean_weight()[zeros(model[0])].any()
    elif notice in ("sampling", "frozen_sample"):
        with getattr(mnvi, notice)(other):
            assert not other[0].draw_weight()[zeros(model[0])].any()
    elif notice == "report":
        assert report(other).left == 36
    elif notice == "to_deterministic":
        assert_close(mnvi.to_deterministic(other)[2].weight, model[2].weight)
        assert not mnvi.to_deterministic(other)[0].weight[zeros(model[0])].any()
    else:
        assert not other.state_dict()["0.weight"][zeros(model[0])].any()


@pytest.mark.parametrize("assign", [False, True])
def test_loading_goes_both_ways(assign):
    pruned, whole = pruned_network(), network()
    saved = {name: value.clone() for name, value in whole.state_dict().items()}
    target, source = copy.deepcopy(whole), copy.deepcopy(pruned)
    target.load_state_dict(saved_and_loaded(pruned.state_dict()), assign=assign)
    assert_used_as_stored(target[0])
    assert_close(target.eval()(X), pruned.eval()(X))
    source.load_state_dict(saved, assign=assign)
    assert not source[0].is_pruned
    assert_close(source.eval()(X), whole.eval()(X))
    optimiser = torch.optim.Adam(target.train().parameters(), 0.1)
    loss(target).backward()
    target[0].weight.grad += 1
    optimiser.step()
    assert not target[0].weight[zeros(target[0])].any()


def first_version(model):
    """The state dict that the first version saved: ``weight_mask``, 1 where a weight is left, where one is pruned."""
    state = {}
    for name, value in model.state_dict().items():
        if not name.endswith("pruned"):
            state[name] = value.clone()
        elif value.any():
            state[name.replace("pruned", "weight_mask")] = (value == 0).to(torch.get_default_dtype())
    return state


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("start", [network, pruned_network])
def test_checkpoints_of_the_first_version_load_strictly(start, assign):
    for saved in (pruned_network(), network()):
        state = first_version(saved)
        assert ("0.weight_mask" in state) == saved[0].is_pruned
        model = start()
        model.load_state_dict(state, assign=assign)
        assert torch.equal(model[0].pruned, saved[0].pruned)
        assert model[0].is_pruned == saved[0].is_pruned
        assert_close(model.eval()(X), saved.eval()(X))
        assert_close(model.kl(), saved.kl())


def test_masked_means_of_the_first_version_may_be_other_than_zero():
    state = first_version(pruned_network())
    state["0.weight"] += 1
    model = network()
    model.load_state_dict(state)
    assert_used_as_stored(model[0])
    assert model[0].weight[0].count_nonzero() == state["0.weight_mask"][0].sum()


def test_layers_pickled_by_the_first_version_load():
    for layer in (mnvi.MNLinear(6, 4), prune(mnvi.MNLinear(6, 4), fraction=0.5)):
        old = copy.deepcopy(layer).__dict__
        for name in ("_is_pruned", "_seen"):
            del old[name]
        mask = old["_buffers"].pop("pruned") == 0
        old["_buffers"]["weight_mask"] = mask.double() if layer.is_pruned else None
        loaded = mnvi.MNLinear.__new__(mnvi.MNLinear)
        loaded.__setstate__(old)
        assert loaded.state_dict().keys() == layer.state_dict().keys()
        assert torch.equal(loaded.pruned, layer.pruned)
        assert_used_as_stored(loaded)


def test_a_torch_checkpoint_leaves_a_pruned_layer_pruned():
    layer, plain = prune(mnvi.MNLinear(6, 4), fraction=0.5), nn.Linear(6, 4)
    mask = zeros(layer).clone()
    keys = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert torch.equal(layer.weight, plain.weight.masked_fill(mask, 0))
    assert_used_as_stored(layer)


# Averages of models ---------------------------------------------------------------------------------------------------

AVERAGES = {
    "swa": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "ema-one-by-one": {"avg_fn": lambda averaged, new, count: 0.9 * averaged + 0.1 * new},
}


@cases("options", AVERAGES)
@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("when", ["before", "at first", "later"])
def test_an_average_follows_the_pruning(options, use_buffers, when):
    model = network(prior=priors.GroupARD())
    if when == "before":
        prune(model, fraction=0.5)
    average = AveragedModel(model, use_buffers=use_buffers, **options)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for i in range(4):
        step(model, optimiser)
        if i == {"at first": 0, "later": 2}.get(when):
            prune(model, fraction=0.5)
        average.update_parameters(model)
    average.eval()
    assert report(average.module).left == report(model).left == 36
    with mnvi.sampling(average):
        assert average(X).isfinite().all()
    for layer, averaged in ((model[0], average.module[0]), (model[2], average.module[2])):
        assert torch.equal(zeros(averaged), zeros(layer))
        assert_used_as_stored(averaged)
    assert average.module.kl().isfinite()


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_is_the_posterior_of_the_average_parameters(use_buffers):
    model = network(prior=priors.GroupARD())
    average, optimiser = AveragedModel(model, use_buffers=use_buffers), torch.optim.Adam(model.parameters(), 0.05)
    states = []
    for _ in range(3):
        step(model, optimiser)
        average.update_parameters(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    parameters = {name for name, _ in model.named_parameters()}
    expected = {
        name: torch.stack([state[name] for state in states]).mean(0) if use_buffers or name in parameters else value
        for name, value in states[-1].items()
    }
    for name, value in average.module.state_dict().items():
        assert_close(value, expected[name])
    variance = average.module[0].distribution().variance
    assert variance.isfinite().all()
    assert (variance > 0).all()


# The meta device ------------------------------------------------------------------------------------------------------


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # torch.utils.deterministic.fill_uninitialized_memory is on
    yield
    torch.use_deterministic_algorithms(False)


def reset(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


@cases("family", SOME_FAMILIES)
@cases("prior", ALL_PRIORS)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_a_model_from_the_meta_device_is_as_a_new_one(family, prior, moved):
    prior = prior(4, 6)
    new = mnvi.MNLinear(6, 4, posterior=family, prior=prior)
    model = mnvi.MNLinear(6, 4, posterior=family, prior=prior, device=None if moved else "meta")
    model = model.to("meta").to_empty(device="cpu")
    assert model.weight.isnan().all()
    reset(model)
    state = new.state_dict()
    for name, value in model.state_dict().items():
        assert value.isfinite().all()
        drawn = name in ("weight", "bias") or "loading" in name
        assert drawn or torch.equal(value, state[name])
    model.load_state_dict(state)
    assert_close(model.kl(), new.kl())


@cases("prior", GIVEN)
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_the_tensors_of_a_prior_survive_the_meta_device_in_copies_too(prior):
    new = mnvi.MNConv1d(3, 4, 2, prior=prior(4, 6))
    meta = copy.deepcopy(mnvi.MNConv1d(3, 4, 2, prior=new_prior(new), device="meta"))
    model = copy.deepcopy(meta.to_empty(device="cpu")).float()
    for name, value in model.prior.state_dict().items():
        assert torch.equal(value, new.prior.state_dict()[name].float())
    assert not model.prior._kept


def new_prior(layer):
    state = layer.prior.state_dict()
    return priors.Normal(state["scale"]) if "scale" in state else priors.MatrixNormal(**state)


def test_a_checkpoint_loads_into_a_model_on_the_meta_device():
    model = pruned_network(prior=priors.GroupARD())
    for state in (model.state_dict(), first_version(model)):
        other = network(prior=priors.GroupARD(), device="meta")
        other.load_state_dict(state, assign=True)
        assert_close(other.eval()(X), model.eval()(X))
        assert report(other).left == 36


# 16 bits --------------------------------------------------------------------------------------------------------------

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def exact(layer):
    """The layer in float64 with the values that the 16-bit one holds."""
    return copy.deepcopy(layer).double()


@NARROW
@cases("family", SOME_FAMILIES)
@cases("prior", ALL_PRIORS)
def test_the_kl_of_a_16_bit_layer_is_that_of_float32(family, prior, dtype):
    layer = mnvi.MNLinear(6, 4, posterior=family, prior=prior(4, 6)).to(dtype)
    twin = exact(layer)
    kl = layer.kl()
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), twin.kl().detach(), rtol=100 * torch.finfo(torch.float32).eps, atol=1e-4)
    expected = torch.autograd.grad(twin.kl(), list(twin.parameters()), allow_unused=True)
    gradients = torch.autograd.grad(layer.kl(), list(layer.parameters()), allow_unused=True)
    for gradient, exactly in zip(gradients, expected, strict=True):
        if exactly is not None:
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient.double(), exactly, rtol=0.02, atol=0.02)
    for name, buffer in layer.prior.named_buffers():
        torch.testing.assert_close(buffer.double(), twin.prior.get_buffer(name), rtol=0.02, atol=0.02)
        assert buffer.dtype == dtype


@NARROW
def test_the_kl_of_a_large_16_bit_layer_has_no_steps(dtype):
    layer = mnvi.MNLinear(300, 200, posterior=posteriors.Diagonal()).to(dtype)
    before = layer.kl().item()
    assert before == pytest.approx(exact(layer).kl().item(), rel=1e-5)
    with torch.no_grad():
        layer.posterior.log_scale[0] -= 0.25
    assert layer.kl().item() - before == pytest.approx(300 * 0.25, rel=0.02)


KINDS = {
    "linear": (mnvi.MNLinear, 6, 4),
    "conv": (mnvi.MNConv1d, 3, 4, 2),
    "transposed": (mnvi.MNConvTranspose1d, 3, 4, 2),
}


@NARROW
@cases("family", SOME_FAMILIES)
@pytest.mark.parametrize("estimator", ["local", "weight"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_16_bit_layer_draws_and_has_finite_gradients(family, estimator, kind, dtype):
    make, *sizes = KINDS[kind]
    layer = make(*sizes, posterior=family, estimator=estimator).to(dtype)
    x = torch.randn(5, 6) if kind == "linear" else torch.randn(5, 3, 7)
    output = layer(x.to(dtype))
    assert output.dtype == dtype
    noise = output.detach().double() - exact(layer).eval()(x)
    assert noise.abs().max() < 2  # its standard deviation is about a tenth of the output's
    assert not torch.equal(output, layer(x.to(dtype)))
    with mnvi.frozen_sample(layer):
        assert torch.equal(layer(x.to(dtype)), layer(x.to(dtype)))
    (output.float().square().sum() + layer.kl()).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in layer.parameters())
    assert layer.distribution().variance.dtype == torch.float32


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_a_float16_layer_draws_variances_that_float16_has_not(estimator):
    layer = mnvi.MNLinear(6, 4, posterior=posteriors.Diagonal(), estimator=estimator, bias=False)
    layer.posterior.set_scale_(1e-4)  # a variance of 1e-8 is 0 in float16
    nn.init.zeros_(layer.weight)
    layer.half()
    x = torch.full((1, 6), 100.0)
    draws = torch.cat([layer(x.half()).double().detach() for _ in range(2000)])
    scale = 100 * layer.posterior.log_scale.double().exp().detach()
    assert_moments(draws, torch.zeros(4), scale.square().sum(1).diag())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_a_16_bit_layer_compiles_without_a_graph_break(dtype):
    model = network(prior=priors.GroupARD()).to(dtype)

    def both(x):
        return model(x).float().sum() + model.kl()

    value = torch.compile(both, fullgraph=True, backend="aot_eager")(X.to(dtype))
    assert value.isfinite()
    value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@NARROW
def test_a_16_bit_layer_is_pruned_by_the_scores_of_float32(dtype):
    model = network(posterior=posteriors.Diagonal()).to(dtype)
    for layer in (model[0], model[2]):
        layer.posterior.set_scale_(1e-4)
    scores = mnvi.sparsity.signal_to_noise(model[0])
    torch.testing.assert_close(scores.double(), mnvi.sparsity.signal_to_noise(exact(model[0])), rtol=1e-4, atol=0)
    assert report(prune(model, fraction=0.5)).left == 36


# Torch's own pruning, constraints, quantisation -----------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_torchs_own_pruning_attaches_trains_and_comes_off(estimator):
    layer = mnvi.MNLinear(6, 4, estimator=estimator)
    torch_prune.l1_unstructured(layer, "weight", amount=12)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        step(layer, optimiser)
    twin = mnvi.MNLinear(6, 4)
    torch_prune.identity(twin, "weight")
    twin.load_state_dict(saved_and_loaded(layer.state_dict()))
    assert_close(twin.eval()(X), layer.eval()(X))
    torch_prune.remove(layer, "weight")
    assert layer.weight.count_nonzero() == 12
    assert_close(layer(X), twin(X))
    mnvi.MNLinear(6, 4).load_state_dict(layer.state_dict())
    prune(layer.train(), fraction=0.75)
    assert_used_as_stored(layer)


@pytest.mark.parametrize("attach", [
    lambda layer: torch_prune.identity(layer, "weight"),
    lambda layer: mnvi.constrain(layer, "weight", CWY(4)),
])  # fmt: skip
def test_what_needs_a_mean_of_its_own_names_the_layer(attach):
    model = mnvi.Sequential(mnvi.MNLinear(6, 6), nn.Tanh(), mnvi.MNLinear(6, 3))
    attach(model[0])
    for use in (lambda: prune(model, fraction=0.5), lambda: mnvi.optim.NaturalGradient(model)):
        with pytest.raises(ValueError, match="the mean of layer '0' is made"):
            use()
    assert report(prune(model, fraction=0.5, skip="0")).layers[1].left == 9
    mnvi.optim.NaturalGradient(model[2])


def test_a_layer_under_torchs_own_pruning_cannot_go_back_and_says_so():
    model = mnvi.Sequential(mnvi.MNLinear(6, 6))
    torch_prune.identity(model[0], "weight")
    with pytest.raises(ValueError, match=r"layer '0' is made in a hook.*remove"):
        mnvi.to_deterministic(model)


CONSTRAINTS = {"cwy": lambda: CWY(4), "exponential": Exponential, "eunn": lambda: EUNN(2), "dtriv": Trivialization}


@cases("make", CONSTRAINTS)
def test_a_constrained_mean_goes_back_constrained(make):
    model = mnvi.Sequential(mnvi.constrain(mnvi.MNLinear(6, 6), "weight", make()))
    plain = mnvi.to_deterministic(model)
    assert isinstance(plain[0], nn.Linear)
    assert not isinstance(plain[0], mnvi.layers.BayesianLayer)
    assert parametrize.is_parametrized(plain[0], "weight")
    assert_close(plain(X), model.eval()(X))
    assert {name for name, _ in plain.named_parameters()} == {
        name for name, _ in model.named_parameters() if "posterior" not in name
    }
    twin = copy.deepcopy(plain)
    assert_close(twin(X), model(X))
    parametrize.remove_parametrizations(plain[0], "weight")
    assert type(plain[0]) is nn.Linear
    assert_close(plain(X), model(X))


def test_a_pruned_mean_is_not_constrained():
    layer = prune(mnvi.MNLinear(6, 6), fraction=0.5)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="is pruned: zeros would take it off the manifold"):
        mnvi.constrain(layer, "weight", CWY(4), start="draw")
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_put_in_eval_mode_before_the_pruning_uses_no_pruned_mean(use_buffers):
    model = mnvi.Sequential(mnvi.MNLinear(6, 8))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=use_buffers).eval()
    average.update_parameters(model)
    prune(model, fraction=0.5)
    average.update_parameters(model)
    layer = average.module[0]
    used = average(torch.eye(6)).mT - layer.bias[:, None]
    assert (used[layer.pruned != 0].abs() < 1e-12).all()
    assert (layer.pruned != 0).sum() == 24


def test_a_layer_pickled_by_the_first_version_draws():
    layer = mnvi.MNLinear(6, 8)
    state = layer.__getstate__()
    del state["_checkpoints"]
    old = mnvi.MNLinear.__new__(mnvi.MNLinear)
    old.__setstate__(state)
    with mnvi.frozen_sample(old), mnvi.sampling(old):
        assert old(X).shape == (len(X), 8)


def test_dynamic_quantisation_takes_the_plain_network_and_passes_over_the_bayesian_one():
    model = pruned_network(dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this module
        quantize = torch.ao.quantization.quantize_dynamic
        passed_over = quantize(model, {nn.Linear}, dtype=torch.qint8)
        quantised = quantize(mnvi.to_deterministic(model), {nn.Linear}, dtype=torch.qint8)
        compact = quantize(mnvi.sparsity.compact(model), {nn.Linear}, dtype=torch.qint8)
        x = X.float()
        outputs = quantised(x), compact(x)
    assert isinstance(passed_over[0], mnvi.MNLinear)
    assert not isinstance(quantised[0], nn.Linear)
    for output in outputs:
        torch.testing.assert_close(output, model(x), rtol=0, atol=0.05)


def test_the_earlier_name_of_is_sampling_works_and_warns():
    layer = mnvi.MNLinear(6, 8)
    for training in (True, False):
        layer.train(training)
        with pytest.warns(DeprecationWarning, match="is_sampling") as caught:
            assert layer.samples is layer.is_sampling is training
        assert caught[0].filename == __file__
    assert "samples" not in dir(layer)  # what looks at all attributes is not warned
    assert "is_sampling" in dir(layer)


@pytest.mark.parametrize("context", [mnvi.sampling, mnvi.frozen_sample])
def test_contexts_change_the_sampling_state_and_give_it_back(context):
    layer = mnvi.MNLinear(6, 8).eval()
    before = dict(vars(layer))
    with context(layer):
        assert layer.is_sampling
        assert (layer.frozen_noise is None) is (context is mnvi.sampling)
    assert vars(layer) == before
    assert layer.frozen_noise is None
    assert not layer.is_sampling


def drawing_only_for(one):
    draw = type(one).draw_noise

    def drawn(posterior):
        if posterior is not one:
            raise RuntimeError("no noise")
        return draw(posterior)

    return drawn


def test_a_context_that_fails_half_way_gives_back_what_it_changed(monkeypatch):
    model = mnvi.Sequential(mnvi.MNLinear(6, 6), mnvi.MNLinear(6, 8)).eval()
    monkeypatch.setattr(type(model[1].posterior), "draw_noise", drawing_only_for(model[0].posterior))
    with pytest.raises(RuntimeError, match="no noise"), mnvi.frozen_sample(model):
        pass
    assert not any(layer.is_sampling for layer in model)


def test_loading_other_keys_keeps_a_pruned_layer_pruned():
    model = mlp()
    mnvi.sparsity.prune(model, fraction=0.5)
    first = next(layer for layer in model.modules() if isinstance(layer, mnvi.MNLinear))
    mask = first.pruned.clone()
    model.load_state_dict({}, strict=False)
    assert torch.equal(first.pruned, mask)
    first.reset_parameters()
    assert not first.is_pruned
    assert not first.pruned.any()
