"""The objective as a module: its step and its likelihood are state, and steps are those of the optimiser."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.utils.checkpoint import checkpoint

import mnvi
from mnvi import ELBO, KLWarmup, MNLinear
from mnvi.covariance import Diagonal
from mnvi.likelihoods import Categorical, Gaussian
from mnvi.posteriors import MatrixNormal
from tests.cases import cases
from tests.laws import assert_close, dense_covariance, randomise
from tests.models import X, mlp

pytestmark = pytest.mark.usefixtures("float64")


NLL = torch.tensor(0.5, dtype=torch.float64)
Y = torch.randint(3, (7,), generator=torch.Generator().manual_seed(4))


def weights(elbo, model, count, nll=NLL):
    """The weights of the KL in the next losses."""
    found = []
    for _ in range(count):
        loss, nll, kl = elbo(nll, model)
        found.append(((loss - nll) * elbo.num_data / kl).item())
    return found


class Lit(nn.Module):
    """As a LightningModule: model and objective in one module, of which everything is saved."""

    def __init__(self, steps=8):
        super().__init__()
        self.model, self.elbo = mlp(), ELBO(10, KLWarmup(steps), Gaussian())


def test_the_step_is_saved_and_resumed_with_the_module_it_is_part_of():
    first, second = Lit(), Lit()
    weights(first.elbo, first.model, 3)
    assert first.state_dict()["elbo.step"] == 3
    assert "elbo.likelihood.log_scale" in first.state_dict()
    result = second.load_state_dict(first.state_dict())
    assert not result.missing_keys
    assert weights(second.elbo, second.model, 2) == pytest.approx([0.5, 0.625])


@pytest.mark.parametrize("assign", [False, True])
def test_loading_goes_on_at_the_saved_step_also_in_the_middle_of_a_training(assign):
    elbo, model = ELBO(10, KLWarmup(8)), mlp()
    state = {"step": torch.tensor(5)}
    weights(elbo, model, 2)
    elbo.load_state_dict(copy.deepcopy(state), assign=assign)
    assert weights(elbo, model, 1) == pytest.approx([0.75])
    assert elbo.step == 6


def test_a_state_of_an_int_loads_as_before():
    elbo = ELBO(10, KLWarmup(8))
    state = {"step": 3}
    elbo.load_state_dict(state)
    assert state == {"step": 3}
    assert weights(elbo, mlp(), 1) == pytest.approx([0.5])


def test_a_step_that_is_written_in_place_is_followed():
    """As torch.distributed.checkpoint loads: into the tensors of the state."""
    elbo, model = ELBO(10, KLWarmup(8)), mlp()
    weights(elbo, model, 1)
    elbo.state_dict()["step"].fill_(6)
    assert weights(elbo, model, 1) == pytest.approx([0.875])


def test_a_step_that_is_replaced_is_followed():
    elbo, model = ELBO(10, KLWarmup(8)), mlp()
    elbo.load_state_dict({"step": torch.tensor(2)}, assign=True)
    elbo.step = torch.tensor(6)
    assert weights(elbo, model, 1) == pytest.approx([0.875])


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), lambda e: e.half(), lambda e: e.to("cpu").double()],
)
def test_copies_and_conversions_go_on_where_they_were(twin):
    elbo, model = ELBO(10, KLWarmup(8), accumulate=2), mlp()
    weights(elbo, model, 5)
    other = twin(elbo)
    assert other.step.dtype == torch.long
    assert weights(other, model, 2) == pytest.approx([0.375, 0.5])


def test_an_objective_without_memory_begins_anew():
    elbo = ELBO(10, KLWarmup(4)).to("meta").to_empty(device="cpu")
    elbo.reset_parameters()
    assert weights(elbo, mlp(), 2) == pytest.approx([0.25, 0.5])


def test_schedules_get_an_int():
    kinds = []
    elbo = ELBO(10, lambda step: kinds.append(type(step)) or 1.0, accumulate=2)
    weights(elbo, mlp(), 4)
    assert kinds == [int] * 4


def test_with_accumulation_the_warm_up_counts_steps_of_the_optimiser():
    elbo, model = ELBO(10, KLWarmup(4), accumulate=3), mlp()
    assert weights(elbo, model, 13) == pytest.approx([0.25] * 3 + [0.5] * 3 + [0.75] * 3 + [1.0] * 4)
    assert elbo.step == 4
    assert set(elbo.state_dict()) == {"step"}


def test_losses_in_evaluation_are_no_part_of_an_accumulation():
    elbo, model = ELBO(10, KLWarmup(4), accumulate=2), mlp()
    weights(elbo, model, 1)
    with torch.no_grad():
        weights(elbo, model.eval(), 5)
    assert weights(elbo, model.train(), 2) == pytest.approx([0.25, 0.5])


def test_a_resumed_accumulation_begins_with_its_first_loss():
    """Gradients are not saved, so what was accumulated before is lost."""
    elbo, model = ELBO(10, KLWarmup(4), accumulate=3), mlp()
    weights(elbo, model, 5)
    elbo.load_state_dict(elbo.state_dict())
    assert weights(elbo, model, 4) == pytest.approx([0.5, 0.5, 0.5, 0.75])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model, elbo = mlp().train(), ELBO(8, KLWarmup(4), Categorical(), accumulate=2)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    with mnvi.frozen_sample(model):
        expected = torch.autograd.grad(ELBO(8, KLWarmup(4))(F.cross_entropy(model(x), y), model)[0], model.parameters())
        for part in (slice(0, 4), slice(4, 8)):
            (elbo(model(x[part]), y[part], model)[0] / 2).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_training_in_eval_mode_is_warned_of_and_evaluation_is_not():
    model, elbo = mlp().eval(), ELBO(10)
    with pytest.warns(UserWarning, match=r"in eval mode.*model\.train\(\)") as caught:
        elbo(F.cross_entropy(model(X), Y), model)
    assert caught[0].filename == __file__
    with torch.no_grad():
        elbo(F.cross_entropy(model(X), Y), model)
    model[0].train()  # one layer that draws is as some want it
    elbo(F.cross_entropy(model(X), Y), model)
    with mnvi.sampling(model.eval()):
        elbo(F.cross_entropy(model(X), Y), model)


@torch.no_grad()
def test_both_ways_to_call_are_one():
    model, likelihood = mlp().eval(), Categorical()
    inside, outside = ELBO(10, likelihood=likelihood), ELBO(10)
    expected = outside(F.cross_entropy(model(X), Y), model)
    calls = (
        outside(likelihood(model(X), Y), model),
        outside(nll=likelihood(model(X), Y), model=model),
        inside(likelihood(model(X), Y), model),
        inside(model(X), Y, model),
        inside(model(X), target=Y, model=model),
    )
    for result in calls:
        for a, b in zip(result, expected, strict=True):
            assert_close(a, b)


def test_a_learnt_scale_is_a_parameter_of_the_objective_and_trains():
    model = mnvi.Sequential(MNLinear(4, 1))
    elbo = ELBO(200, likelihood=Gaussian())
    assert [name for name, _ in elbo.named_parameters()] == ["likelihood.log_scale"]
    x = torch.randn(200, 4)
    y = x @ torch.ones(4, 1) + 0.1 * torch.randn(200, 1)
    optimiser = torch.optim.Adam([*mnvi.parameter_groups(model, lr=0.03), {"params": elbo.parameters(), "lr": 0.03}])
    for _ in range(300):
        optimiser.zero_grad()
        elbo(model(x), y, model)[0].backward()
        optimiser.step()
    assert 0.07 < elbo.likelihood.scale.item() < 0.15


WRONG = {
    "no model": (lambda e: e(NLL), TypeError, "give the model"),
    "target without a likelihood": (lambda e: e(X, Y, mlp()), TypeError, "likelihood="),
    "target, but no model": (lambda e: e(X, Y), TypeError, "give the model"),
    "no tensor": (lambda e: e(0.5, mlp()), TypeError, "nll must be a tensor"),
    "no scalar": (lambda e: e(X, mlp()), ValueError, r"scalar.*\(7, 4\)"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_calls_that_do_not_fit_are_refused(name):
    call, error, message = WRONG[name]
    elbo = ELBO(10)
    with pytest.raises(error, match=message):
        call(elbo)
    assert elbo.step == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"likelihood": "gaussian"}, TypeError, "likelihood"),
        ({"likelihood": Gaussian}, TypeError, "likelihood"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"accumulate": 2.0}, TypeError, "accumulate"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ELBO(10, **options)


def test_a_schedule_that_leaves_the_numbers_is_refused():
    elbo = ELBO(10, lambda step: -1.0 if step == 1 else 1.0)
    elbo(NLL, mlp())
    with pytest.raises(ValueError, match=r"-1\.0 at step 1"):
        elbo(NLL, mlp())


# torch's own: tracing an autograd Function instantiates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kl_weight", [0.5, KLWarmup(6)])
def test_a_compiled_step_is_one_graph_for_all_steps(kl_weight, accumulate):
    torch.compiler.reset()
    model, likelihood = mlp().eval(), Categorical()
    model.training = True  # counts steps; the layers do not draw
    elbos = [ELBO(10, kl_weight, likelihood, accumulate=accumulate) for _ in range(2)]
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x, y: elbos[0](model(x), y, model), fullgraph=True, backend=backend)
    for _ in range(12):
        for actual, expected in zip(compiled(X, Y), elbos[1](model(X), Y, model), strict=True):
            assert_close(actual.detach(), expected.detach())
    assert len(graphs) == 1
    assert elbos[0].step == elbos[1].step == 12 // accumulate
    for actual, expected in zip(elbos[0](model(X), Y, model), elbos[1](model(X), Y, model), strict=True):
        assert_close(actual, expected)  # and goes on without the compiler
    torch.compiler.reset()


def test_a_loss_inside_torch_func_counts_as_any_other():
    model, elbo = mlp().eval(), ELBO(10, KLWarmup(4))
    model.training = True

    def loss(parameters):
        return elbo(F.cross_entropy(torch.func.functional_call(model, parameters, (X,)), Y), model)[0]

    parameters = dict(model.named_parameters())
    gradients = [torch.func.grad(loss)(parameters) for _ in range(2)]
    assert elbo.step == 2
    assert_close(gradients[1]["0.bias"], gradients[0]["0.bias"])  # the KL here is that of the model, a constant
    assert weights(elbo, model, 1) == pytest.approx([0.75])


# What is not finite ---------------------------------------------------------------------------------------------------


def message(elbo, nll, model):
    with pytest.raises(ValueError, match="not finite") as raised:
        elbo(nll, model)
    return str(raised.value)


def test_a_weight_that_is_not_finite_is_named():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    text = message(ELBO(10), NLL, model)
    assert "the KL of 2 (weight is not finite)" in text
    assert "0" not in text.split("because of")[1].split("(")[0]
    assert "likelihood" not in text


def test_both_causes_are_named():
    model = mlp()
    with torch.no_grad():
        model[0].posterior.row.log_diagonal.fill_(float("inf"))
    text = message(ELBO(10), torch.tensor(float("nan")), model)
    assert "the KL of 0 (posterior.row.log_diagonal is not finite)" in text
    assert "likelihood (nan)" in text
    assert "smaller learning rate" in text


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_named(dtype):
    model = mlp().to(dtype)
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    text = message(ELBO(10), torch.tensor(1.0, dtype=dtype), model)
    assert f"its parameters are {dtype}" in text
    assert "keep parameters in float32 and use torch.autocast" in text
    text = message(ELBO(10), torch.tensor(float("inf"), dtype=dtype), nn.Linear(2, 2))
    assert f"likelihood (inf in {dtype})" in text
    assert "torch.autocast" in text


def test_rows_of_the_output_that_are_not_finite_are_named():
    model, elbo = mlp(), ELBO(10, likelihood=Categorical())
    x = X.clone()
    x[3, 1] = x[5, 0] = float("nan")
    with pytest.raises(ValueError, match=r"likelihood \(nan: the model's output is not finite in rows 3, 5\)"):
        elbo(model(x), Y, model)
    with pytest.raises(ValueError, match="not finite in all rows"):
        elbo(model(x * x[3, 1]), Y, model)
    pair = ELBO(10, likelihood=mnvi.likelihoods.HeteroscedasticGaussian())
    with pytest.raises(ValueError, match="not finite in row 6"):
        pair((X, torch.where(torch.arange(7)[:, None] == 6, torch.nan, X)), X, model)
    assert elbo.step == pair.step == 0


def test_a_likelihood_that_overflows_on_finite_outputs_names_no_row():
    with pytest.raises(ValueError, match=r"likelihood \(inf\); look at inputs and targets"):
        ELBO(10, likelihood=Gaussian(1e-200))(X, X + 1, mlp())


def test_parameters_without_a_kl_are_named_too():
    model = mlp()
    with torch.no_grad():
        model[2].bias[1] = float("nan")
    text = message(ELBO(10), model(X).mean(), model)
    assert "the negative log-likelihood (nan) and the parameters 2.bias (not finite)" in text


def test_an_empty_batch_is_mentioned():
    assert "no row at all" in message(ELBO(10), F.mse_loss(X[:0], X[:0]), mlp())


def test_an_overflowing_sum_is_named():
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(1e153)
    text = message(ELBO(1, kl_weight=1e300), NLL, model)
    assert "the sum of the negative log-likelihood and the KL in torch.float64" in text


def test_a_forgotten_conversion_is_noticed():
    model = nn.Linear(3, 2)
    with pytest.warns(UserWarning, match="no Bayesian layer, so its KL is 0; mnvi.to_bayesian"):
        loss, nll, kl = mnvi.ELBO(10)(model(torch.randn(4, 3)).square().mean(), model)
    assert kl == 0
    assert loss == nll
    with pytest.warns(UserWarning, match="no Bayesian layer, so all draws are equal"):
        mnvi.predict(model, torch.randn(4, 3), 3)


def test_a_schedule_is_an_object():
    with pytest.raises(TypeError, match="KLWarmup'>, a class"):
        mnvi.ELBO(10, mnvi.KLWarmup)


def test_an_objective_pickled_when_it_was_no_module():
    old = ELBO.__new__(ELBO)
    old.__setstate__({"num_data": 10, "kl_weight": KLWarmup(4), "step": 2})
    layer = MNLinear(3, 2)
    loss, _, kl = old(torch.tensor(0.0), layer)
    assert_close(loss, 0.75 * kl / 10)
    assert int(old.step) == 3


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_objective_counts_once(use_reentrant):
    def gradients(run):
        torch.manual_seed(0)
        layer, elbo = MNLinear(3, 2), ELBO(10, KLWarmup(4))
        x = torch.ones(5, 3, requires_grad=True)
        run(lambda x: elbo(layer(x).square().mean(), layer)[0], x).backward()
        assert int(elbo.step) == 1
        return [parameter.grad for parameter in layer.parameters()]

    expected = gradients(lambda function, x: function(x))
    actual = gradients(lambda function, x: checkpoint(function, x, use_reentrant=use_reentrant))
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def test_a_schedule_without_a_number_is_named():
    with pytest.raises(ValueError, match="gave None at step 0"):
        ELBO(10, lambda step: None)(torch.tensor(0.0), MNLinear(3, 2))


def test_a_pickle_with_the_earlier_name_of_the_count_goes_on():
    elbo, model = ELBO(10, KLWarmup(8)), mlp()
    weights(elbo, model, 3)
    pickled = pickle.dumps(elbo, protocol=0)  # in which names end with a line
    assert b"_StepCount\n" in pickled
    loaded = pickle.loads(pickled.replace(b"_StepCount\n", b"_Count\n"))
    assert weights(loaded, model, 2) == pytest.approx([0.5, 0.625])


# Objective ------------------------------------------------------------------------------------------------------------


def test_elbo_is_the_nll_plus_the_kl_per_example():
    model = mlp()
    nll = model(X).square().mean()
    loss, same, kl = ELBO(num_data=50)(nll, model)
    assert same is nll
    assert_close(kl, model.kl())
    assert_close(loss, nll + model.kl() / 50)
    assert_close(ELBO(50, kl_weight=0.3)(nll, model)[0], nll + 0.3 * model.kl() / 50)
    assert torch.equal(ELBO(50, kl_weight=0)(nll, model)[0], nll)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_elbo_of_a_plain_model_is_the_nll():
    nll = torch.tensor(1.5)
    loss, _, kl = ELBO(10)(nll, nn.Linear(2, 2))
    assert (loss.item(), kl.item()) == (1.5, 0.0)


def test_a_schedule_steps_in_training_only_and_is_saved():
    model, seen = mlp(), []
    elbo = ELBO(50, kl_weight=lambda step: seen.append(step) or 1.0)
    for training in (True, True, False, False, True):
        with torch.set_grad_enabled(training):
            elbo(torch.tensor(0.0), model.train(training))
    assert seen == [0, 1, 2, 2, 2]
    other = ELBO(50, kl_weight=elbo.kl_weight)
    other.load_state_dict(copy.deepcopy(elbo.state_dict()))
    other(torch.tensor(0.0), model)
    assert seen[-1] == 3
    assert other.state_dict() == {"step": 4}


def test_warm_up_rises_linearly_to_one_and_stays():
    assert [KLWarmup(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert KLWarmup(1)(0) == 1.0
    model, nll = mlp(), torch.tensor(0.0)
    elbo = ELBO(10, kl_weight=KLWarmup(2))
    for weight in (0.5, 1.0, 1.0):
        assert_close(elbo(nll, model)[0], weight * model.kl() / 10)


def test_num_data_is_not_optional():
    with pytest.raises(TypeError, match="num_data"):
        ELBO()


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-5, ValueError), (10.0, TypeError), (None, TypeError), (True, TypeError)]
)
def test_num_data_is_a_positive_integer(value, error):
    with pytest.raises(error, match="num_data"):
        ELBO(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(-0.1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError), (None, TypeError)],
)
def test_kl_weight_is_a_number_or_a_schedule(value, error):
    with pytest.raises(error, match="kl_weight"):
        ELBO(10, kl_weight=value)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (None, TypeError)])
def test_warm_up_takes_a_positive_integer(value, error):
    with pytest.raises(error, match="steps"):
        KLWarmup(value)


def test_nll_must_be_a_finite_scalar():
    model, elbo = mlp(), ELBO(10)
    with pytest.raises(ValueError, match=r"scalar.*\(7,\)"):
        elbo(torch.zeros(7), model)
    for value in ("nan", "inf"):
        with pytest.raises(ValueError, match=f"likelihood.*{value}"):
            elbo(torch.tensor(float(value)), model)
    assert elbo.step == 0


def test_a_kl_that_is_not_finite_names_the_layer():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="KL of 2"):
        ELBO(10)(torch.tensor(0.0), model)


# Conjugate regression: the exact posterior is matrix normal, so the ELBO must reach the log evidence ------------------


NUM, INPUTS, OUTPUTS, NOISE = 60, 4, 3, 0.3


def regression_data():
    mixing = torch.randn(INPUTS, INPUTS)  # correlated inputs, which a diagonal posterior cannot follow
    x = torch.randn(NUM, INPUTS) @ mixing
    return x, x @ torch.randn(INPUTS, OUTPUTS) + NOISE * torch.randn(NUM, OUTPUTS)


def log_evidence(x, y):
    covariance = x @ x.mT + NOISE**2 * torch.eye(NUM)  # prior weights of unit variance
    return MultivariateNormal(torch.zeros(NUM), covariance).log_prob(y.mT).sum()


def best_elbo(family, x, y):
    """max E[log p(y | W)] − KL, the expectation in closed form: E‖y − xWᵀ‖² = ‖y − xMᵀ‖² + tr Cov(W xᵀ)."""
    layer = MNLinear(INPUTS, OUTPUTS, bias=False, posterior=family)
    maps = torch.kron(torch.eye(OUTPUTS), x)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def negative_elbo():
        optimiser.zero_grad()
        spread = ((maps @ dense_covariance(layer.posterior)) * maps).sum()
        likelihood = Normal(layer.eval()(x), NOISE).log_prob(y).sum() - spread / (2 * NOISE**2)
        loss = layer.kl() - likelihood
        loss.backward()
        return loss

    optimiser.step(negative_elbo)
    return -negative_elbo().item()


# How far the best ELBO is below the log evidence, in nats: at least and at most.
GAPS = {
    "matrix-normal": (MatrixNormal(), 0.0, 0.01),
    "identity-rows": (MatrixNormal(row=mnvi.covariance.Identity()), 0.0, 0.01),
    "diagonal": (mnvi.posteriors.Diagonal(), 0.1, 100.0),
    "diagonal-factors": (MatrixNormal(Diagonal(), Diagonal()), 0.1, 100.0),
    "sum": (mnvi.posteriors.MatrixNormalPlusDiagonal(ratio=0.1), 0.0, 0.01),
}


@cases("row", GAPS)
def test_elbo_reaches_the_log_evidence_with_a_matrix_normal_only(row):
    family, least, most = row
    x, y = regression_data()
    gap = log_evidence(x, y).item() - best_elbo(family, x, y)
    assert least - 1e-9 <= gap <= most


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_the_stochastic_objective_is_unbiased(estimator):
    """The mean of the sampled NLL over many draws is the closed-form expectation (z-score)."""
    x, y = regression_data()
    layer = randomise(MNLinear(INPUTS, OUTPUTS, bias=False, estimator=estimator), 0.2)
    maps = torch.kron(torch.eye(OUTPUTS), x)
    with torch.no_grad():
        expected = (y - x @ layer.weight.mT).square().sum() + ((maps @ dense_covariance(layer.posterior)) * maps).sum()
        losses = torch.stack([(y - layer(x)).square().sum() for _ in range(2000)])
    assert abs(losses.mean() - expected) < 5 * losses.std() / 2000**0.5
