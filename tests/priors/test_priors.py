"""Every prior's KL against dense normals, and the best precisions against a generic optimiser."""

import math
from itertools import cycle

import pytest
import scipy.optimize
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, MultivariateNormal, kl_divergence
from torch.func import functional_call

import mnvi
from mnvi import MNLinear
from mnvi.covariance import Dense, LowRank
from mnvi.posteriors import Diagonal, MatrixNormal, MatrixNormalPlusDiagonal
from mnvi.priors import ARD, GroupARD, Normal
from tests.cases import DENSITIES, FAMILIES, PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")
N, P = 4, 6
EXACT_FAMILIES = {k: f for k, f in SOME_FAMILIES.items() if not isinstance(f, MatrixNormalPlusDiagonal)}
SUM = MatrixNormalPlusDiagonal()


def tril(n, seed):
    raw = 0.4 * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return raw.tril(-1) + raw.diagonal().exp().diag_embed()


LOC = torch.randn(N, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SCALES = LOC.exp()
ZERO, ONES = torch.zeros(N, P, dtype=torch.float64), torch.ones(N * P, dtype=torch.float64)
# A prior and the loc and covariance of the dense normal it is.
FIXED_PRIORS = {
    "normal": (Normal(0.7), ZERO, 0.49 * ONES.diag()),
    "normal-int": (Normal(2), ZERO, 4.0 * ONES.diag()),
    "normal-scalar-tensor": (Normal(torch.tensor(2.0)), ZERO, 4.0 * ONES.diag()),
    "normal-per-weight": (Normal(SCALES), ZERO, SCALES.square().flatten().diag()),
    "normal-per-row": (Normal(SCALES[:, :1]), ZERO, SCALES[:, 0].square().repeat_interleave(P).diag()),
    "normal-per-column": (Normal(SCALES[0]), ZERO, SCALES[0].square().repeat(N).diag()),
    "matrix-normal": (
        mnvi.priors.MatrixNormal(LOC, tril(N, 2), tril(P, 3)),
        LOC,
        torch.kron(tril(N, 2) @ tril(N, 2).mT, tril(P, 3) @ tril(P, 3).mT),
    ),
    "matrix-normal-broadcast-loc": (
        mnvi.priors.MatrixNormal(LOC[0], tril(N, 2), tril(P, 3)),
        LOC[:1].expand(N, P),
        torch.kron(tril(N, 2) @ tril(N, 2).mT, tril(P, 3) @ tril(P, 3).mT),
    ),
}


def make(family, prior, seed=0, std=0.5):
    torch.manual_seed(seed)
    layer = MNLinear(P, N, posterior=family, prior=prior)
    randomise(layer.posterior, std)
    torch.nn.init.normal_(layer.weight)
    return layer


def dense_posterior(layer):
    return MultivariateNormal(layer.weight.flatten(), dense_covariance(layer.posterior))


# Fixed priors: the oracle is the KL between two dense normals ---------------------------------------------------------


def law_kl(layer, loc, covariance):
    expected = kl_divergence(dense_posterior(layer), MultivariateNormal(loc.flatten(), covariance))
    assert_close(layer.kl(), expected)


@cases("row", FIXED_PRIORS)
@cases("family", {name: f for name, f in FAMILIES.items() if not isinstance(f, MatrixNormalPlusDiagonal)})
def test_kl_is_that_of_dense_normals(family, row):
    prior, loc, covariance = row
    law_kl(make(family, prior), loc, covariance)


def law_density(layer, density, count=20_000):
    """KL = E[log q(W) − log prior(W)], by the standard error of draws from q."""
    with torch.no_grad():
        q = layer.distribution()
        weights = q.sample((count,))
        terms = q.log_prob(weights) - density.log_prob(weights).sum((-2, -1))
        z = (terms.mean() - layer.kl()) / (terms.std() / count**0.5)
    assert abs(z) < 5


@cases("row", DENSITIES)
@cases("family", EXACT_FAMILIES)
def test_kl_is_that_of_the_density(family, row):
    prior, density = row
    law_density(make(family, prior, std=0.2), density)


@cases("row", FIXED_PRIORS)
@pytest.mark.parametrize("family", [SUM, MatrixNormalPlusDiagonal(LowRank(2))])
def test_kl_of_a_sum_is_above_the_dense_one_by_half_the_gap_of_its_log_determinant(family, row):
    prior, loc, covariance = row
    layer = make(family, prior)
    expected = kl_divergence(dense_posterior(layer), MultivariateNormal(loc.flatten(), covariance))
    gap = torch.linalg.slogdet(dense_covariance(layer.posterior)).logabsdet - 2 * layer.posterior.log_volume()
    assert gap > 0
    assert_close(layer.kl(), expected + gap / 2)


def excess(layer):
    """How far the KL to a standard normal is above the dense one, relative to it."""
    return (
        layer.kl() / kl_divergence(dense_posterior(layer), MultivariateNormal(ZERO.flatten(), ONES.diag())) - 1
    ).item()


# Measured with factors drawn at std 0.3 beside a diagonal part of the same size, the mean of twenty draws.
@pytest.mark.parametrize(("row", "measured"), [(Dense(), 0.036), (LowRank(2), 0.072)])
def test_how_far_the_kl_of_a_sum_is_above_the_dense_one(row, measured):
    layers = [make(MatrixNormalPlusDiagonal(row), Normal(1.0), seed, std=0.3) for seed in range(20)]
    assert 0 < sum(map(excess, layers)) / 20 < 1.2 * measured
    start = MNLinear(P, N, posterior=MatrixNormalPlusDiagonal(Dense()))  # at the start of training it is exact
    assert abs(excess(start)) < 1e-12


@cases("prior", PRIORS | {name: row[0] for name, row in FIXED_PRIORS.items()})
@cases("family", SOME_FAMILIES)
def test_kl_is_a_non_negative_finite_scalar_with_finite_gradients(family, prior):
    layer = make(family, prior)
    kl = layer.kl()
    assert kl.shape == ()
    assert kl > 0
    kl.backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p is not layer.bias)
    assert layer.bias.grad is None


