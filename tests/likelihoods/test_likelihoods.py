"""Likelihoods: a table of them under one list of laws, with torch.distributions as the oracle."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import distributions as td
from torch import nn

import mnvi
from mnvi.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Poisson,
    Standardized,
    StudentT,
)
from mnvi.likelihoods._mixture import Mixture
from tests.cases import cases
from tests.laws import assert_close

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:the model has no Bayesian layer"),
]

DRAWS, NUM, WIDTH = 5, 4, 3
T = torch.zeros
SCALES = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
SHIFTS = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)


class Case:
    """A likelihood; the shape of an output; its distribution by torch, entry by entry, with classes last."""

    def __init__(self, build, shape, distribution, pair=False):
        self.build, self.shape, self.distribution, self.pair = build, shape, distribution, pair

    def likelihood(self):
        torch.manual_seed(1)
        likelihood = self.build().double()
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter.normal_(std=0.5)
        return likelihood

    def outputs(self, lead=(DRAWS,)):
        torch.manual_seed(2)
        draws = tuple(torch.randn(*lead, *self.shape) for _ in range(1 + self.pair))
        return draws if self.pair else draws[0]

    def targets(self, likelihood):
        """Plausible targets of one output, of the type that users have."""
        torch.manual_seed(3)
        return self.distribution(likelihood, self.outputs(())).sample()


def normal(scale):
    return lambda likelihood, mean: td.Normal(mean, scale(likelihood))


def affine(likelihood, mean):
    base = td.Normal(mean, likelihood.likelihood.scale)
    return td.TransformedDistribution(base, [td.AffineTransform(SHIFTS, SCALES)])


def halves(_, output):
    mean, log_scale = output.chunk(2, -1)
    return td.Normal(mean, log_scale.exp())


FLAT, WIDE, IMAGE = (NUM,), (NUM, WIDTH), (NUM, 6, 2, 3)
CASES = {
    "categorical": Case(Categorical, WIDE, lambda _, o: td.Categorical(logits=o)),
    "categorical-sequences": Case(Categorical, (NUM, 2, 5), lambda _, o: td.Categorical(logits=o)),
    "categorical-images": Case(lambda: Categorical(1), IMAGE, lambda _, o: td.Categorical(logits=o.movedim(-3, -1))),
    "categorical-second-last": Case(
        lambda: Categorical(-2), (NUM, 3, 2), lambda _, o: td.Categorical(logits=o.movedim(-2, -1))
    ),
    "bernoulli": Case(Bernoulli, FLAT, lambda _, o: td.Bernoulli(logits=o)),
    "bernoulli-labels": Case(Bernoulli, WIDE, lambda _, o: td.Bernoulli(logits=o)),
    "gaussian": Case(lambda: Gaussian(0.7), FLAT, normal(lambda _: 0.7)),
    "gaussian-learnt": Case(Gaussian, WIDE, normal(lambda like: like.log_scale.exp())),
    "gaussian-per-output": Case(lambda: Gaussian(SCALES), WIDE, normal(lambda _: SCALES)),
    "gaussian-learnt-per-output": Case(
        lambda: Gaussian(shape=(WIDTH,)), WIDE, normal(lambda like: like.log_scale.exp())
    ),
    "heteroscedastic": Case(HeteroscedasticGaussian, (NUM, 2 * WIDTH), halves),
    "heteroscedastic-pair": Case(HeteroscedasticGaussian, WIDE, lambda _, o: td.Normal(o[0], o[1].exp()), pair=True),
    "heteroscedastic-log-variance": Case(
        lambda: HeteroscedasticGaussian(log_variance=True),
        FLAT,
        lambda _, o: td.Normal(o[0], o[1].exp().sqrt()),
        pair=True,
    ),
    "heteroscedastic-min-scale": Case(
        lambda: HeteroscedasticGaussian(min_scale=0.5),
        WIDE,
        lambda _, o: td.Normal(o[0], ((2 * o[1]).exp() + 0.25).sqrt()),
        pair=True,
    ),
    "poisson": Case(Poisson, WIDE, lambda _, o: td.Poisson(o.exp())),
    "student-t": Case(lambda: StudentT(9.0), WIDE, lambda like, o: td.StudentT(9.0, o, like.log_scale.exp())),
    "student-t-known": Case(lambda: StudentT(12.0, SCALES), WIDE, lambda _, o: td.StudentT(12.0, o, SCALES)),
    "standardised": Case(lambda: Standardized(Gaussian(), SHIFTS, SCALES), WIDE, affine),
}
WITH_ENTROPIES = {name: case for name, case in CASES.items() if name.split("-")[0] not in ("poisson", "student")}
MIXED_NORMALS = {name: case for name, case in WITH_ENTROPIES.items() if name[0] in "gh"}
CLASSES = {name: case for name, case in CASES.items() if name[0] in "cb"}


def classes_last(likelihood, values):
    return values.movedim(likelihood.dim, -1) if isinstance(likelihood, Categorical) else values


# The laws -------------------------------------------------------------------------------------------------------------


@cases("case", CASES)
def test_the_loss_is_the_mean_over_examples_of_the_summed_log_densities(case):
    likelihood = case.likelihood()
    output, target = case.outputs(()), case.targets(likelihood)
    expected = -case.distribution(likelihood, output).log_prob(target).sum() / NUM
    nll = likelihood(output, target)
    assert nll.shape == ()
    assert_close(nll, expected)


@cases("case", CASES)
def test_log_prob_is_that_of_the_mixture_of_the_draws_for_every_example(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    target = case.targets(likelihood)
    density = case.distribution(likelihood, outputs).log_prob(target).exp()
    expected = density.reshape(DRAWS, NUM, -1).prod(-1).mean(0).log()
    assert_close(likelihood.log_prob(outputs, target), expected)
    assert_close(likelihood.prediction(outputs).log_prob(target), expected)


@cases("case", CASES)
def test_one_draw_is_no_mixture(case):
    likelihood = case.likelihood()
    output, target = case.outputs(()), case.targets(likelihood)
    alone = tuple(each[None] for each in output) if case.pair else output[None]
    assert_close(-likelihood.log_prob(alone, target).mean(), likelihood(output, target))


@cases("case", CASES)
def test_moments_are_those_of_the_mixture(case):
    """Mean E[m] and variance E[v] + Var[m] of the next observation; for classes mean and variance of probabilities."""
    likelihood, outputs = case.likelihood(), case.outputs()
    each = case.distribution(likelihood, outputs)
    if hasattr(each, "probs"):
        mean, within = each.probs, torch.zeros(())
    elif isinstance(likelihood, Standardized):
        mean, within = each.base_dist.mean * SCALES + SHIFTS, each.base_dist.variance * SCALES.square()
    else:
        mean, within = each.mean, each.variance
    p = likelihood.prediction(outputs)
    expected_mean, spread = mean.mean(0), (mean - mean.mean(0)).square().mean(0)
    assert_close(classes_last(likelihood, p.mean), expected_mean)
    assert_close(classes_last(likelihood, p.variance), spread + (within + torch.zeros_like(mean)).mean(0))
    if case.shape == IMAGE:
        assert p.mean.shape == IMAGE


def entropies(likelihood, each):
    if isinstance(likelihood, Standardized):
        return each.base_dist.entropy() + SCALES.log()
    return each.entropy()


@cases("case", WITH_ENTROPIES)
def test_expected_entropy_is_the_mean_of_the_entropies(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    expected = entropies(likelihood, case.distribution(likelihood, outputs)).mean(0)
    assert_close(likelihood.prediction(outputs).expected_entropy, expected.detach())


@cases("case", CLASSES)
def test_the_predictive_entropy_of_classes_is_that_of_the_mean(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    p = likelihood.prediction(outputs)
    mean = classes_last(likelihood, p.mean)
    kind = td.Categorical if isinstance(likelihood, Categorical) else td.Bernoulli
    assert_close(p.predictive_entropy, kind(probs=mean).entropy())


@cases("case", MIXED_NORMALS)
def test_the_predictive_entropy_of_normals_is_that_of_their_moments(case):
    p = case.likelihood().prediction(case.outputs())
    assert_close(p.predictive_entropy, td.Normal(p.mean, p.variance.sqrt()).entropy())


@cases("case", WITH_ENTROPIES)
def test_mutual_information_is_the_difference_and_not_negative(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    p = likelihood.prediction(outputs)
    assert_close(p.mutual_information, p.predictive_entropy - p.expected_entropy)
    assert (p.mutual_information > 0).all()
    same = tuple(o[:1].expand(7, *o.shape[1:]) for o in outputs) if case.pair else outputs[:1].expand(7, *case.shape)
    nothing = likelihood.prediction(same).mutual_information
    assert (nothing >= 0).all()
    assert_close(nothing, torch.zeros_like(nothing))


def test_likelihoods_without_an_entropy_say_none():
    for name in ("poisson", "student-t"):
        p = CASES[name].likelihood().prediction(CASES[name].outputs())
        assert p.predictive_entropy is None
        assert p.mutual_information is None
    assert CASES["poisson"].likelihood().prediction(CASES["poisson"].outputs()).expected_entropy is None
    case = CASES["student-t"]
    likelihood = case.likelihood()
    expected = case.distribution(likelihood, case.outputs()).entropy().mean(0)
    assert_close(likelihood.prediction(case.outputs()).expected_entropy, expected.detach())


def assert_mean(values, expected, limit=5.0):
    """|z| < limit for the mean over the first dimension, by the sample's own error."""
    error = values.double().std(0) / len(values) ** 0.5
    z = (values.double().mean(0) - expected).abs() / error.clamp_min(1e-12)
    assert z.max() < limit


