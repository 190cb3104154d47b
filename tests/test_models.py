"""Whole models: KL, modes, conversion, objective, learning rates and prediction."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal

import mnvi
from mnvi import ELBO, KLWarmup, MNLinear, frozen_sample, predict, sampling, to_bayesian
from mnvi.covariance import Diagonal
from mnvi.posteriors import MatrixNormal
from mnvi.priors import GroupARD
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")


def mlp(**options):
    return mnvi.Sequential(MNLinear(4, 6, **options), nn.Tanh(), MNLinear(6, 3, **options))


# KL -------------------------------------------------------------------------------------------------------------------


def test_kl_is_the_sum_over_the_layers():
    model = randomise(mlp())
    expected = model[0].kl() + model[2].kl()
    assert_close(model.kl(), expected)
    assert_close(mnvi.kl(model), expected)
    assert_close(mnvi.kl(nn.ModuleDict({"a": model, "b": nn.Linear(2, 2)})), expected)
    assert_close(mnvi.kl(model[0]), model[0].kl())


def test_a_module_has_a_kl():
    class Model(mnvi.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([MNLinear(4, 4), nn.Linear(4, 2)])

    model = Model()
    assert_close(model.kl(), model.layers[0].kl())
    assert isinstance(model, nn.Module)
    assert isinstance(mnvi.Sequential(), nn.Sequential)


def test_shared_layers_count_once():
    layer = MNLinear(4, 4)
    assert_close(mnvi.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer)).kl(), layer.kl())


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(), nn.ReLU()])
def test_a_plain_model_has_kl_zero(model):
    assert mnvi.kl(model).item() == 0.0
    assert mnvi.kl(model).shape == ()


def test_kl_has_gradients_for_every_posterior_parameter():
    model = randomise(mlp())
    model.kl().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "bias" not in name)


# Modes ----------------------------------------------------------------------------------------------------------------

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def draws(model, x=X):
    """Whether two calls differ."""
    return not torch.equal(model(x), model(x))


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_train_draws_and_eval_does_not(estimator):
    model = mlp(estimator=estimator)
    assert draws(model.train())
    assert not draws(model.eval())
    assert draws(model.train())


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_sampling_draws_in_eval_mode(estimator):
    model = mlp(estimator=estimator).eval()
    mean = model(X)
    with sampling(model) as same:
        assert same is model
        assert draws(model)
        assert not model.training
    assert torch.equal(model(X), mean)


def test_sampling_leaves_batch_norm_and_dropout_alone():
    model = mnvi.Sequential(MNLinear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(model[1].state_dict())
    with sampling(model):
        hidden = model[0](X)
        assert torch.equal(model[1:](hidden), model[1](hidden))
        model(X)
    assert all(torch.equal(model[1].state_dict()[key], value) for key, value in before.items())
    with sampling(model.train()):
        model(X)
    assert model[1].num_batches_tracked == 1
    assert model.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_a_frozen_sample_is_one_function(estimator, training):
    model = mlp(estimator=estimator).train(training)
    with frozen_sample(model) as same:
        assert same is model
        output = model(X)
        assert torch.equal(model(X), output)
        assert_close(model(X[2:4]), output[2:4])
    with frozen_sample(model):
        assert not torch.equal(model(X), output)
    assert draws(model) is training


def test_a_frozen_sample_is_a_draw_not_the_mean():
    model = mlp().eval()
    mean = model(X)
    with frozen_sample(model):
        assert not torch.equal(model(X), mean)
    assert torch.equal(model(X), mean)


def test_a_shared_layer_has_one_frozen_weight():
    layer = MNLinear(4, 4)
    model = mnvi.Sequential(layer, layer)
    with frozen_sample(model):
        assert_close(model(X), layer(layer(X)))


@cases("family", SOME_FAMILIES)
def test_gradients_reach_the_posterior_through_a_frozen_sample(family):
    model = mlp(posterior=family)
    with frozen_sample(model):
        model(X).square().sum().backward()
        model(X).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("context", [sampling, frozen_sample])
@pytest.mark.parametrize("training", [True, False])
def test_contexts_restore_the_state_after_an_exception(context, training):
    model = mlp().train(training)
    with pytest.raises(ValueError), context(model):
        model(X[:, :2])
    assert draws(model) is training
    assert model.training is training


def test_contexts_nest():
    model = mlp().eval()
    with sampling(model):
        with sampling(model):
            assert draws(model)
        assert draws(model)
        with frozen_sample(model):
            outer = model(X)
            with frozen_sample(model):
                assert not torch.equal(model(X), outer)
                assert not draws(model)
            assert torch.equal(model(X), outer)
            with sampling(model):
                assert torch.equal(model(X), outer)
        assert draws(model)
    assert not draws(model)


def test_contexts_of_a_part_of_a_model_leave_the_rest():
    model = mlp().eval()
    mean = model[2](model[0](X))
    with sampling(model[0]):
        assert draws(model[0])
        assert not draws(model[2], torch.randn(2, 6))
    assert torch.equal(model[2](model[0](X)), mean)


def test_mode_changes_inside_a_context_stay():
    model = mlp().eval()
    with sampling(model):
        model.train()
    assert model.training
    with frozen_sample(model):
        output = model(X)
        assert torch.equal(model.eval()(X), output)
    assert not draws(model)


def test_a_model_of_bayesian_layers_copies_and_pickles():
    model = mlp(prior=GroupARD())
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded.eval()(X), model.eval()(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))


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


# Learning rates -------------------------------------------------------------------------------------------------------


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
    shared = MNLinear(4, 4)
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


# Prediction -----------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """The same function as its layer, with a branch on the data that vmap cannot follow."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x):
        self.calls += 1
        y = self.layer(x)
        return y if y.sum() > 0 else 0 + y