@cases("row", FIXED_PRIORS | DENSITIES | {"ard": (ARD(),), "fitted": (Normal(None),)})
@cases("family", SOME_FAMILIES)
def test_gradients_of_the_kl(family, row):
    layer = make(family, row[0])
    points = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def function(*raw):
        parameters = {f"layer.{n}": r for (n, _), r in zip(layer.named_parameters(), raw, strict=True)}
        return functional_call(KLOf(layer), parameters, ())

    assert gradcheck(function, points, fast_mode=True)
    assert gradgradcheck(function, points, fast_mode=True)


class KLOf(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.kl()


def test_kl_of_a_large_layer():
    """Factors may be stored in pieces; the oracle is the distribution's own KL, tested against dense normals."""
    layer = randomise(MNLinear(700, 3, posterior=MatrixNormal(), prior=Normal(0.7)), 0.1)
    expected = kl_divergence(layer.distribution(), Independent(torch.distributions.Normal(torch.zeros(3, 700), 0.7), 2))
    assert_close(layer.kl(), expected)


def test_the_posterior_of_one_task_is_the_prior_of_the_next():
    first = make(MatrixNormal(), Normal())
    task = first.distribution()
    prior = mnvi.priors.MatrixNormal(task.loc, task.scale_tril_row, task.scale_tril_column)
    second = MNLinear(P, N, posterior=MatrixNormal(), prior=prior)
    expected = kl_divergence(dense_posterior(second), dense_posterior(first))
    assert_close(second.kl(), expected)
    second.load_state_dict(first.state_dict(), strict=False)
    assert_close(second.kl(), torch.tensor(0.0))


def test_a_prior_of_one_dtype_serves_a_layer_of_another():
    row = FIXED_PRIORS["matrix-normal"]
    for prior in (row[0], FIXED_PRIORS["normal-per-weight"][0]):
        assert MNLinear(P, N, prior=prior, dtype=torch.float32).kl().dtype == torch.float32


def test_a_prior_keeps_its_own_copy_of_its_tensors():
    scale, loc = torch.ones(N, P), torch.zeros(N, P)
    priors = [Normal(scale), mnvi.priors.MatrixNormal(loc, torch.eye(N), torch.eye(P))]
    layers = [make(MatrixNormal(), prior) for prior in priors]
    before = [layer.kl().item() for layer in layers]
    scale.fill_(5.0)
    loc.fill_(5.0)
    assert [layer.kl().item() for layer in layers] == before


# Fitted priors: the KL is the minimum over the precisions -------------------------------------------------------------


def smallest_kl(layer, log_precision, size):
    """min over z in R^size of KL(posterior ‖ N(0, exp(−log_precision(z)))), found by scipy; dense throughout."""
    posterior = dense_posterior(layer)
    posterior = MultivariateNormal(posterior.loc.detach(), posterior.covariance_matrix.detach())

    def value_and_gradient(z):
        z = torch.tensor(z, requires_grad=True)
        variance = (-log_precision(z)).exp().flatten()
        kl = kl_divergence(posterior, MultivariateNormal(torch.zeros(N * P), variance.diag()))
        return kl.item(), torch.autograd.grad(kl, z)[0].numpy()

    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(value_and_gradient, [0.0] * size, jac=True, method="L-BFGS-B", options=options)
    assert abs(found.jac).max() < 1e-4
    return torch.tensor(found.fun)


ROWS, COLUMNS = torch.zeros(N, 1), torch.zeros(1, P)
# A prior, log precision of every weight as a function of its free numbers, and how many there are.
FITTED_PRIORS = {
    "normal": (Normal(None), lambda z: z.expand(N, P), 1),
    "ard": (ARD(), lambda z: z.view(N, P), N * P),
    "group-ard": (GroupARD(), lambda z: z[:N].unsqueeze(1) + z[N:], N + P),
    "group-ard-rows": (GroupARD(columns=False), lambda z: z.unsqueeze(1) + COLUMNS, N),
    "group-ard-columns": (GroupARD(rows=False), lambda z: ROWS + z, P),
}


def converged_kl(layer, calls=100):
    for _ in range(calls):
        kl = layer.kl()
    return kl


def law_minimum(layer, row):
    _, log_precision, size = row
    expected = smallest_kl(layer, log_precision, size)
    torch.testing.assert_close(converged_kl(layer), expected, rtol=0, atol=1e-8)


@cases("row", FITTED_PRIORS)
@cases("family", EXACT_FAMILIES)
def test_kl_is_the_minimum_over_the_precisions(family, row):
    law_minimum(make(family, row[0]), row)


@cases("row", FITTED_PRIORS)
def test_kl_of_a_sum_is_above_the_minimum_by_half_the_gap_of_its_log_determinant(row):
    layer = make(SUM, row[0])
    gap = torch.linalg.slogdet(dense_covariance(layer.posterior)).logabsdet - 2 * layer.posterior.log_volume()
    expected = smallest_kl(layer, *row[1:]) + gap / 2
    torch.testing.assert_close(converged_kl(layer), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["group-ard", "group-ard-rows", "group-ard-columns"])
@cases("family", SOME_FAMILIES)
def test_repeated_calls_lower_the_kl_to_its_minimum(family, name):
    layer = make(family, FITTED_PRIORS[name][0])
    values = torch.stack([layer.kl().detach() for _ in range(60)])
    assert (values.diff() <= 1e-12).all()
    assert_close(values[-1], values[-2])


def test_few_calls_are_enough_where_the_posterior_moves_slowly():
    """Warm starts: after one step of a moving posterior a single call is within 1e-4 of the optimum again."""
    layer = make(MatrixNormal(), GroupARD())
    converged_kl(layer)
    with torch.no_grad():
        layer.weight.add_(1e-3 * torch.randn(N, P))
    assert layer.kl() - converged_kl(layer) < 1e-4


@cases("row", {k: v for k, v in FITTED_PRIORS.items() if k.startswith("group")})
@cases("family", EXACT_FAMILIES)
def test_gradient_at_the_optimum_is_that_of_the_minimised_kl(family, row):
    """The envelope theorem: precisions held fixed, the gradient is that of the minimum (central differences)."""
    layer = make(family, row[0])
    parameters = [p for name, p in layer.named_parameters() if name != "bias"]
    gradients = torch.autograd.grad(converged_kl(layer), parameters)
    directions = [torch.randn_like(p) * (g != 0) for p, g in zip(parameters, gradients, strict=True)]
    values, step = [], 1e-4
    for shift in (step, -step):
        moved = make(family, row[0])
        targets = [p for name, p in moved.named_parameters() if name != "bias"]
        with torch.no_grad():
            for target, p, d in zip(targets, parameters, directions, strict=True):
                target.copy_(p + shift * d)
        values.append(converged_kl(moved).item())
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(True, True), (True, False), (False, True)])
def test_learnt_precisions_reach_the_same_optimum_by_gradient(rows, columns):
    fitted = make(MatrixNormal(), GroupARD(rows, columns))
    learnt = make(MatrixNormal(), GroupARD(rows, columns, learn=True))
    precisions = list(learnt.prior.parameters())
    assert sum(p.numel() for p in precisions) == N * rows + P * columns
    optimiser = torch.optim.LBFGS(precisions, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        kl = learnt.kl()
        kl.backward()
        return kl

    optimiser.step(closure)
    torch.testing.assert_close(learnt.kl(), converged_kl(fitted), rtol=0, atol=1e-8)


# Student's t ----------------------------------------------------------------------------------------------------------


def smallest_bound(layer, degrees, share=1):
    """min over τ, γ and the Gammas q(α_ij) = Gamma(a_ij, b_ij) of KL(q(W) q(α) ‖ p(W, α)), found by scipy."""
    q = dense_posterior(layer)
    moments = (layer.weight.flatten(1).square() + layer.distribution().variance).detach()
    entropy, prior = (
        q.entropy().detach(),
        torch.distributions.Gamma(torch.tensor(degrees / 2), torch.tensor(degrees / 2)),
    )

    def value_and_gradient(z):
        z = torch.tensor(z, requires_grad=True)
        log_precision = z[:N].unsqueeze(1) + z[N : N + P // share].repeat_interleave(share)
        a, b = z[N + P // share :].exp().view(2, N, P)
        gamma = torch.distributions.Gamma(a, b)
        expected_log = log_precision + torch.digamma(a) - b.log()
        likelihood = 0.5 * (expected_log - math.log(2 * math.pi) - log_precision.exp() * a / b * moments)
        bound = kl_divergence(gamma, prior).sum() - likelihood.sum() - entropy
        return bound.item(), torch.autograd.grad(bound, z)[0].numpy()

    options = {"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-15, "gtol": 1e-9}
    start = [0.0] * (N + P // share + 2 * N * P)
    found = scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    assert abs(found.jac).max() < 1e-4
    return torch.tensor(found.fun)


DEGREES = zip(cycle([0.5, 3.0]), list(EXACT_FAMILIES.items())[::2])
STUDENTS = {name: (family, degrees) for degrees, (name, family) in DEGREES}


@cases("family, degrees", STUDENTS)
def test_students_kl_is_the_minimum_over_the_precisions_of_units_and_weights(family, degrees):
    layer = make(family, GroupARD(degrees=degrees))
    torch.testing.assert_close(converged_kl(layer, 3000), smallest_bound(layer, degrees), rtol=0, atol=1e-7)


def test_students_kl_is_above_that_of_its_density():
    layer = make(MatrixNormal(), GroupARD(degrees=2.0), std=0.2)
    bound = converged_kl(layer).item()
    scale = (-0.5 * (layer.prior.log_row_precision.unsqueeze(1) + layer.prior.log_column_precision)).exp()
    with torch.no_grad():
        q = layer.distribution()
        draws = q.sample((20_000,))
        density = torch.distributions.StudentT(2.0, 0.0, scale).log_prob(draws).sum((-2, -1))
        terms = q.log_prob(draws) - density
    error = 5 * (terms.std() / len(draws) ** 0.5).item()
    assert terms.mean().item() - error < bound < terms.mean().item() + 0.3 * N * P


@cases("family", EXACT_FAMILIES)
def test_students_limits_are_the_group_and_the_single_precisions(family):
    group, near = make(family, GroupARD()), make(family, GroupARD(degrees=1e6))
    torch.testing.assert_close(converged_kl(near), converged_kl(group), rtol=0, atol=1e-3)
    gaps = []  # to ARD's, a constant
    for seed in (0, 1):
        single, small = make(family, ARD(), seed), make(family, GroupARD(degrees=1e-6), seed)
        gaps.append(converged_kl(small) - single.kl())
    torch.testing.assert_close(*gaps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("degrees", [0, -1.0, float("nan"), float("inf")])
def test_degrees_are_positive_and_finite(degrees):
    with pytest.raises(ValueError, match="degrees"):
        GroupARD(degrees=degrees)


# Kernel positions that share their channel's precision ---------------------------------------------------------------


def make_convolution(prior):
    """Two channels of three positions: the six columns of its weight."""
    torch.manual_seed(0)
    layer = mnvi.MNConv1d(2, N, P // 2, posterior=MatrixNormal(), prior=prior)
    randomise(layer.posterior)
    torch.nn.init.normal_(layer.weight)
    return layer


@pytest.mark.parametrize("learn", [False, True])
def test_positions_share_the_best_precision_of_their_channel(learn):
    layer = make_convolution(GroupARD(positions=False, learn=learn))
    assert len(layer.prior.log_column_precision) == 2
    if learn:
        precisions = list(layer.prior.parameters())
        optimiser = torch.optim.LBFGS(precisions, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            kl = layer.kl()
            kl.backward()
            return kl

        optimiser.step(closure)
    expected = smallest_kl(layer, lambda z: z[:N].unsqueeze(1) + z[N:].repeat_interleave(3), N + 2)
    torch.testing.assert_close(converged_kl(layer), expected, rtol=0, atol=1e-8)


def test_positions_share_a_precision_beside_those_of_weights():
    layer = make_convolution(GroupARD(positions=False, degrees=3.0))
    torch.testing.assert_close(converged_kl(layer, 3000), smallest_bound(layer, 3.0, share=3), rtol=0, atol=1e-7)


def test_linear_layers_have_no_positions_to_share():
    each, shared = make(MatrixNormal(), GroupARD()), make(MatrixNormal(), GroupARD(positions=False))
    assert torch.equal(converged_kl(each), converged_kl(shared))


def test_a_channels_score_uses_its_shared_precision():
    """One precision for all its positions cancels within the channel, whatever it is."""
    layer = make_convolution(GroupARD(positions=False))
    converged_kl(layer)
    with torch.no_grad():
        precision = layer.prior.log_row_precision.exp()[:, None, None]
        signal = (precision * layer.weight.square()).sum((0, 2)) / (precision * layer.variance()).sum((0, 2))
    assert_close(mnvi.sparsity.signal_to_noise(layer, "columns"), signal.sqrt())


def test_precisions_are_saved_and_continue_where_they_were():
    layer = make(MatrixNormal(), GroupARD())
    converged_kl(layer)
    copy = MNLinear(P, N, posterior=MatrixNormal(), prior=GroupARD())
    copy.load_state_dict(layer.state_dict())
    assert_close(copy.kl(), layer.kl())
    assert not list(layer.prior.parameters())


def test_the_graph_of_a_call_does_not_see_the_next_one():
    layer = make(MatrixNormal(), GroupARD())
    first = layer.kl()
    expected = torch.autograd.grad(first, layer.weight, retain_graph=True)[0]
    layer.kl()
    assert torch.equal(torch.autograd.grad(first, layer.weight)[0], expected)


@pytest.mark.parametrize("flush", [False, True])
@cases("prior", PRIORS)
@pytest.mark.parametrize("family", [MatrixNormal(), Diagonal()])
def test_vanished_weights_keep_the_kl_and_its_gradients_finite(family, prior, flush):
    """In float32 a variance of exp(−120) is 0: such a weight is gone, its logarithm must not be −∞."""
    torch.set_flush_denormal(flush)
    layer = MNLinear(P, N, posterior=family, prior=prior, dtype=torch.float32)
    layer.posterior.set_scale_(1e-26)
    torch.nn.init.zeros_(layer.weight)
    for _ in range(3):  # precisions that are kept from call to call stay finite too
        layer.zero_grad()
        kl = layer.kl()
        kl.backward()
        assert kl.isfinite()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p is not layer.bias)


@pytest.mark.parametrize("flush", [False, True])
def test_group_ard_bears_weights_of_any_size(flush):
    """Rows and columns that have vanished by very different amounts, and weights that are 0 among them."""
    torch.set_flush_denormal(flush)
    for seed in range(200):
        torch.manual_seed(seed)
        layer = MNLinear(P, N, posterior=Diagonal(), prior=GroupARD(), dtype=torch.float32)
        size = -60 * (torch.rand(1) * torch.rand(N, 1) + torch.rand(1) * torch.rand(1, P))
        with torch.no_grad():
            layer.posterior.log_scale.copy_(size)
            layer.weight.mul_(size.exp() * (torch.rand(N, P) > 0.3))
        for _ in range(4):
            kl = layer.kl()
        kl.backward()
        assert kl.isfinite()
        assert layer.weight.grad.isfinite().all()
        assert layer.posterior.log_scale.grad.isfinite().all()


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0]), -torch.ones(2)])
def test_scales_are_positive_and_finite(scale):
    with pytest.raises(ValueError, match="scale"):
        Normal(scale)


@pytest.mark.parametrize("scale", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])])
def test_scale_tensors_are_finite(scale):
    with pytest.raises(ValueError, match="scale"):
        Normal(scale)