@cases("case", CASES)
def test_samples_have_the_moments_of_the_prediction(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    p = likelihood.prediction(outputs)
    samples = p.sample(4000, generator=torch.Generator().manual_seed(5))
    assert samples.shape == (4000, *case.targets(likelihood).shape)
    if isinstance(likelihood, Categorical):
        probs = classes_last(likelihood, p.mean)
        assert_mean(F.one_hot(samples, probs.shape[-1]), probs)
        return
    assert_mean(samples, p.mean)
    assert_mean((samples - p.mean).square(), p.mean * (1 - p.mean) if isinstance(likelihood, Bernoulli) else p.variance)


@cases("case", CASES)
def test_samples_follow_the_generator_and_share_a_draw(case):
    likelihood, outputs = case.likelihood(), case.outputs()
    p = likelihood.prediction(outputs)
    first, again, other = (p.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    likelihood.check_target(likelihood.read_draws(outputs), first[0])


def test_a_sample_is_one_function():
    """Two examples with the same outputs in every draw have perfectly correlated samples without noise."""
    outputs = torch.randn(6, 1).expand(6, 2)
    samples = Gaussian(0.0).prediction(outputs).sample(50)
    assert torch.equal(samples[:, 0], samples[:, 1])
    assert set(samples[:, 0].tolist()) <= set(outputs[:, 0].tolist())


def test_student_t_samples_have_the_tails_of_the_distribution():
    from scipy import stats

    samples = StudentT(2.5, 2.0).prediction(torch.zeros(1, 1)).sample(20_000)[:, 0] / 2
    below = torch.tensor([-6.0, -2.0, 0.0, 1.0, 4.0])
    exact = torch.tensor(stats.t(2.5).cdf(below.numpy()))
    share = (samples[:, None] <= below).double().mean(0)
    assert ((share - exact).abs() / (exact * (1 - exact) / 20_000).sqrt()).max() < 5


@cases("case", CASES)
def test_gradients_are_those_of_finite_differences(case):
    likelihood = case.likelihood()
    target, output = case.targets(likelihood), case.outputs(())
    parts = output if case.pair else (output,)
    names = [name for name, _ in likelihood.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in likelihood.parameters()]
    inputs = [part.clone().requires_grad_() for part in parts]

    def loss(*tensors):
        out = tensors[: len(parts)] if case.pair else tensors[0]
        state = dict(zip(names, tensors[len(parts) :], strict=True))
        return torch.func.functional_call(likelihood, state, (out, target))

    assert torch.autograd.gradcheck(loss, (*inputs, *values))


@cases("case", CASES)
def test_copies_pickles_and_states_are_the_same_likelihood(case):
    likelihood, fresh = case.likelihood(), case.build().double()
    output, target = case.outputs(()), case.targets(likelihood)
    fresh.load_state_dict(likelihood.state_dict())
    for twin in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood)), fresh):
        assert torch.equal(twin(output, target), likelihood(output, target))
        assert repr(twin) == repr(likelihood)