class Counting(Branching):
    def forward(self, x):
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"num_samples": 1}])
@cases("family", SOME_FAMILIES)
def test_categorical_prediction(family, options):
    p = predict(randomise(mlp(posterior=family)), X, **options)
    assert p.mean.shape == p.variance.shape == (7, 3)
    assert p.predictive_entropy.shape == p.expected_entropy.shape == p.mutual_information.shape == (7,)
    assert p.probs is p.mean
    assert_close(p.mean.sum(-1), torch.ones(7))
    assert_close(p.predictive_entropy, Categorical(p.mean).entropy())
    assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
    assert (p.mutual_information >= 0).all()
    assert (p.variance >= 0).all()
    assert not p.mean.requires_grad
    if options.get("num_samples") == 1:
        assert not p.variance.any()
        assert_close(p.mutual_information, torch.zeros(7))
    else:
        assert (p.mutual_information > 0).all()


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_a_plain_model_has_no_epistemic_uncertainty():
    model = nn.Linear(4, 3)
    p = predict(model, X)
    expected = Categorical(logits=model(X))
    assert_close(p.mean, expected.probs)
    assert_close(p.expected_entropy, expected.entropy())
    assert_close(p.mutual_information, torch.zeros(7))
    assert_close(p.variance, torch.zeros(7, 3))


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_extreme_logits_give_finite_entropies():
    model = nn.Linear(4, 3).requires_grad_(False)
    model.weight.mul_(1e6)
    p = predict(model, X, 4)
    assert p.predictive_entropy.isfinite().all()
    assert p.mutual_information.isfinite().all()


def exact_moments(layer, x):
    """Mean and variance of layer(x) over the posterior, from the dense covariance of its weight."""
    maps = torch.stack([torch.kron(torch.eye(layer.out_features), row) for row in x])
    variance = (maps @ dense_covariance(layer.posterior) * maps).sum(-1)
    return copy.deepcopy(layer).eval()(x).detach(), variance.detach()