@pytest.mark.parametrize("scale", ["1", True, [1.0], torch.ones(2, dtype=torch.int64)])
def test_scales_are_numbers_or_floating_tensors(scale):
    with pytest.raises(TypeError, match="scale"):
        Normal(scale)


@pytest.mark.parametrize("shape", [(7,), (P, N), (2, N, P), (N, P, 1)])
def test_scales_that_do_not_fit_the_weight(shape):
    with pytest.raises(ValueError, match="scale"):
        MNLinear(P, N, prior=Normal(torch.ones(shape)))


@pytest.mark.parametrize("shape", [(7,), (P, N), (2, N, P), (N, P, 1)])
def test_locs_that_do_not_fit_the_weight(shape):
    with pytest.raises(ValueError, match="loc"):
        MNLinear(P, N, prior=mnvi.priors.MatrixNormal(torch.ones(shape), torch.eye(N), torch.eye(P)))


def test_factors_that_do_not_fit_the_weight():
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        MNLinear(P, N, prior=mnvi.priors.MatrixNormal(torch.zeros(N, P), torch.eye(P), torch.eye(N)))


BAD_FACTORS = {
    "upper": torch.ones(N, N).triu(),
    "zero diagonal": torch.zeros(N, N),
    "negative diagonal": -torch.eye(N),
    "not square": torch.ones(N, P),
    "a vector": torch.ones(N),
    "nan": torch.eye(N) * float("nan"),
}