@cases("case", CASES)
def test_a_likelihood_without_memory_gets_its_numbers_back(case):
    likelihood = case.build()
    expected = {key: value.clone() for key, value in likelihood.state_dict().items()}
    likelihood = likelihood.to("meta").to_empty(device="cpu")
    for module in likelihood.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert {key: value.tolist() for key, value in likelihood.state_dict().items()} == {
        key: value.tolist() for key, value in expected.items()
    }


@cases("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_taken_in_single_precision(case, dtype):
    likelihood = case.likelihood().float()
    output = case.outputs(())
    half = tuple(each.to(dtype) for each in output) if case.pair else output.to(dtype)
    single = tuple(each.float() for each in half) if case.pair else half.float()
    target = case.targets(likelihood)
    target = target.float() if target.is_floating_point() else target
    nll = likelihood(half, target)
    assert nll.dtype == torch.float32
    assert torch.equal(nll, likelihood(single, target))


def test_a_scale_in_half_precision_serves_outputs_in_single_precision():
    """1/e^-40 is no number of float16."""
    likelihood = Gaussian().half()
    with torch.no_grad():
        likelihood.log_scale.fill_(-40)
    nll = likelihood(torch.ones(3, dtype=torch.float32), torch.ones(3, dtype=torch.float32))
    assert_close(nll, -40 + 0.5 * math.log(2 * math.pi))


@cases("case", CASES)
def test_the_loss_compiles_without_a_graph_break(case):
    torch.compiler.reset()
    likelihood = case.likelihood()
    output, target = case.outputs(()), case.targets(likelihood)
    compiled = torch.compile(likelihood, fullgraph=True, backend="eager")
    assert_close(compiled(output, target), likelihood(output, target).detach())
    torch.compiler.reset()


@cases("case", CASES)
def test_gradients_of_single_examples_are_available(case):
    likelihood = case.likelihood()
    output, target = case.outputs(()), case.targets(likelihood)
    out = output if case.pair else (output,)

    def loss(parts, y):
        parts = tuple(part[None] for part in parts)
        return likelihood(parts if case.pair else parts[0], y[None])

    single = torch.func.vmap(torch.func.grad(loss))(out, target)
    whole = torch.func.grad(lambda o: likelihood(o if case.pair else o[0], target))(out)
    for a, b in zip(single, whole, strict=True):
        assert_close(a / NUM, b)


@cases("case", CASES)
def test_a_target_of_another_shape_is_refused(case):
    likelihood = case.likelihood()
    output, target = case.outputs(()), case.targets(likelihood)
    for wrong in (target[..., None], target[:-1], target.flatten()[0]):
        with pytest.raises(ValueError, match="target"):
            likelihood(output, wrong)
        with pytest.raises(ValueError, match="target"):
            likelihood.log_prob(case.outputs(), wrong)
    with pytest.raises(TypeError, match="target must be a tensor"):
        likelihood(output, target.tolist())


@cases("case", CASES)
def test_targets_without_a_density_are_refused(case):
    likelihood = case.likelihood()
    target = case.targets(likelihood)
    wrong = target + 0.5 if likelihood.discrete else target * float("nan")
    with pytest.raises((ValueError, TypeError), match="target"):
        likelihood(case.outputs(()), wrong)


LOGITS = torch.zeros(9, 10, dtype=torch.float64)
CLASS = torch.arange(9)


def changed(target, *pairs):
    target = target.clone()
    for row, value in pairs:
        target[row] = value
    return target


MISFITS = {  # likelihood, output, target, error, message
    "beyond": (
        Categorical(),
        LOGITS,
        changed(CLASS, (3, 10)),
        ValueError,
        r"label 10 at row 3; .* 10 classes, 0\.\.9$",
    ),
    "from 1": (Categorical(), LOGITS[:, :9], CLASS + 1, ValueError, "label 9 at row 8.*begin at 1, subtract 1"),
    "negative": (
        Categorical(),
        LOGITS,
        changed(CLASS, (2, -1), (5, -1)),
        ValueError,
        r"label -1 at rows 2, 5;.*ignore_index",
    ),
    "many": (
        Categorical(),
        LOGITS,
        changed(CLASS, *((row, 20 + row) for row in (0, 2, 4, 5, 8))),
        ValueError,
        r"label 20, 22, 24, … at rows 0, 2, 4 and 2 more;",
    ),
    "beside unobserved": (
        Categorical(),
        LOGITS,
        changed(CLASS, (0, -100), (7, 12)),
        ValueError,
        r"label 12 at row 7; the model returns 10 classes, 0\.\.9$",
    ),
    "of an image": (
        Categorical(dim=1),
        torch.zeros(4, 3, 2, 2),
        changed(torch.zeros(4, 2, 2, dtype=torch.uint8), ((2, 1, 0), 255)),
        ValueError,
        "label 255 at row 2;.*ignore_index",
    ),
    "floats": (Categorical(), LOGITS, CLASS.double(), TypeError, r"float64; whole numbers.*target\.long\(\)"),
    "truths": (Categorical(), LOGITS, CLASS > 3, TypeError, "bool$"),
    "probabilities": (Categorical(), LOGITS, LOGITS.softmax(-1), ValueError, r"target\.argmax\(-1\) fits"),
    "one-hot images": (
        Categorical(dim=1),
        torch.zeros(4, 3, 2, 2),
        torch.zeros(4, 3, 2, 2),
        ValueError,
        r"target\.argmax\(1\) fits",
    ),
    "column of labels": (Categorical(), LOGITS, CLASS[:, None], ValueError, r"target\.squeeze\(-1\) fits"),
    "column": (Gaussian(), T(9), T(9, 1), ValueError, r"\(9,\).*\(9, 1\); target\.squeeze\(-1\) fits"),
    "vector": (Gaussian(), T(9, 1), T(9), ValueError, r"\(9, 1\).*\(9,\); target\.unsqueeze\(-1\) fits"),
    "another length": (Gaussian(), T(9, 1), T(8, 1), ValueError, r"\(9, 1\).*\(8, 1\)$"),
    "array": (Gaussian(), T(9), T(9).numpy(), TypeError, r"torch\.as_tensor\(target\)"),
    "nothing": (Gaussian(), T(0), T(0), ValueError, "no examples"),
    "NaN": (Gaussian(), T(9), changed(T(9), (1, math.nan), (6, math.inf)), ValueError, "got inf, nan at rows 1, 6$"),
    "no truth": (Bernoulli(), T(9), changed(T(9), (4, 0.5)), ValueError, "0 or 1 everywhere, got 0.5 at row 4$"),
    "no count": (Poisson(), T(9), changed(T(9), (4, -1.0)), ValueError, "counts.*got -1.0 at row 4$"),
    "one example": (Categorical(), LOGITS[0], CLASS[0], ValueError, r"x\[None\]"),
}


@cases("row", MISFITS)
def test_targets_that_do_not_fit_are_named_by_their_rows(row):
    likelihood, output, target, error, message = row
    with pytest.raises(error, match=message):
        likelihood(output, target)


def test_rows_are_named_inside_a_gradient_too():
    with pytest.raises(ValueError, match="label 10 at row 3"):
        torch.func.grad(lambda logits: Categorical()(logits, changed(CLASS, (3, 10))))(LOGITS)


def test_the_deviation_of_one_target_is_explained():
    with pytest.raises(ValueError, match="of one example is NaN, of equal targets 0"):
        Standardized(Gaussian(), 0.0, torch.tensor([math.nan]))


# What an example is ---------------------------------------------------------------------------------------------------


def test_the_loss_of_single_labels_is_cross_entropy():
    logits, y = torch.randn(6, 4), torch.randint(4, (6,))
    assert_close(Categorical()(logits, y), F.cross_entropy(logits, y))
    assert_close(Categorical()(logits, y.to(torch.uint8)), F.cross_entropy(logits, y))


def test_the_loss_of_images_is_cross_entropy_summed_over_pixels():
    logits, y = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    assert_close(Categorical(dim=1)(logits, y), 15 * F.cross_entropy(logits, y))


def test_ignored_pixels_add_nothing():
    logits, y = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    y[0, 0], y[1, :, 2] = -100, -100
    assert_close(Categorical(dim=1)(logits, y), F.cross_entropy(logits, y, reduction="sum") / 2)
    unseen = torch.full_like(y, 255)
    assert torch.equal(Categorical(1, ignore_index=255).log_prob(logits[None], unseen), torch.zeros(2))


def test_a_scale_for_each_output_finds_its_own_noise():
    """The best learnt scales are the root mean squares of the residuals, one for each output."""
    residuals = torch.randn(400, 3) * SCALES
    likelihood = Gaussian(shape=(3,)).double()
    optimiser = torch.optim.LBFGS(likelihood.parameters(), tolerance_grad=1e-9, tolerance_change=1e-14, max_iter=100)

    def loss():
        optimiser.zero_grad()
        value = likelihood(torch.zeros(400, 3), residuals)
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(likelihood.scale.detach(), residuals.square().mean(0).sqrt(), rtol=1e-6, atol=0)


# Structures -----------------------------------------------------------------------------------------------------------


class Output(dict):
    """As a Hugging Face model's output: a mapping with attributes."""

    def __getattr__(self, name):
        return self[name]


class Plain:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("wrap", [lambda t: Output(loss=None, logits=t), lambda t: {"logits": t}, Plain])
def test_outputs_with_logits_are_read(wrap):
    logits, y = torch.randn(6, 4), torch.randint(4, (6,))
    assert torch.equal(Categorical()(wrap(logits), y), Categorical()(logits, y))


def test_a_pair_and_its_concatenation_are_the_same():
    mean, log_scale, y = torch.randn(3, 5, 2)
    likelihood = HeteroscedasticGaussian()
    expected = likelihood(torch.cat([mean, log_scale], -1), y)
    assert torch.equal(likelihood((mean, log_scale), y), expected)
    assert torch.equal(likelihood([mean, log_scale], y), expected)
    assert_close(HeteroscedasticGaussian(log_variance=True)((mean, 2 * log_scale), y), expected)


def test_a_least_scale_bounds_the_density_and_its_derivatives():
    mean, log_scale, y = torch.zeros(1, 1), torch.full((1, 1), -1000.0, requires_grad=True), torch.ones(1, 1)
    assert HeteroscedasticGaussian()((mean, log_scale), y).isinf()
    loss = HeteroscedasticGaussian(min_scale=0.1)((mean, log_scale), y)
    assert_close(loss, -td.Normal(0.0, 0.1).log_prob(torch.tensor(1.0)))
    assert torch.autograd.grad(loss, log_scale)[0].isfinite().all()


UNFIT = {
    "no class dimension": (Categorical(), T(5), ValueError, r"\(5,\).*Bernoulli"),
    "one logit": (Categorical(), T(5, 1), ValueError, "Bernoulli"),
    "one class in images": (Categorical(1), T(5, 1, 4, 4), ValueError, "Bernoulli"),
    "images with classes last": (Categorical(), T(5, 3, 4, 4), ValueError, r"Categorical\(dim=1\)"),
    "too few dimensions": (Categorical(2), T(5, 3), ValueError, "dim=2"),
    "classes in the batch": (Categorical(-2), T(5, 3), ValueError, "dim=-2"),
    "tuple of logits and state": (Categorical(), (T(5, 3), T(5, 2)), TypeError, r"tuple.*\(5, 3\)"),
    "dict without logits": (Bernoulli(), {"out": T(5)}, TypeError, "out"),
    "nothing": (Poisson(), None, TypeError, "None"),
    "integers": (Gaussian(), T(5, dtype=torch.long), TypeError, "int64"),
    "complex numbers": (Gaussian(), T(5, dtype=torch.complex64), TypeError, "complex64"),
    "a scalar": (Gaussian(), T(()), ValueError, "first dimension"),
    "scales for other outputs": (Gaussian(SCALES), T(5, 2), ValueError, r"\(3,\).*\(5, 2\)"),
    "learnt scales for examples": (Gaussian(shape=(5,)), T(5), ValueError, "learnt scale"),
    "odd width": (HeteroscedasticGaussian(), T(5, 3), ValueError, r"side by side.*\(5, 3\)"),
    "no width": (HeteroscedasticGaussian(), T(6), ValueError, r"\(6,\)"),
    "three parts": (HeteroscedasticGaussian(), (T(5), T(5), T(5)), ValueError, "pair"),
    "unequal parts": (HeteroscedasticGaussian(), (T(5, 2), T(5)), ValueError, r"\(5, 2\)"),
}


@cases("row", UNFIT)
def test_outputs_that_do_not_fit_are_refused(row):
    likelihood, output, error, message = row
    with pytest.raises(error, match=message):
        likelihood(output, torch.zeros(5))
    model = Constant(output)
    with pytest.raises(error, match=message):
        mnvi.predict(model, torch.zeros(5, 2), 3, likelihood)
    assert model.calls == 1  # refused before a draw


class Constant(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output, self.calls = output, 0

    def forward(self, x):
        self.calls += 1
        return self.output


# Extremes -------------------------------------------------------------------------------------------------------------

LARGE = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=torch.float64)
EXTREMES = {
    "categorical": (Categorical(), torch.stack([LARGE, -LARGE], -1), torch.tensor([0, 1, 0, 1, 0])),
    "categorical-impossible": (
        Categorical(),
        torch.stack([LARGE, torch.full((5,), -math.inf, dtype=torch.float64), -LARGE], -1),
        torch.tensor([0, 2, 0, 2, 0]),
    ),
    "bernoulli": (Bernoulli(), LARGE, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])),
    "gaussian-tiny": (Gaussian(1e-20), LARGE, torch.tensor([1.0, -2.0, 0.0, 3.0, 1e5])),
    "gaussian-huge": (Gaussian(1e20), LARGE, torch.tensor([1.0, -2.0, 0.0, 3.0, 1e5])),
    "heteroscedastic": (HeteroscedasticGaussian(), (LARGE, LARGE.clamp(-50, 50)), torch.ones(5)),
    "poisson": (Poisson(), LARGE.clamp(max=50), torch.tensor([0.0, 1.0, 2.0, 3.0, 1e6])),
    "student-t": (StudentT(2.0, 1e-20), LARGE, torch.tensor([1.0, -50.0, 0.0, 3.0, 1e5])),
}


