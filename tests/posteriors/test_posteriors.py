"""Laws of every posterior family, in every position of every factor, against a dense multivariate normal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal
from torch.func import functional_call, vmap

from mnvi.covariance import Dense, Identity, Kronecker, LowRank
from mnvi.posteriors import Diagonal, MatrixNormal, MatrixNormalPlusDiagonal
from tests.cases import FACTORS, FAMILIES, SOME_FAMILIES, WEIGHT_FAMILIES, cases
from tests.laws import assert_close, assert_moments, build, dense_covariance, randomise

pytestmark = pytest.mark.usefixtures("float64")
N, P = 4, 6
EXACT = {name: family for name, family in FAMILIES.items() if not isinstance(family, MatrixNormalPlusDiagonal)}
SUMS = {name: family for name, family in FAMILIES.items() if isinstance(family, MatrixNormalPlusDiagonal)}


def cholesky_factor(n):
    return torch.linalg.cholesky(torch.eye(n) + 0.3 * torch.ones(n, n) + torch.randn(n).exp().diag_embed())


def dense(posterior, loc=None):
    loc = torch.zeros(posterior.shape) if loc is None else loc
    return MultivariateNormal(loc.flatten(), dense_covariance(posterior))


# Laws: functions of one posterior, so that the negative controls below can break a posterior and call them ------------


def law_deviation(posterior):
    """Feed every unit noise: the linear map D gives the exact covariance D Dᵀ, and any draw is D times its noise."""
    noise = posterior.draw_noise()
    sizes = [part.numel() for part in noise]
    units = [u.unflatten(1, part.shape) for u, part in zip(torch.eye(sum(sizes)).split(sizes, 1), noise, strict=True)]
    columns = vmap(posterior.deviation)(tuple(units)).flatten(1)
    assert_close(columns.mT @ columns, dense_covariance(posterior))
    drawn = torch.cat([part.flatten() for part in noise])
    assert_close(posterior.deviation(noise), (drawn @ columns).view(posterior.shape))


def law_variance(posterior):
    assert_close(posterior.variance(), dense(posterior).variance.view(posterior.shape))


def law_scaled_variance(posterior):
    row, column = torch.randn(posterior.shape[0]), torch.randn(posterior.shape[1])
    expected = torch.outer(row, column).flatten() @ dense_covariance(posterior).diagonal()
    assert_close(posterior.scaled_variance(row, column), expected)


def law_mahalanobis(posterior):
    row, column = (cholesky_factor(size) for size in posterior.shape)
    other = torch.kron(row @ row.mT, column @ column.mT)
    expected = torch.linalg.solve(other, dense_covariance(posterior)).trace()
    assert_close(posterior.mahalanobis(row, column), expected)


def law_log_volume(posterior):
    expected = torch.linalg.slogdet(dense_covariance(posterior)).logabsdet / 2
    if posterior.exact:
        assert_close(posterior.log_volume(), expected)
    else:
        assert posterior.log_volume() <= expected + 1e-9


def law_distribution(posterior):
    loc, value = torch.randn(posterior.shape), torch.randn(3, *posterior.shape)
    actual, expected = posterior.distribution(loc), dense(posterior, loc)
    assert_close(actual.mean, loc)
    assert_close(actual.variance, posterior.variance())
    assert_close(actual.entropy(), expected.entropy())
    assert_close(actual.log_prob(value), expected.log_prob(value.flatten(1)))


def law_output_deviation(posterior, count=4000):
    """Draws of (W − M)x for two inputs at once: exact moments inside a row, none between rows."""
    x = torch.randn(2, posterior.shape[1])
    with torch.no_grad():
        draws = posterior.output_deviation(x.expand(count, -1, -1))
    maps = [torch.kron(torch.eye(posterior.shape[0]), row) for row in x]
    covariance = torch.block_diag(*(m @ dense_covariance(posterior) @ m.mT for m in maps)).detach()
    assert_moments(draws.flatten(1), torch.zeros(len(covariance)), covariance)


LAWS = {
    law.__name__: law
    for law in (
        law_deviation,
        law_variance,
        law_scaled_variance,
        law_mahalanobis,
        law_log_volume,
        law_distribution,
        law_output_deviation,
    )
}


@cases("law", LAWS)
@cases("family", FAMILIES)
def test_law(family, law):
    law(build(family, (N, P)))


@cases("law", {name: law for name, law in LAWS.items() if name != "law_output_deviation"})
@cases("family", WEIGHT_FAMILIES)
def test_law_of_a_family_that_draws_weights_only(family, law):
    law(build(family, (N, P)))
    assert not family.build((N, P)).provides("output_deviation")


@cases("family", FAMILIES)
def test_a_one_by_one_weight(family):
    posterior = build(family, (1, 1))
    for law in (law_deviation, law_variance, law_log_volume, law_mahalanobis, law_distribution):
        law(posterior)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3), (2, 0, 3)])
@cases("family", SOME_FAMILIES)
def test_output_deviation_keeps_the_batch_shape(family, batch):
    assert build(family, (N, P)).output_deviation(torch.randn(*batch, P)).shape == (*batch, N)


@cases("family", FAMILIES)
def test_gradients_reach_every_parameter(family):
    posterior = build(family, (N, P))
    outputs = posterior.output_deviation(torch.randn(5, P)).square().sum()
    weight = posterior.deviation(posterior.draw_noise()).square().sum()
    for value in (outputs, weight, posterior.log_volume(), posterior.variance().log().sum()):
        parameters = list(posterior.parameters())
        if not parameters:  # two Identity factors
            assert not value.requires_grad
            continue
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        assert all(g.isfinite().all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients) > 0


class Draws(torch.nn.Module):
    """A posterior's two ways to draw, with the noise of one seed, so that functional_call can reach its parameters."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, x):
        torch.manual_seed(1)
        return self.posterior.output_deviation(x), self.posterior.deviation(self.posterior.draw_noise())