@cases("factor", BAD_FACTORS)
def test_factors_are_lower_triangular_with_a_positive_diagonal(factor):
    with pytest.raises(ValueError, match="scale_tril_row"):
        mnvi.priors.MatrixNormal(torch.zeros(N, P), factor, torch.eye(P))
    with pytest.raises(ValueError, match="scale_tril_column"):
        mnvi.priors.MatrixNormal(torch.zeros(P, N), torch.eye(P), factor)


@pytest.mark.parametrize("value", [[[0.0]], 0.0, None, torch.zeros(N, P, dtype=torch.int64)])
def test_a_matrix_normal_prior_takes_floating_tensors(value):
    with pytest.raises(TypeError):
        mnvi.priors.MatrixNormal(value, torch.eye(N), torch.eye(P))


@pytest.mark.parametrize("argument", [{"rows": 1}, {"columns": "yes"}, {"learn": None}])
def test_group_ard_takes_booleans(argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        GroupARD(**argument)


def test_group_ard_needs_a_group():
    with pytest.raises(ValueError, match="rows"):
        GroupARD(rows=False, columns=False)


@cases("prior", PRIORS)
def test_descriptions_are_immutable(prior):
    with pytest.raises(AttributeError):
        prior.scale = 2.0


# Negative controls ----------------------------------------------------------------------------------------------------


def broken(layer, part, **methods):
    module = getattr(layer, part)
    module.__class__ = type("Broken", (type(module),), methods)
    return layer


def test_negative_control_sign_of_the_log_determinant():
    _, loc, covariance = FIXED_PRIORS["normal"]
    layer = make(MatrixNormal(), FIXED_PRIORS["normal"][0])
    law_kl(layer, loc, covariance)
    wrong = broken(layer, "prior", kl=lambda self, mean, q: type(self).__base__.kl(self, mean, q) + 2 * q.log_volume())
    with pytest.raises(AssertionError):
        law_kl(wrong, loc, covariance)


@cases("row", DENSITIES)
def test_negative_control_of_the_densities(row):
    prior, density = row
    layer = make(MatrixNormal(), prior, std=0.2)
    law_density(layer, density)
    wrong = broken(layer, "prior", kl=lambda self, mean, q: type(self).__base__.kl(self, mean, q) + 0.1 * mean.numel())
    with pytest.raises(AssertionError):
        law_density(wrong, density)


def test_negative_control_sign_of_the_mean_of_the_prior():
    prior, loc, covariance = FIXED_PRIORS["matrix-normal"]
    layer = make(MatrixNormal(), prior)
    wrong = broken(layer, "prior", kl=lambda self, mean, q: type(self).__base__.kl(self, mean + 2 * self.loc, q))
    with pytest.raises(AssertionError):
        law_kl(wrong, loc, covariance)


def test_negative_control_rows_and_columns_of_group_ard_swapped():
    """Sinkhorn's equations with n and p exchanged: every row precision off by the same factor."""
    row = FITTED_PRIORS["group-ard"]

    def update(self, mean, posterior, sweeps=None):
        type(self).__base__.update(self, mean, posterior, sweeps)
        self.log_row_precision.add_(torch.tensor(N / P).log())

    layer = make(MatrixNormal(), row[0])
    law_minimum(layer, row)
    with pytest.raises(AssertionError):
        law_minimum(broken(layer, "prior", update=update), row)


@pytest.mark.parametrize("degrees", [9e3, 2e4, 1e8, 1e12, 1e16, 1e300])
def test_students_kl_of_many_degrees_is_the_normals(degrees):
    torch.manual_seed(0)
    mean, spec = torch.randn(20, 30, dtype=torch.float64), mnvi.posteriors.Diagonal()
    posterior = spec.build((20, 30), dtype=torch.float64)
    normal, student = (
        mnvi.priors.GroupARD(degrees=each).build((20, 30), dtype=torch.float64) for each in (None, degrees)
    )
    expected = normal.kl(mean, posterior).item()
    assert abs(student.kl(mean, posterior).item() - expected) <= 1e6 / degrees + 1e-8 * abs(expected)