@cases("row", EXTREMES)
def test_extreme_outputs_give_finite_losses_and_gradients(row):
    likelihood, output, target = row
    parts = [part.clone().requires_grad_() for part in (output if isinstance(output, tuple) else (output,))]
    nll = likelihood(tuple(parts) if isinstance(output, tuple) else parts[0], target)
    nll.backward()
    assert nll.isfinite()
    assert all(part.grad.isfinite().all() for part in parts)
    stacked = tuple(part.detach()[None] for part in parts)
    p = likelihood.prediction(stacked if isinstance(output, tuple) else stacked[0])
    assert_close(-p.log_prob(target).mean(), nll.detach())
    for entropy in (p.expected_entropy, p.predictive_entropy, p.mutual_information):
        assert entropy is None or entropy.isfinite().all()


def test_extreme_values_are_right():
    assert_close(Bernoulli()(torch.tensor([1e4]), torch.tensor([0.0])), 1e4)
    assert Bernoulli()(torch.tensor([math.inf]), torch.tensor([1])) == 0
    assert_close(Categorical()(torch.tensor([[1e4, -1e4]]), torch.tensor([1])), 2e4)
    assert Categorical()(torch.tensor([[0.0, -math.inf]]), torch.tensor([1])) == math.inf
    huge = HeteroscedasticGaussian()(torch.tensor([[0.0, 50.0]]), torch.ones(1, 1))
    assert_close(huge, 50 + 0.5 * math.log(2 * math.pi))
    tiny = HeteroscedasticGaussian()(torch.tensor([[1.0, -50.0]]), torch.ones(1, 1))
    assert_close(tiny, -50 + 0.5 * math.log(2 * math.pi))
    assert_close(Poisson()(torch.tensor([-1e4]), torch.tensor([2.0])), 2e4 + math.log(2))