@pytest.mark.parametrize("noise", [0.0, 0.7, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("wrapper", [Counting, Branching])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_gaussian_prediction_has_the_analytic_mean_and_variance(wrapper, estimator, noise):
    """Batched by vmap, and by a loop where the model branches: the same moments (z-scores)."""
    model = wrapper(randomise(MNLinear(4, 3, estimator=estimator)))
    count = 1000
    p = predict(model, X, count, "gaussian", noise_scale=noise)
    mean, variance = exact_moments(model.layer, X)
    assert ((p.mean - mean).abs() / (variance / count).sqrt()).max() < 5
    noise = torch.as_tensor(noise)
    assert ((p.variance - variance - noise**2).abs() / (variance * (2 / count) ** 0.5)).max() < 5
    assert model.calls == 1 + (1 if wrapper is Counting else count + 1)  # the mean first; then a try of vmap
    assert_close(p.predictive_entropy, Normal(p.mean, p.variance.sqrt()).entropy())
    if noise.min() > 0:
        assert_close(p.expected_entropy, Normal(p.mean, noise.expand(7, 3)).entropy())
        assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
        assert (p.mutual_information > 0).all()
    else:
        assert (p.expected_entropy == -torch.inf).all()


def test_chunks_bound_what_is_drawn_at_a_time():
    model = Counting(randomise(mlp()))
    predict(model, X, 10, chunk_size=4)
    assert model.calls == 1 + 3


@pytest.mark.parametrize("wrapper", [Counting, Branching])
def test_prediction_leaves_the_model_as_it_was(wrapper):
    model = wrapper(mnvi.Sequential(MNLinear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), MNLinear(6, 3)))
    model.layer[1].eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    predict(model, X, 5)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(ValueError):
        predict(model, X[:, :3], 5)
    assert [m.training for m in model.modules()] == modes
    assert draws(model)
    assert not draws(model.eval())


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_dropout_is_off_in_prediction():
    p = predict(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train(), X)
    assert not p.variance.any()


def test_prediction_inside_a_frozen_sample_is_that_sample():
    model = mlp().eval()
    with frozen_sample(model):
        p = predict(model, X, 5)
        assert_close(p.mean, model(X).softmax(-1))
        assert_close(p.mutual_information, torch.zeros(7))


def test_a_converted_transformer_layer_draws():
    """In eval mode torch's layer has a fast path that reads the weights past the forward of our layers."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = to_bayesian(model, skip=["self_attn"])
    p = predict(model, X.view(1, 7, 4), 8)
    assert (p.mutual_information > 1e-9).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"num_samples": -3}, ValueError, "num_samples"),
        ({"num_samples": 2.5}, TypeError, "num_samples"),
        ({"likelihood": "laplace"}, ValueError, "likelihood.*'laplace'"),
        ({"likelihood": "student_t"}, ValueError, "likelihood.*'student_t'"),
        ({"likelihood": mnvi.likelihoods.Gaussian}, ValueError, r"likelihood.*did you mean Gaussian\(\)"),
        ({"noise_scale": 1.0}, ValueError, "noise_scale.*gaussian"),
        ({"noise_scale": 1.0, "likelihood": mnvi.likelihoods.Gaussian()}, ValueError, "noise_scale"),
        ({"noise_scale": "1", "likelihood": "gaussian"}, TypeError, "noise_scale"),
        ({"likelihood": None}, ValueError, "likelihood"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"noise_scale": -1.0, "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"noise_scale": float("nan"), "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"noise_scale": torch.tensor([1.0, -1.0, 1.0]), "likelihood": "gaussian"}, ValueError, "noise_scale"),
        ({"samples": 3}, TypeError, "samples"),
    ],
    ids=str,
)
def test_prediction_errors(options, error, message):
    with pytest.raises(error, match=message):
        predict(mlp(), X, **options)


def test_regressions_of_conversion():
    class WithOwnKL(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def kl(self, z):
            return z

    model = to_bayesian(WithOwnKL())
    assert model.kl(3) == 3
    assert mnvi.kl(model) > 0
    with pytest.raises(ValueError, match="nothing to convert"):
        to_bayesian(nn.Sequential(nn.Linear(2, 2)), only=[])
    calls = []
    hooked = nn.Sequential(nn.Linear(3, 2))
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    to_bayesian(hooked)(torch.randn(1, 3))
    assert calls == [1]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    assert type(to_bayesian(normed, skip="0")[0]).__name__ == "ParametrizedLinear"


def test_transformers_draw_in_eval_mode():
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(plain, 2, enable_nested_tensor=True).eval()
    by_hand = copy.deepcopy(encoder)
    for layer in by_hand.layers:
        layer.linear1, layer.linear2 = mnvi.MNLinear(8, 16), mnvi.MNLinear(16, 8)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    attentions = [f"layers.{i}.self_attn" for i in range(2)]
    for model in (to_bayesian(encoder, skip=attentions), by_hand):
        with torch.no_grad(), sampling(model):
            assert (model(x, src_key_padding_mask=mask) - model(x, src_key_padding_mask=mask)).abs().max() > 0


def test_copies_made_inside_a_context_are_outside_it():
    model = mlp().eval()
    with sampling(model), frozen_sample(model):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(X), twin(X))
    assert torch.equal(twin(X), model(X))


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


@pytest.mark.filterwarnings("ignore:the model has no Bayesian layer")
def test_noise_free_gaussian_prediction_has_no_nan():
    prediction = predict(nn.Linear(2, 2), torch.randn(3, 2), 4, "gaussian")
    assert torch.equal(prediction.mutual_information, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"scale of shape \(5, 3, 2\).*\(3, 2\)"):
        predict(nn.Linear(2, 2), torch.randn(3, 2), 4, "gaussian", noise_scale=torch.ones(5, 3, 2))
