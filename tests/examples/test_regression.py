"""Regression on a table as people have it: a run, what is wrong with a table, and that no test row trains."""

import numpy as np
import pandas as pd
import pytest
import torch

import mnvi
from examples import regression
from examples.common import tables
from examples.regression import Settings

ROWS = ["plain network", "least squares", "MC dropout", "Bayesian networks"]
SCORES = ["seconds", "rmse", "nll", "coverage", "width", "cost"]


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    monkeypatch.delenv("MNVI_DATA", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table():
    """100 rows of y = 50 + 20·a + noise of deviation 5, and a constant column."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100))
    return pd.DataFrame({"a": a, "price": 50 + 20 * a + 5 * rng.normal(size=100), "b": 1000 + b, "same": 3})


@pytest.mark.parametrize("noise", ["learnt", "heteroscedastic"])
@pytest.mark.filterwarnings("ignore:.*posterior has not settled")
def test_a_run_on_a_table(tmp_path, table, noise):
    path, out = tmp_path / "table.csv", tmp_path / "runs" / "out.csv"
    table.to_csv(path, sep=";", index=False)
    found = regression.main(Settings(str(path), "price", noise, networks=2, epochs=2, out=str(out)))
    assert [*found.index] == ROWS
    assert sorted(found.columns) == sorted(SCORES)
    assert bool(np.isfinite(found.to_numpy()).all())
    line = found.loc["least squares"]
    assert line.rmse == pytest.approx(5, rel=0.6)  # of 20 rows: five deviations are 0.8 of it
    written = pd.read_csv(out, index_col="row")
    assert len(written) == 20
    np.testing.assert_allclose(written.y, table.price[written.index], rtol=1e-6)
    errors = written["mean"] - written.y
    assert found.loc["Bayesian networks"].rmse == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-5)
    assert bool((written.lower < written.upper).all())


@pytest.mark.filterwarnings("ignore:.*posterior has not settled")
def test_columns_that_vary_little_around_large_numbers(tmp_path, table):
    """Single precision has multiples of 64 there."""
    path, out = tmp_path / "table.csv", tmp_path / "out.csv"
    table.assign(a=1e9 + table.a, price=1e9 + table.price / 20).to_csv(path, index=False)
    found = regression.main(Settings(str(path), "price", networks=2, epochs=20, out=str(out)))
    assert (found.rmse < 2).all()  # the target's own deviation is 1
    assert found.loc["least squares"].rmse < 0.5
    written = pd.read_csv(out, index_col="row")
    np.testing.assert_allclose(written.y - 1e9, table.price[written.index] / 20, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*posterior has not settled")
@pytest.mark.parametrize("failing", ["plain network", "Bayesian networks"])
def test_a_method_that_fails_leaves_the_others(tmp_path, table, failing, monkeypatch, capsys):
    path, out, fit = tmp_path / "table.csv", tmp_path / "out.csv", mnvi.fit
    table.to_csv(path, index=False)
    out.write_text("of another run")
    calls = []

    def sometimes(*arguments, **options):
        calls.append(arguments)
        if len(calls) == {"plain network": 1, "Bayesian networks": 3}[failing]:
            raise ValueError("epoch 1: a loss is not finite")
        return fit(*arguments, **options)

    monkeypatch.setattr(mnvi, "fit", sometimes)
    found = regression.main(Settings(str(path), "price", networks=2, epochs=1, out=str(out)))
    assert [*found.index] == [name for name in ROWS if name != failing]
    assert f"{failing}: epoch 1: a loss is not finite" in capsys.readouterr().out
    assert out.exists() == (failing == "plain network")
    assert not out.exists() or len(pd.read_csv(out)) == 20


def test_no_test_row_trains_or_scales(tmp_path, table, monkeypatch):
    rows = np.random.default_rng(0).permutation(100)[:20]
    changed = table.copy()
    changed.loc[rows, ["a", "b", "price"]] = 1e4
    seen = []

    def fit(models, data, *arguments, **options):
        seen.append(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(mnvi, "fit", fit)
    for name, each in (("one", table), ("two", changed)):
        each.to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(KeyboardInterrupt):
            regression.main(Settings(str(tmp_path / f"{name}.csv"), "price"))
    assert [len(part) for part in seen[0]] == [69, 69]  # of 80, less the eleven that set the noise
    for one, two in zip(*seen, strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*posterior has not settled")
def test_the_bayesian_intervals_are_honest(tmp_path):
    """Of scikit-learn's patients; 88 of them are the test."""
    found = regression.main(Settings(epochs=200, out=str(tmp_path / "out.csv")))
    bayesian, plain = found.loc["Bayesian networks"], found.loc["plain network"]
    assert 100 * bayesian.coverage > 88
    assert bayesian.nll < plain.nll
    assert bayesian.rmse < plain.rmse


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        (lambda t: t, "cost", "the target must be a column, one of a, price, b, same; got cost"),
        (lambda t: t.assign(color="red"), "price", "all columns must hold numbers; these do not: color"),
        (
            lambda t: t.assign(b=t.b.where(t.index != 7)),
            "price",
            r"1 of the rows lack a finite number, in b: 7, counted",
        ),
        (lambda t: t.assign(a=np.inf), "price", r"100 of the rows .* in a: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …, counted"),
        (lambda t: t.assign(a=1e39 * t.a), "price", r"numbers must be within ±3\.4e\+38, .*; divide a$"),
        (lambda t: t[:1], "price", "a table needs 50 rows and 2 columns, got 1 and 4"),
        (lambda t: t[["b"]], None, "a table needs 50 rows and 2 columns, got 100 and 1"),
        (lambda t: t, "same", "the target, same, is constant"),
        (
            lambda t: t.set_axis(["1", "2.5", "3", "-4"], axis=1),
            None,
            "must have the names of the columns, not numbers",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, table, change, target, message):
    path = tmp_path / "table.csv"
    change(table).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        tables.read(str(path), target)


NUMBERS = "\n".join(f"{k}.5,{-k},{k * k % 7}" for k in range(60))
TEXTS = {  # a file, what is said of it
    "nothing": ("", "table.csv is empty; it must have a line of names and rows of numbers"),
    "names alone": ("a,b,price\n", r"a table needs 50 rows and 2 columns, got 0 and 3$"),
    "spaces": ("a b price\n" + NUMBERS.replace(",", " "), "got 60 and 1; commas, semicolons or tabs separate columns"),
    "no names": (NUMBERS, "first line .* must have the names of the columns, not numbers; write it above"),
    "no names, one number twice": (NUMBERS.replace("0.5,0,0", "0.5,0.5,0.5"), "must have the names"),
    "no names, with classes": ("\n".join(f"red,{row}" for row in NUMBERS.split("\n")), "must have the names"),
    "decimal commas": (
        "a;b;price\n" + NUMBERS.replace(",", ";").replace(".", ","),
        r"these do not: a; a has '0,5' in row 0, counted from 0: write decimal points, not commas",
    ),
    "a class": (
        "a,b,color\n" + NUMBERS.replace(",0\n", ",red\n"),
        r"these do not: color; color has 'red' in row 0, .*: leave the column out, or make .* pandas.get_dummies",
    ),
    "a mark in a row": ("a,b,price\n" + NUMBERS.replace("5.5,-5", "?,-5"), r"a has '\?' in row 5, counted from 0"),
    "a column without a name": ("a,b\n" + NUMBERS, r"as many columns as its first line"),
    "more columns in a row": ("a,b,price\n" + NUMBERS + "\n1,2,3,4", r"as many columns as its first line \(.*line 62"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=list(TEXTS))
def test_what_is_wrong_with_a_file_is_said_with_what_helps(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        tables.read(str(path), None)


def test_a_spreadsheet_is_no_table_of_text(tmp_path):
    path = tmp_path / "table.xlsx"
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"table\.xlsx is no text in UTF-8; save a spreadsheet as CSV"):
        tables.read(str(path), None)


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_separators_and_the_mark_of_excel(tmp_path, separator):
    path = tmp_path / "table.csv"
    path.write_text("\ufeff" + "a,2020,price\n".replace(",", separator) + NUMBERS.replace(",", separator))
    found = tables.read(str(path), "a")
    assert list(found.columns) == ["2020", "price", "a"]
    assert found.iloc[3].tolist() == [-3, 2, 3.5]


def test_tables_of_numpy(tmp_path, table):
    x, y = table[["a", "b"]].to_numpy(), table.price.to_numpy()
    for target in (y, y[:, None]):
        np.savez(tmp_path / "table.npz", x=x, y=target)
        found = tables.read(str(tmp_path / "table.npz"), None)
        assert found.columns[-1] == "y"
        np.testing.assert_array_equal(found, np.column_stack([x, y]))
    np.savez(tmp_path / "table.npz", x=x)
    with pytest.raises(ValueError, match=r"must hold x \(n, d\) and y \(n,\); y missing"):
        tables.read(str(tmp_path / "table.npz"), None)
    np.savez(tmp_path / "table.npz", x=x, y=y[1:])
    with pytest.raises(ValueError, match=r"got the shapes \(100, 2\) and \(99,\)"):
        tables.read(str(tmp_path / "table.npz"), None)


def test_without_a_table_it_is_concrete_or_the_patients(tmp_path, monkeypatch):
    assert tables.read(None, None).shape == (442, 11)
    (tmp_path / "uci").mkdir()
    np.savez(tmp_path / "uci" / "concrete.npz", x=np.arange(120).reshape(60, 2), y=np.arange(60))
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    assert tables.read(None, None).shape == (60, 3)