def test_single_precision_keeps_log_scales_of_fifty():
    """The variance e^±100 is no number of float32: the entropies are, and so is the density where the mean is right."""
    output = torch.tensor([[1.0, -50.0], [1.0, 50.0]], dtype=torch.float32)
    p = HeteroscedasticGaussian().prediction(torch.stack([output, output]))
    expected = torch.tensor([[-50.0], [50.0]], dtype=torch.float32) + 0.5 * math.log(2 * math.pi * math.e)
    assert_close(p.expected_entropy, expected)
    assert_close(p.predictive_entropy, expected)
    assert torch.equal(p.mutual_information, torch.zeros(2, 1, dtype=torch.float32))
    assert_close(
        p.log_prob(torch.ones(2, 1)).float(), torch.tensor([50.0, -50.0]).float() - 0.5 * math.log(2 * math.pi)
    )


@pytest.mark.parametrize("unit", [1e20, 1e-25])
def test_in_single_precision_the_information_about_the_weights_has_no_unit(unit):
    outputs = torch.randn(9, 5, 2, generator=torch.Generator().manual_seed(4)).float()
    p, expected = Gaussian(unit).prediction(unit * outputs), Gaussian(1.0).prediction(outputs)
    assert_close(p.predictive_entropy, expected.predictive_entropy + math.log(unit))
    assert_close(p.mutual_information, expected.mutual_information)


