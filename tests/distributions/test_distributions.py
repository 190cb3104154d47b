"""The matrix-normal distributions against dense normals with an explicit Kronecker factor, scipy and their draws."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from mnvi.distributions import CorrectedMatrixNormal, MatrixNormal, MatrixNormalPlusDiagonal, ScaledMatrixNormal

N, P = 2, 3
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
FAMILIES = pytest.mark.parametrize(
    "family", [MatrixNormal, MatrixNormalPlusDiagonal, ScaledMatrixNormal, CorrectedMatrixNormal]
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def cholesky_factor(raw):
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def raw_arguments(family, batches=((), (), (), ()), n=N, p=P, seed=0):
    """Unconstrained tensors, one for every argument of the family."""
    events = [(n, p), (n, n), (p, p), (n, p)][: len(family.arg_constraints)]
    return [0.7 * randn(*b, *e, seed=10 * seed + i) for i, (b, e) in enumerate(zip(batches, events, strict=False))]


def build(family, raw):
    loc, row, column, *diagonal = raw
    return family(loc, cholesky_factor(row), cholesky_factor(column), *(s.exp() for s in diagonal), validate_args=True)


def make(family=MatrixNormal, **options):
    return build(family, raw_arguments(family, **options))


def dense(d):
    """The multivariate normal of the row-major flattened matrix; `d` has no batch."""
    factor = torch.kron(d.scale_tril_row, d.scale_tril_column)
    if isinstance(d, MatrixNormal):
        return MultivariateNormal(d.loc.flatten(), scale_tril=factor)
    if isinstance(d, ScaledMatrixNormal):
        return MultivariateNormal(d.loc.flatten(), scale_tril=torch.diag(d.scale.flatten()) @ factor)
    if isinstance(d, CorrectedMatrixNormal):
        return MultivariateNormal(d.loc.flatten(), scale_tril=factor @ torch.diag(d.scale.flatten()))
    noise = torch.diag(d.scale_diagonal.flatten())
    return MultivariateNormal(d.loc.flatten(), factor @ factor.T + noise @ noise.T)


def independent_normal(*batch, n=N, p=P, seed=5):
    return Independent(Normal(randn(*batch, n, p, seed=seed), randn(*batch, n, p, seed=seed + 1).exp()), 2)


def dense_independent(r):
    return MultivariateNormal(r.base_dist.loc.flatten(), scale_tril=torch.diag(r.base_dist.scale.flatten()))


def z_scores(samples, expected):
    """The deviation of the mean over the first dimension in units of its own standard error."""
    return (samples.mean(0) - expected) / (samples.std(0) / len(samples) ** 0.5)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, **CLOSE)


@FAMILIES
def test_log_prob_entropy_and_moments_are_those_of_the_dense_normal(family):
    d = make(family)
    oracle, w = dense(d), randn(7, N, P, seed=3)
    assert_close(d.log_prob(w), oracle.log_prob(w.flatten(-2)))
    assert_close(d.entropy(), oracle.entropy())
    assert_close(d.mean.flatten(), oracle.mean)
    assert_close(d.mode.flatten(), oracle.mode)
    assert_close(d.variance.flatten(), oracle.variance)


def test_row_and_column_covariance_make_the_dense_covariance():
    d = make()
    assert_close(torch.kron(d.row_covariance, d.column_covariance), dense(d).covariance_matrix)


def test_log_prob_and_entropy_are_scipys():
    d, w = make(), randn(5, N, P, seed=3)
    oracle = scipy.stats.matrix_normal(d.loc.numpy(), d.row_covariance.numpy(), d.column_covariance.numpy())
    assert_close(d.log_prob(w), torch.as_tensor(oracle.logpdf(w.numpy())))
    assert_close(d.entropy(), torch.as_tensor(oracle.entropy()))


def test_zero_diagonal_is_the_matrix_normal():
    d, w = make(), randn(4, N, P, seed=3)
    plus = MatrixNormalPlusDiagonal(d.loc, d.scale_tril_row, d.scale_tril_column, torch.zeros_like(d.loc))
    assert_close(plus.log_prob(w), d.log_prob(w))
    assert_close(plus.entropy(), d.entropy())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 4), p=st.integers(1, 4), seed=st.integers(0, 99), c=st.floats(0.1, 10))
def test_laws_at_any_size(n, p, seed, c):
    """(c A, B / c) is the same distribution, KL(q, q) is 0 and KL(q, r) is not negative."""
    q, r = make(n=n, p=p, seed=seed), make(n=n, p=p, seed=seed + 100)
    gauge, w = MatrixNormal(q.loc, c * q.scale_tril_row, q.scale_tril_column / c), randn(n, p, seed=seed)
    assert_close(gauge.log_prob(w), q.log_prob(w))
    assert_close(gauge.entropy(), q.entropy())
    assert_close(kl_divergence(gauge, r), kl_divergence(q, r))
    assert_close(kl_divergence(q, gauge), torch.zeros((), dtype=torch.float64))
    assert kl_divergence(q, r) >= 0


@FAMILIES
def test_draws_have_the_mean_and_covariance(family):
    d = make(family)
    centred = (d.rsample((20_000,), generator=generator(1)) - d.loc).flatten(1)
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    assert z_scores(centred, torch.zeros(N * P)).abs().max() < 5
    assert z_scores(products, dense(d).covariance_matrix).abs().max() < 5


@pytest.mark.parametrize("r", [make(seed=2), independent_normal()], ids=["matrix normal", "independent normal"])
def test_kl_is_the_mean_log_ratio_of_draws(r):
    q = make(seed=1)
    w = q.rsample((20_000,), generator=generator(2))
    assert z_scores(q.log_prob(w) - r.log_prob(w), kl_divergence(q, r)).abs() < 5


@FAMILIES
def test_same_generator_state_gives_the_same_draw_and_sample_has_no_graph(family):
    d = build(family, [x.requires_grad_() for x in raw_arguments(family)])
    assert d.rsample((3,), generator=generator(4)).equal(d.rsample((3,), generator=generator(4)))
    assert d.sample((3,)).shape == (3, N, P)
    assert d.rsample().requires_grad
    assert not d.sample().requires_grad


@FAMILIES
def test_broadcast_batch_equals_loop(family):
    d, w = make(family, batches=((4, 1), (5,), (1, 1), (4, 5))), randn(6, 4, 5, N, P, seed=3)
    arguments = [getattr(d, name) for name in d.arg_constraints]
    assert d.batch_shape == d.entropy().shape == (4, 5)
    assert d.rsample((6,)).shape == w.shape
    for i, j in [(0, 0), (3, 1), (2, 4)]:
        one = family(*(x[i, j] for x in arguments))
        assert_close(d.log_prob(w)[:, i, j], one.log_prob(w[:, i, j]))
        assert_close(d.entropy()[i, j], one.entropy())
        assert_close(d.variance[i, j], one.variance)


@FAMILIES
def test_expand_equals_the_original(family):
    d, w = make(family), randn(N, P, seed=3)
    wide = d.expand((4, 2))
    assert type(wide) is family
    assert wide.batch_shape == (4, 2)
    assert wide.event_shape == (N, P)
    assert wide.loc.data_ptr() == d.loc.data_ptr()
    assert_close(wide.log_prob(w), d.log_prob(w).expand(4, 2))
    assert_close(wide.entropy(), d.entropy().expand(4, 2))
    assert wide.expand((3, 4, 2)).rsample((5,)).shape == (5, 3, 4, 2, N, P)
    with pytest.raises(ValueError, match="event_shape"):
        wide.log_prob(w.T)


@FAMILIES
def test_expand_of_a_subclass(family):
    class Same(family):
        pass

    class OwnArguments(family):
        def __init__(self, raw):
            super().__init__(*raw)

    d = make(family)
    arguments = [getattr(d, name) for name in d.arg_constraints]
    assert type(Same(*arguments).expand((2,))) is Same
    with pytest.raises(NotImplementedError, match="expand"):
        OwnArguments(arguments).expand((2,))


def test_inside_independent():
    d, w = make(batches=((4,), (4,), (4,))), randn(4, N, P, seed=3)
    joint, other = Independent(d, 1), Independent(d.expand((4,)), 1)
    assert joint.event_shape == joint.rsample().shape == (4, N, P)
    assert_close(joint.log_prob(w), d.log_prob(w).sum())
    assert_close(kl_divergence(joint, other), torch.zeros((), dtype=torch.float64))


QUANTITIES = {
    "log_prob": lambda d: d.log_prob(randn(2, N, P, seed=3)),
    "entropy": lambda d: d.entropy(),
    "variance": lambda d: d.variance,
    "rsample": lambda d: d.rsample(generator=generator(1)),
}


@FAMILIES
@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_gradients(family, quantity):
    raw = [x.requires_grad_() for x in raw_arguments(family)]
    assert torch.autograd.gradcheck(lambda *raw: quantity(build(family, raw)), raw)


@FAMILIES
def test_gradient_of_a_draw_reaches_every_argument(family):
    raw = [x.requires_grad_() for x in raw_arguments(family)]
    build(family, raw).rsample((8,)).square().sum().backward()
    lower = [torch.ones(N, P), torch.ones(N, N).tril(), torch.ones(P, P).tril(), torch.ones(N, P)]
    for x, mask in zip(raw, lower, strict=False):
        assert (x.grad != 0).equal(mask.bool())


@FAMILIES
def test_float32_stays_float32_also_under_autocast(family):
    raw, w = raw_arguments(family), randn(5, N, P, seed=3)
    exact, d = build(family, raw), build(family, [x.float() for x in raw])
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    plain = d.rsample((3,), generator=generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [d.log_prob(w.float()), d.entropy(), d.row_covariance, d.column_covariance]
        assert d.rsample((3,), generator=generator(1)).equal(plain)
    expected = [exact.log_prob(w), exact.entropy(), exact.row_covariance, exact.column_covariance]
    for x, y in zip([*values, plain], [*expected, plain], strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y.float(), **tolerance)


def test_column_major_factor_and_copy():
    d, w = make(), randn(N, P, seed=3)
    factors = [x.mT.contiguous().mT for x in (d.scale_tril_row, d.scale_tril_column)]
    again = copy.deepcopy(MatrixNormal(d.loc, *factors))
    assert_close(again.log_prob(w), d.log_prob(w))


SIZE = N * P


@dataclass(frozen=True)
class Normals:
    """A kind of normal distribution of a matrix: the shapes of its unconstrained tensors, itself and its covariance."""

    shapes: tuple
    build: Callable
    covariance: Callable  # of unconstrained tensors without a batch

    def raw(self, *batches, seed):
        """The tensors, of the batches that are named, in turn."""
        batches = itertools.cycle(batches or [()])
        return [
            0.7 * randn(*b, *s, seed=10 * seed + i) for i, (b, s) in enumerate(zip(batches, self.shapes, strict=False))
        ]

    def dense(self, raw):
        return MultivariateNormal(raw[0].flatten(), self.covariance(*raw[1:]))


def dense_kronecker(row, column):
    return torch.kron(*(cholesky_factor(each) @ cholesky_factor(each).T for each in (row, column)))


def dense_corrected(row, column, s):
    factor = torch.kron(cholesky_factor(row), cholesky_factor(column)) @ torch.diag(s.exp().flatten())
    return factor @ factor.T


KINDS = {
    "matrix-normal": Normals(
        ((N, P), (N, N), (P, P)),
        lambda *raw: build(MatrixNormal, raw),
        lambda row, column: dense_kronecker(row, column),
    ),
    "plus-diagonal": Normals(
        ((N, P), (N, N), (P, P), (N, P)),
        lambda *raw: build(MatrixNormalPlusDiagonal, raw),
        lambda row, column, s: dense_kronecker(row, column) + torch.diag((2 * s).exp().flatten()),
    ),
    "scaled": Normals(
        ((N, P), (N, N), (P, P), (N, P)),
        lambda *raw: build(ScaledMatrixNormal, raw),
        lambda row, column, s: torch.outer(s.exp().flatten(), s.exp().flatten()) * dense_kronecker(row, column),
    ),
    "corrected": Normals(
        ((N, P), (N, N), (P, P), (N, P)),
        lambda *raw: build(CorrectedMatrixNormal, raw),
        lambda row, column, s: dense_corrected(row, column, s),
    ),
    "independent": Normals(
        ((N, P), (N, P)),
        lambda loc, s: Independent(Normal(loc, s.exp()), 2),
        lambda s: torch.diag((2 * s).exp().flatten()),
    ),
    "multivariate": Normals(
        ((SIZE,), (SIZE, SIZE)),
        lambda loc, factor: MultivariateNormal(loc, scale_tril=cholesky_factor(factor)),
        lambda factor: cholesky_factor(factor) @ cholesky_factor(factor).T,
    ),
    "low-rank": Normals(
        ((SIZE,), (SIZE, 2), (SIZE,)),
        lambda loc, factor, s: LowRankMultivariateNormal(loc, factor, s.exp()),
        lambda factor, s: factor @ factor.T + torch.diag(s.exp()),
    ),
}
OURS = ("matrix-normal", "plus-diagonal", "scaled", "corrected")
PAIRS = pytest.mark.parametrize(
    ("q", "r"),
    [
        pytest.param(q, r, id=f"{a}-{b}")
        for (a, q), (b, r) in itertools.product(KINDS.items(), repeat=2)
        if a in OURS or b in OURS
    ],
)


@PAIRS
def test_kl_of_a_broadcast_batch_is_the_dense_kl_of_every_pair(q, r):
    raw_q, raw_r = q.raw((4, 1), (), (5,), (4, 5), seed=1), r.raw((5,), (4, 1), (), seed=2)
    divergence = kl_divergence(q.build(*raw_q), r.build(*raw_r))
    assert divergence.shape == (4, 5)
    for i, j in [(0, 0), (3, 1), (2, 4)]:
        parts = [
            kind.dense([x.expand(4, 5, *shape)[i, j] for x, shape in zip(raw, kind.shapes, strict=True)])
            for kind, raw in ((q, raw_q), (r, raw_r))
        ]
        assert_close(divergence[i, j], kl_divergence(*parts))


@PAIRS
def test_kl_without_a_batch_is_the_dense_kl_and_so_it_is_between_a_batch_and_none(q, r):
    raw_q, raw_r = q.raw(seed=1), r.raw(seed=2)
    expected = kl_divergence(q.dense(raw_q), r.dense(raw_r))
    assert_close(kl_divergence(q.build(*raw_q), r.build(*raw_r)), expected)
    for batches in ((1, 3), (3, 1)):
        wide = [[x.expand(count, *x.shape) for x in raw] for count, raw in zip(batches, (raw_q, raw_r), strict=True)]
        assert_close(kl_divergence(q.build(*wide[0]), r.build(*raw_r)), expected.expand(batches[0]))
        assert_close(kl_divergence(q.build(*raw_q), r.build(*wide[1])), expected.expand(batches[1]))


@PAIRS
def test_kl_gradients(q, r):
    raw = [x.requires_grad_() for x in (*q.raw(seed=1), *r.raw(seed=2))]
    count = len(q.shapes)
    assert torch.autograd.gradcheck(
        lambda *raw: kl_divergence(q.build(*raw[:count]), r.build(*raw[count:])), raw, fast_mode=True
    )


@PAIRS
def test_kl_keeps_float32_under_autocast(q, r):
    both = q.build(*(x.float() for x in q.raw(seed=1))), r.build(*(x.float() for x in r.raw(seed=2)))
    plain = kl_divergence(*both)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kl_divergence(*both).equal(plain)


@PAIRS
def test_kl_refuses_events_and_batches_that_do_not_fit(q, r):
    def resized(shape, old, new):
        return tuple(new[old.index(size)] if size in old else size for size in shape)

    small, large = q.raw(seed=1), r.raw((4,), seed=2)
    larger = [randn(*resized(shape, (N, P, SIZE), (5, 4, 20)), seed=3) for shape in r.shapes]
    with pytest.raises(ValueError, match=r"event shapes.*got \((6,|2, 3)\) and \((20,|5, 4)\)"):
        kl_divergence(q.build(*small), r.build(*larger))
    with pytest.raises(ValueError, match=r"batch shapes must broadcast, got \(3,\) and \(4,\)"):
        kl_divergence(q.build(*q.raw((3,), seed=1)), r.build(*large))


@FAMILIES
def test_the_multivariate_normal_is_the_same_distribution(family):
    d, w = make(family, batches=((4, 1), (5,), (1, 1), (4, 5))), randn(4, 5, N, P, seed=3)
    flat = d.to_multivariate_normal()
    assert flat.batch_shape == (4, 5)
    assert_close(flat.log_prob(w.flatten(-2)), d.log_prob(w))
    assert_close(flat.variance.unflatten(-1, (N, P)), d.variance)
    one = family(*(getattr(d, name)[2, 3] for name in d.arg_constraints))
    assert_close(flat.covariance_matrix[2, 3], dense(one).covariance_matrix)
    for pair in [(d, d), (d, flat), (flat, d)]:
        assert_close(kl_divergence(*pair), torch.zeros(4, 5, dtype=torch.float64))


def test_transposed_matrices_are_another_event():
    """(2, 3) and (3, 2) have as many entries, but are not the same."""
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        kl_divergence(make(), make(n=P, p=N))


@FAMILIES
def test_kl_needs_a_normal_distribution_of_each_entry(family):
    d = make(family)
    for other in [
        Independent(Normal(torch.zeros(4, N, P), 1.0), 3),
        Independent(Normal(torch.zeros(N, P), 1.0), 1),
        Independent(Laplace(torch.zeros(N, P), 1.0), 2),
    ]:
        for pair in [(d, other), (other, d)]:
            with pytest.raises(NotImplementedError, match=r"Independent\(Normal, 2\) only, got Independent"):
                kl_divergence(*pair)


def changed(x, index, value):
    x = x.clone()
    x[index] = value
    return x


MATRIX, ROW, COLUMN = torch.zeros(N, P), torch.eye(N), torch.eye(P)
INVALID = {
    "loc is a vector": ({"loc": torch.zeros(P)}, r"loc must have shape \(\.\.\., n, p\).*\(3,\)"),
    "loc is empty": ({"loc": torch.zeros(0, P)}, "n, p > 0"),
    "loc is transposed": ({"loc": MATRIX.T}, r"scale_tril_row must end in \(3, 3\).*got \(2, 2\)"),
    "row is a vector": ({"scale_tril_row": torch.ones(N)}, r"scale_tril_row must end in \(2, 2\).*got \(2,\)"),
    "column is not square": ({"scale_tril_column": torch.ones(P, N)}, r"scale_tril_column must end in \(3, 3\)"),
    "diagonal is a scalar": ({"scale_diagonal": torch.ones(())}, r"scale_diagonal must end in \(2, 3\)"),
    "batches differ": ({"loc": MATRIX.expand(4, -1, -1), "scale_tril_row": ROW.expand(3, -1, -1)}, "must broadcast"),
    "dtypes differ": ({"scale_tril_row": ROW.double()}, "one dtype"),
    "row is not triangular": ({"scale_tril_row": torch.ones(N, N)}, "scale_tril_row.*LowerCholesky"),
    "column is not triangular": ({"scale_tril_column": torch.ones(P, P)}, "scale_tril_column.*LowerCholesky"),
    "row has a zero on the diagonal": ({"scale_tril_row": changed(ROW, (1, 1), 0)}, "LowerCholesky"),
    "column is negative on the diagonal": ({"scale_tril_column": -COLUMN}, "LowerCholesky"),
    "row is nan": ({"scale_tril_row": changed(ROW, (1, 0), torch.nan)}, "LowerCholesky"),
    "loc is nan": ({"loc": changed(MATRIX, 0, torch.nan)}, "parameter loc"),
    "loc is infinite": ({"loc": changed(MATRIX, 0, torch.inf)}, "loc must be finite"),
    "column is infinite": ({"scale_tril_column": changed(COLUMN, (2, 2), torch.inf)}, "must be finite"),
    "diagonal is negative": ({"scale_diagonal": -torch.ones(N, P)}, "scale_diagonal"),
}


INVALID_FOR_MATRIX_NORMAL = {name: case for name, case in INVALID.items() if "scale_diagonal" not in case[0]}


def assert_invalid(message, family, **arguments):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        family(**arguments, validate_args=True)


@pytest.mark.parametrize(("change", "message"), INVALID_FOR_MATRIX_NORMAL.values(), ids=INVALID_FOR_MATRIX_NORMAL)
def test_invalid_arguments(change, message):
    valid = {"loc": MATRIX, "scale_tril_row": ROW, "scale_tril_column": COLUMN}
    assert_invalid(message, MatrixNormal, **(valid | change))


@pytest.mark.parametrize(("change", "message"), INVALID.values(), ids=INVALID)
def test_invalid_arguments_plus_diagonal(change, message):
    valid = {"loc": MATRIX, "scale_tril_row": ROW, "scale_tril_column": COLUMN, "scale_diagonal": MATRIX + 1}
    assert_invalid(message, MatrixNormalPlusDiagonal, **(valid | change))


@pytest.mark.parametrize("loc", [0.0, torch.zeros(N, P, dtype=torch.long), torch.zeros(N, P, dtype=torch.complex64)])
def test_arguments_are_floating_point_tensors(loc):
    with pytest.raises(TypeError, match="floating-point tensors"):
        MatrixNormal(loc, ROW, COLUMN)


def test_values_are_not_checked_when_validation_is_off():
    assert MatrixNormal(MATRIX, torch.ones(N, N), COLUMN, validate_args=False).batch_shape == ()


@FAMILIES
@pytest.mark.parametrize("value", [torch.zeros(P, N), torch.full((N, P), torch.nan), torch.zeros(5, N, P)])
def test_invalid_value_of_log_prob(family, value):
    with pytest.raises(ValueError, match=r"event_shape|support|broadcastable"):
        make(family, batches=((4,), (), (), ())).log_prob(value.double())


def test_swapped_factors_are_refused_when_sizes_differ():
    d = make()
    with pytest.raises(ValueError, match="scale_tril_row must end in"):
        MatrixNormal(d.loc, d.scale_tril_column, d.scale_tril_row)


@pytest.mark.parametrize("wrong", ["swapped", "transposed", "no factor"])
def test_the_oracles_notice_a_wrong_factor(wrong):
    """With n = p a wrong factor is accepted, so the checks above must tell it from the right one."""
    d, w, r = make(n=P, p=P), randn(P, P, seed=3), independent_normal(n=P)
    rows, columns = {
        "swapped": (d.scale_tril_column, d.scale_tril_row),
        "transposed": (d.scale_tril_row, torch.linalg.cholesky(d.scale_tril_column.T @ d.scale_tril_column)),
        "no factor": (d.scale_tril_row, COLUMN.double()),
    }[wrong]
    broken = MatrixNormal(d.loc, rows, columns)
    draws = broken.rsample((20_000,), generator=generator(1)).flatten(1) - d.loc.flatten()
    products = draws.unsqueeze(-1) * draws.unsqueeze(-2)
    assert (broken.log_prob(w) - dense(d).log_prob(w.flatten())).abs() > 0.01
    assert (kl_divergence(broken, r) - kl_divergence(dense(d), dense_independent(r))).abs() > 0.01
    assert kl_divergence(broken, d) > 0.01
    assert z_scores(products, dense(d).covariance_matrix).abs().max() > 20