def draws_of(posterior):
    """Both ways as a function of an input and of unconstrained parameters, and points to differentiate it at."""
    points = [p.detach().clone().requires_grad_() for p in posterior.parameters()]

    def function(x, *raw):
        parameters = {f"posterior.{n}": r for (n, _), r in zip(posterior.named_parameters(), raw, strict=True)}
        outputs = functional_call(Draws(posterior), parameters, (x,))
        return tuple(output for output in outputs if output.requires_grad)

    return function, (torch.randn(3, P, requires_grad=True), *points)


@cases("family", FAMILIES)
def test_first_gradients_of_draws(family):
    assert gradcheck(*draws_of(build(family, (N, P))), fast_mode=True)


@cases("family", SOME_FAMILIES)
def test_second_gradients_of_draws(family):
    assert gradgradcheck(*draws_of(build(family, (N, P))), fast_mode=True)


@cases("family", SOME_FAMILIES)
def test_an_all_zero_input_has_no_noise_and_finite_gradients(family):
    posterior, x = build(family, (N, P)), torch.zeros(3, P, requires_grad=True)
    output = posterior.output_deviation(x)
    assert torch.equal(output, torch.zeros(3, N))
    gradients = torch.autograd.grad(output.sum(), [x, *posterior.parameters()], materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)


# Starting, counting, balancing ----------------------------------------------------------------------------------------


# Two Identity factors have unit variance whatever the scale.
@cases("family", {name: family for name, family in FAMILIES.items() if "identity-both" not in name or "kron" in name})
def test_reset_gives_every_weight_the_scale(family):
    posterior = build(family, (N, P))
    posterior.set_scale_(0.03)
    torch.testing.assert_close(posterior.variance().sqrt(), torch.full((N, P), 0.03), rtol=0.1, atol=0)
    off_diagonal = dense_covariance(posterior) - dense_covariance(posterior).diagonal().diag_embed()
    assert off_diagonal.abs().max() < 0.1 * 0.03**2


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0])
def test_ratio_sets_the_parts_of_a_sum(ratio):
    posterior = MatrixNormalPlusDiagonal(ratio=ratio).build((N, P))
    posterior.set_scale_(0.03)
    part = posterior.matrix_normal.variance() / posterior.diagonal.variance()
    assert_close(part, torch.full((N, P), ratio**2))