def test_student_t_of_single_precision_does_not_square_far_outliers():
    far = StudentT(3.0, 1e-10)(torch.zeros(1, dtype=torch.float32), torch.full((1,), 1e15, dtype=torch.float32))
    exact = -td.StudentT(3.0, torch.zeros(1), torch.tensor([1e-10])).log_prob(torch.tensor([1e15])).item()
    assert far.item() == pytest.approx(exact, rel=1e-5)


def test_a_mixture_of_impossible_draws_is_impossible_and_of_one_possible_is_not():
    outputs = torch.tensor([[[0.0, -math.inf]], [[0.0, -math.inf]]])
    assert Categorical().log_prob(outputs, torch.tensor([1])).item() == -math.inf
    outputs[0] = 0.0
    assert_close(Categorical().log_prob(outputs, torch.tensor([1])), torch.tensor([0.25]).log())


def test_a_mixture_of_far_draws_does_not_underflow():
    assert_close(Gaussian(1.0).log_prob(torch.tensor([[0.0], [1e3]]), torch.tensor([500.0])).exp().log1p(), T(1))
    expected = td.Normal(0.0, 1.0).log_prob(torch.tensor([500.0]))
    assert_close(Gaussian(1.0).log_prob(torch.tensor([[0.0], [1e3]]), torch.tensor([500.0])), expected)


