"""Examples that cannot be learnt from are refused before a training, with their rows."""

import math

import pytest
import torch

from mnvi._data_checks import check_examples
from mnvi.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Poisson,
    Standardized,
    StudentT,
)
from tests.cases import cases

N = 9
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
REAL = torch.randn(N, 1, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(N) % 3


def with_entry(values, value, *positions):
    changed = values.clone()
    for position in positions:
        changed[position] = value
    return changed


FINE = {  # likelihood, targets, output of one example
    "categorical": (Categorical(), LABELS, torch.zeros(1, 3)),
    "categorical with unobserved": (Categorical(), with_entry(LABELS, -100, 2), torch.zeros(1, 3)),
    "images": (Categorical(dim=1), torch.zeros(N, 5, 6, dtype=torch.uint8), torch.zeros(1, 3, 5, 6)),
    "bernoulli": (Bernoulli(), LABELS.clamp(max=1), torch.zeros(1)),
    "gaussian": (Gaussian(), REAL, torch.zeros(1, 1)),
    "heteroscedastic": (HeteroscedasticGaussian(), REAL, torch.zeros(1, 2)),
    "heteroscedastic pair": (HeteroscedasticGaussian(), REAL, (torch.zeros(1, 1), torch.zeros(1, 1))),
    "student t": (StudentT(), REAL, torch.zeros(1, 1)),
    "poisson": (Poisson(), LABELS, torch.zeros(1)),
    "standardized": (Standardized(Gaussian(), REAL.mean(0), REAL.std(0)), REAL, torch.zeros(1, 1)),
}


@cases("row", FINE)
@pytest.mark.parametrize("x", [X, (X, 3), {"a": X, "b": X.long()}, X.long()], ids=["tensor", "tuple", "dict", "ints"])
def test_what_fits_passes(row, x):
    likelihood, y, output = row
    check_examples(x, y, likelihood)
    check_examples(x, y, likelihood, output=output)
    check_examples(x, y, likelihood, output=torch.cat([output, output]) if isinstance(output, torch.Tensor) else output)


WRONG = {  # x, y, likelihood, options, error, message
    "NaN in x": (
        with_entry(X, math.nan, (3, 1), (3, 2), (5, 0)),
        REAL,
        Gaussian(),
        {},
        ValueError,
        r"x has NaN or infinite entries at rows 3, 5 \(2 of 9 examples\)",
    ),
    "many": (
        with_entry(X, math.inf, 0, 1, 4, 7, 8),
        REAL,
        Gaussian(),
        {},
        ValueError,
        r"rows 0, 1, 4 and 2 more \(5 of 9",
    ),
    "NaN in a part of x": (
        {"a": X, "b": with_entry(X, math.nan, 6)},
        REAL,
        Gaussian(),
        {},
        ValueError,
        r"x\['b'\] .* row 6 ",
    ),
    "NaN in a vector": (with_entry(X[:, 0], math.nan, 6), REAL, Gaussian(), {}, ValueError, "x has .* row 6 "),
    "NaN in y": (X, with_entry(REAL, math.nan, 4, 6), Gaussian(), {}, ValueError, "got nan at rows 4, 6"),
    "infinite y": (X, with_entry(REAL, -math.inf, 4), StudentT(), {}, ValueError, "got -inf at row 4"),
    "NaN in standardized y": (
        X,
        with_entry(REAL, math.nan, 4),
        Standardized(Gaussian(), 0.0, 1.0),
        {},
        ValueError,
        "got nan at row 4",
    ),
    "lengths": (X[:-2], REAL, Gaussian(), {}, ValueError, "x has 7 examples, y has 9"),
    "lengths of parts": ((X, X[:4]), REAL, Gaussian(), {}, ValueError, r"x\[1\] has 4 examples, y has 9"),
    "no rows": (X.sum(), REAL, Gaussian(), {}, ValueError, "first dimension of x must count examples"),
    "one example": (X[:1], REAL[:1], Gaussian(), {}, ValueError, "at least 2 examples are needed, got 1"),
    "too few": (X, REAL, Gaussian(), {"least": 10}, ValueError, "at least 10 examples are needed, got 9"),
    "no example": (X[:0], REAL[:0], Gaussian(), {"least": 1}, ValueError, "at least 1 .* got none"),
    "negative label": (X, with_entry(LABELS, -1, 5), Categorical(), {}, ValueError, "0, 1, 2, …, got -1 at row 5"),
    "label beyond": (
        X,
        with_entry(LABELS, 10, 3),
        Categorical(),
        {"output": torch.zeros(2, 10)},
        ValueError,
        r"label 10 at row 3; the model returns 10 classes, 0\.\.9",
    ),
    "labels as floats": (X, LABELS.float(), Categorical(), {}, TypeError, r"float32.*target\.long\(\)"),
    "no truth": (X, LABELS, Bernoulli(), {}, ValueError, "0 or 1 everywhere, got 2 at rows 2, 5, 8"),
    "no count": (X, with_entry(REAL.abs().round(), 0.5, 7), Poisson(), {}, ValueError, "counts.*got 0.5 at row 7"),
    "column for a vector": (
        X,
        REAL[:, 0],
        Gaussian(),
        {"output": torch.zeros(1, 1)},
        ValueError,
        r"\(9, 1\).*\(9,\); target\.unsqueeze\(-1\) fits",
    ),
    "one-hot": (
        X,
        torch.eye(3)[LABELS],
        Categorical(),
        {"output": torch.zeros(1, 3)},
        ValueError,
        r"target\.argmax\(-1\) fits",
    ),
    "no noise": (X, REAL, Gaussian(0.0), {}, ValueError, "no density"),
    "array": (X.numpy(), REAL, Gaussian(), {}, TypeError, "x must be a tensor.*torch.as_tensor"),
    "array of targets": (X, REAL.numpy(), Gaussian(), {}, TypeError, "y must be a tensor.*torch.as_tensor"),
    "no tensor": ((3, "x"), REAL, Gaussian(), {}, TypeError, "no tensor in x"),
    "short name": (X, REAL, "gaussian", {}, TypeError, "likelihood"),
    "least": (X, REAL, Gaussian(), {"least": 0}, ValueError, "least"),
}


@cases("row", WRONG)
def test_what_does_not_fit_is_named(row):
    x, y, likelihood, options, error, message = row
    with pytest.raises(error, match=message):
        check_examples(x, y, likelihood, **options)


def test_constant_columns_are_reported_where_asked():
    x = with_entry(X, 2.0, (slice(None), 1), (slice(None), 3))
    check_examples(x, REAL, Gaussian())
    check_examples(X, REAL, Gaussian(), constant_columns=True)
    with pytest.warns(UserWarning, match="constant in x: columns 1, 3; nothing"):
        check_examples(x, REAL, Gaussian(), constant_columns=True)


def test_nothing_is_changed():
    likelihood, x, y, output = Gaussian(), X.clone(), REAL.clone(), torch.zeros(1, 1, requires_grad=True)
    check_examples(x, y, likelihood, output=output)
    assert torch.equal(x, X)
    assert torch.equal(y, REAL)
    assert output.grad is None
    assert likelihood.log_scale.grad is None