@cases("family", FAMILIES)
def test_number_of_parameters(family):
    for split in (None, (2, 3)):
        posterior = family.build((N, P), split=split)
        assert sum(p.numel() for p in posterior.parameters()) == family.num_parameters((N, P), split)


@cases("family", {name: family for name, family in FAMILIES.items() if name != "Diagonal"})
def test_balancing_keeps_the_distribution(family):
    posterior = build(family, (N, P))
    part = getattr(posterior, "matrix_normal", posterior)
    if part.row.has_scale:
        part.row.rescale_(torch.tensor(3.0))
    before = dense_covariance(posterior).detach()
    posterior.balance_()
    assert_close(dense_covariance(posterior), before)
    if part.row.has_scale and part.column.has_scale:
        assert_close(part.row.log_det() / N, part.column.log_det() / P)


def test_a_split_of_the_columns_reaches_kronecker_factors_of_columns_only():
    posterior = MatrixNormal(Kronecker(), Kronecker()).build((N, 12), split=(2, 6))
    assert (posterior.column.left.size, posterior.column.right.size) == (2, 6)
    assert (posterior.row.left.size, posterior.row.right.size) == (2, 2)


# The bound of the sum family ------------------------------------------------------------------------------------------


def gap_per_weight(posterior):
    """(log|Cov| − bound)/(2np): nats per weight that the KL is too large."""
    exact = torch.linalg.slogdet(dense_covariance(posterior)).logabsdet / 2
    return ((exact - posterior.log_volume()) / (posterior.shape[0] * posterior.shape[1])).item()


@given(
    log_scale=st.floats(-8, 8),
    std=st.floats(0, 2),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    family=st.sampled_from(list(SUMS.values())),
    seed=st.integers(0, 2**31),
)
def test_bound_is_never_above_the_dense_log_determinant(log_scale, std, shape, family, seed):
    torch.manual_seed(seed)
    posterior = build(family, shape, std)
    with torch.no_grad():
        posterior.diagonal.log_scale.add_(log_scale)
    assert gap_per_weight(posterior) >= -1e-10


@pytest.mark.parametrize("vanishing", [-12.0, 12.0])
@cases("family", SUMS)
def test_bound_is_exact_where_either_part_vanishes(family, vanishing):
    posterior = build(family, (N, P), 0.3)
    with torch.no_grad():
        posterior.diagonal.log_scale.fill_(0.0).add_(vanishing)
    assert gap_per_weight(posterior) < 1e-8


# Measured nats per weight with factors drawn at std 0.3, the mean of ten draws; larger means that a bound got worse.
@pytest.mark.parametrize(
    ("factor", "log_scale", "measured"),
    [(Dense(), 0.0, 0.039), (Dense(), -1.0, 0.027), (LowRank(2), 0.0, 0.051), (LowRank(2), -1.0, 0.021)],
)
def test_how_tight_the_bound_is(factor, log_scale, measured):
    gaps = []
    for _ in range(10):
        posterior = build(MatrixNormalPlusDiagonal(factor, factor), (N, P), 0.3)
        with torch.no_grad():
            posterior.diagonal.log_scale.add_(log_scale)
        gaps.append(gap_per_weight(posterior))
    assert sum(gaps) / 10 < 1.2 * measured