# Scales ---------------------------------------------------------------------------------------------------------------


def test_a_learnt_scale_is_one_parameter_and_a_known_one_none():
    assert [p.shape for p in Gaussian().parameters()] == [()]
    assert [p.shape for p in StudentT(shape=(2,)).parameters()] == [(2,)]
    assert not list(Gaussian(2.0).parameters())
    assert_close(Gaussian(SCALES).scale, SCALES)
    assert Gaussian().scale.item() == 1.0


def test_no_noise_has_no_density():
    likelihood = Gaussian(0.0)
    p = likelihood.prediction(torch.randn(3, 5))
    assert torch.equal(p.sample(1)[0] * 0, torch.zeros(5))
    for call in (lambda: likelihood(torch.zeros(5), torch.zeros(5)), lambda: p.log_prob(torch.zeros(5))):
        with pytest.raises(ValueError, match="no density"):
            call()


@pytest.mark.parametrize("scale", [0.0, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0])])
def test_no_noise_has_no_entropy_and_no_finite_information(scale):
    outputs = torch.randn(3, 5)
    outputs[:, 0] = 1.0
    p = Gaussian(scale).prediction(outputs)
    assert (p.expected_entropy == -math.inf).all()
    assert p.mutual_information is None
    assert p.predictive_entropy[0] == -math.inf
    assert_close(p.predictive_entropy[1:], td.Normal(0.0, outputs[:, 1:].std(0, correction=0)).entropy())


def test_one_output_without_noise_leaves_no_finite_information():
    assert Gaussian(torch.tensor([0.0, 1.0])).prediction(torch.randn(3, 4, 2)).mutual_information is None
    assert Standardized(Gaussian(0.0), 1.0, 2.0).prediction(torch.randn(3, 4)).mutual_information is None


@pytest.mark.parametrize("kind", [Gaussian, StudentT])
def test_a_known_scale_that_requires_grad_warns_that_it_does_not_train(kind):
    noise = nn.Parameter(torch.zeros(()))
    with pytest.warns(UserWarning, match=rf"does not train.*{kind.__name__}\(\) learns one") as caught:
        likelihood = kind(scale=noise.exp())
    assert caught[0].filename == __file__
    assert not likelihood.scale.requires_grad
    with torch.no_grad():
        kind(scale=noise.exp())
    kind(scale=noise.exp().detach())


BAD = {
    "dim of examples": (lambda: Categorical(0), ValueError, "dim"),
    "dim as text": (lambda: Categorical("1"), TypeError, "dim"),
    "negative scale": (lambda: Gaussian(-1.0), ValueError, "scale"),
    "scale that is none": (lambda: Gaussian(float("nan")), ValueError, "scale"),
    "scales with a negative one": (lambda: Gaussian(torch.tensor([1.0, -1.0])), ValueError, "scale"),
    "scale as text": (lambda: Gaussian("1"), TypeError, "scale"),
    "scale as truth": (lambda: Gaussian(True), TypeError, "scale"),
    "shape of a known scale": (lambda: Gaussian(1.0, shape=(2,)), ValueError, "shape"),
    "no scale of a t": (lambda: StudentT(4.0, 0.0), ValueError, "positive"),
    "df without a mean": (lambda: StudentT(1.0), ValueError, "df"),
    "df as text": (lambda: StudentT("4"), TypeError, "df"),
    "negative least scale": (lambda: HeteroscedasticGaussian(min_scale=-1.0), ValueError, "min_scale"),
    "log variance as text": (lambda: HeteroscedasticGaussian(log_variance="yes"), TypeError, "log_variance"),
    "standardised classes": (lambda: Standardized(Categorical(), 0.0, 1.0), TypeError, "real targets"),
    "standardised nothing": (lambda: Standardized("gaussian", 0.0, 1.0), TypeError, "real targets"),
    "no deviation": (lambda: Standardized(Gaussian(), 0.0, torch.tensor([1.0, 0.0])), ValueError, "std"),
    "endless mean": (lambda: Standardized(Gaussian(), math.inf, 1.0), ValueError, "mean"),
}


@cases("row", BAD)
def test_bad_arguments_are_refused(row):
    build, error, message = row
    with pytest.raises(error, match=message):
        build()


# Standardized targets -------------------------------------------------------------------------------------------------

INNER = {
    "gaussian": (Gaussian(0.3), torch.randn),
    "heteroscedastic": (HeteroscedasticGaussian(), lambda *s: torch.randn(*s[:-1], 2 * s[-1])),
    "student-t": (StudentT(8.0, 0.5), torch.randn),
}


@cases("row", INNER)
def test_standardised_targets_obey_the_change_of_variables(row):
    """p_y(y) = p_u((y − m)/s)/∏s; moments, entropies and samples move with y = m + s·u."""
    inner, outputs = row
    outputs = outputs(DRAWS, NUM, WIDTH)
    outer = Standardized(inner, SHIFTS, SCALES)
    y = SHIFTS + SCALES * torch.randn(NUM, WIDTH)
    u = (y - SHIFTS) / SCALES
    small, large = inner.prediction(outputs), outer.prediction(outputs)
    assert_close(large.log_prob(y), small.log_prob(u) - SCALES.log().sum())
    assert_close(outer(outputs[0], y), inner(outputs[0], u) + SCALES.log().sum())
    assert_close(large.mean, SHIFTS + SCALES * small.mean)
    assert_close(large.variance, SCALES.square() * small.variance)
    samples = [p.sample(9, generator=torch.Generator().manual_seed(1)) for p in (small, large)]
    assert_close(samples[1], SHIFTS + SCALES * samples[0])
    if small.mutual_information is not None:
        assert_close(large.predictive_entropy, small.predictive_entropy + SCALES.log())
        assert_close(large.mutual_information, small.mutual_information)
    assert_close(large.expected_entropy, small.expected_entropy + SCALES.log())


@pytest.mark.parametrize("shape", [(), (2,)])
def test_targets_in_double_precision_are_predicted_in_it_by_a_model_in_single(shape):
    """Around 1e9 single precision has multiples of 64."""
    outputs = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(4)).float()
    moments = torch.full(shape, 1e9, dtype=torch.float64), torch.full(shape, 2.0, dtype=torch.float64)
    likelihood = Standardized(Gaussian(torch.tensor(0.5).float()), *moments)
    p, inner = likelihood.prediction(outputs), likelihood.likelihood.prediction(outputs)
    torch.testing.assert_close(p.mean - 1e9, 2 * inner.mean.double(), rtol=0, atol=1e-6)
    sample = likelihood.sample(outputs, generator=torch.Generator().manual_seed(5))
    noise = likelihood.likelihood.sample(outputs, generator=torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(sample - 1e9, 2 * noise, rtol=0, atol=1e-6)
    mixture = Mixture([likelihood, likelihood])
    torch.testing.assert_close(mixture.prediction(mixture.joined([outputs] * 2)).mean, p.mean, rtol=0, atol=1e-6)


def test_a_standardised_scale_must_fit_the_targets():
    for mean, std in ((SHIFTS[:2], 1.0), (0.0, SCALES[None])):
        likelihood = Standardized(Gaussian(), mean, std)
        with pytest.raises(ValueError, match="does not fit examples"):
            likelihood(torch.zeros(4, 3), torch.zeros(4, 3))
        with pytest.raises(ValueError, match="does not fit examples"):
            mnvi.predict(nn.Linear(2, 3), torch.zeros(4, 2), 3, likelihood)


def test_standardised_numbers_serve_one_target_an_example():
    likelihood = Standardized(Gaussian(0.5), 10.0, 2.0)
    expected = -td.Normal(10.0 + 2 * T(3), 1.0).log_prob(torch.tensor([9.0, 10.0, 12.0])).mean()
    assert_close(likelihood(T(3), torch.tensor([9.0, 10.0, 12.0])), expected)


# A likelihood of one's own --------------------------------------------------------------------------------------------


class Laplace(Likelihood):
    def log_density(self, draws, target):
        return td.Laplace(draws, 1.0).log_prob(target)

    def summary(self, draws):
        return draws.mean(0), draws.var(0, correction=0) + 2, None, None, None

    def observe(self, draws, generator):
        u = torch.rand(draws.shape, generator=generator) - 0.5
        return draws - u.sign() * torch.log1p(-2 * u.abs())


def test_a_likelihood_of_ones_own_is_three_methods():
    model, y = mnvi.Sequential(mnvi.MNLinear(2, 3)), torch.randn(5, 3)
    loss, nll, _ = mnvi.ELBO(5)(Laplace()(model(torch.ones(5, 2)), y), model)
    loss.backward()
    p = mnvi.predict(model, torch.ones(5, 2), 4, Laplace())
    assert_close(p.log_prob(y), td.Laplace(p.draws, 1.0).log_prob(y).sum(-1).logsumexp(0) - math.log(4))
    assert p.sample(2).shape == (2, 5, 3)
    assert nll.isfinite()