def test_chain_rule_is_used_where_both_factors_have_a_cholesky_diagonal_and_minkowski_otherwise():
    # With one weight's noise far larger than all others only the chain rule stays close.
    gaps = {}
    for name in ("dense", "low-rank"):
        posterior = build(MatrixNormalPlusDiagonal(FACTORS[name], Dense()), (N, P), 0.1)
        with torch.no_grad():
            posterior.diagonal.log_scale.fill_(-4.0)
            posterior.diagonal.log_scale[0, 0] = 4.0
        gaps[name] = gap_per_weight(posterior)
    assert gaps["dense"] < 0.02
    assert gaps["low-rank"] > 0.05


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [MatrixNormal, MatrixNormalPlusDiagonal])
@pytest.mark.parametrize("argument", [{"row": Dense}, {"column": Identity}, {"row": "dense"}, {"column": Diagonal()}])
def test_factors_must_be_descriptions(family, argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        family(**argument)


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf")])
def test_ratio_is_positive_and_finite(ratio):
    with pytest.raises(ValueError, match="ratio"):
        MatrixNormalPlusDiagonal(ratio=ratio)


@pytest.mark.parametrize("ratio", ["0.1", None, True])
def test_ratio_is_a_number(ratio):
    with pytest.raises(TypeError, match="ratio"):
        MatrixNormalPlusDiagonal(ratio=ratio)


@cases("family", SOME_FAMILIES)
def test_descriptions_are_immutable_values(family):
    with pytest.raises(AttributeError):
        family.row = Identity()
    assert family in {family}


# Negative controls: break one thing in a copy, and the law must notice ------------------------------------------------


def broken(**methods):
    """A matrix-normal posterior of a subclass that gets these methods wrong."""
    posterior = build(MatrixNormal(), (N, P))
    posterior.__class__ = type("Broken", (type(posterior),), methods)
    return posterior


def noise_scaled_by_the_wrong_product(self, x):
    norm = self.column.multiply(x).norm(dim=-1, keepdim=True)  # ‖B x‖ for ‖Bᵀx‖
    return norm * self.row.multiply(torch.randn(*x.shape[:-1], N))


BREAKS = {
    "column factor transposed": (
        law_deviation,
        {"deviation": lambda self, e: self.row.multiply(self.column.multiply_transpose(e[0]).mT).mT},
    ),
    "rows and columns swapped": (
        law_variance,
        {"variance": lambda self: torch.outer(self.column.variance(), self.row.variance()).reshape(N, P)},
    ),
    "n and p swapped": (
        law_log_volume,
        {"log_volume": lambda self: N * self.row.log_volume() + P * self.column.log_volume()},
    ),
    "standard deviation for variance": (
        law_log_volume,
        {"log_volume": lambda self: 0.5 * type(self).__base__.log_volume(self)},
    ),
    "prior factor transposed": (
        law_mahalanobis,
        {"mahalanobis": lambda self, a, b: type(self).__base__.mahalanobis(self, a.mT.tril(), b)},
    ),
    "factor transposed in the output": (law_output_deviation, {"output_deviation": noise_scaled_by_the_wrong_product}),
    "one draw for all rows": (
        law_output_deviation,
        {"output_deviation": lambda self, x: torch.einsum("dij,dkj->dki", *drawn_weights(self, x))},
    ),
}


def drawn_weights(posterior, x):
    return torch.stack([posterior.deviation(posterior.draw_noise()) for _ in x]), x


@pytest.mark.parametrize("name", BREAKS)
def test_negative_control(name):
    law, methods = BREAKS[name]
    law(build(MatrixNormal(), (N, P)))
    with pytest.raises(AssertionError):
        law(broken(**methods))


def test_negative_control_of_the_helpers():
    with pytest.raises(AssertionError):
        assert_close(torch.ones(3), torch.ones(3) + 1e-11)
    draws = torch.randn(4000, 3)
    assert_moments(draws, torch.zeros(3), torch.eye(3))
    with pytest.raises(AssertionError):
        assert_moments(draws, torch.full((3,), 0.2), torch.eye(3))
    with pytest.raises(AssertionError):
        assert_moments(draws, torch.zeros(3), torch.eye(3) + 0.2)
    assert dense_covariance(randomise(Diagonal().build((2, 3)))).shape == (6, 6)
