"""The regression tables: a smoke run of every method, the scores, and that no test row is looked at in training."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

import mnvi
from examples import figures
from examples.papers import uci, uci_choice, uci_data, uci_ivon, uci_laplace, uci_scores
from examples.papers.uci_choice import Recipe
from examples.papers.uci_networks import network
from mnvi.likelihoods import Gaussian

TINY = ["--sets", "yacht", "--splits", "2", "--steps", "20"]


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """A table of 60 rows in the place of a set, with two splits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * [1, 10, 0] + [0, 5, 2]
    y = 100 + 30 * x[:, 0] + rng.normal(size=60)
    mask = np.arange(60) % 10 == np.array([[0], [1]])
    folder = tmp_path / "data" / "uci"
    folder.mkdir(parents=True)
    np.savez(folder / "yacht.npz", x=x, y=y, test_mask=mask)
    monkeypatch.setenv("MNVI_DATA", str(tmp_path / "data"))
    return x, y, mask


ROWS = [row for row in uci.ROWS if row != "ivon" or uci_ivon.missing() is None]


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_a_smoke_run_of_every_method(tmp_path, capsys):
    out = tmp_path / "out"
    result = uci.main([*TINY, "--out", str(out)])
    assert list(result["runs"]["yacht"]) == ROWS
    assert json.loads((out / "result.json").read_text()) == result
    assert {path.name for path in (out / "yacht").iterdir()} == {f"{row}.json" for row in ROWS}
    for run in result["runs"]["yacht"].values():
        assert len(run["splits"]) == 2
        assert all(math.isfinite(value) for row in run["splits"] for value in row.values())
    assert "| yacht |" in capsys.readouterr().out
    [drawn] = figures.main(["--folder", str(tmp_path), "--out", str(tmp_path / "again")])  # as it is drawn in figures/
    assert drawn.name == "uci.png"
    assert drawn.read_bytes() == (out / "uci.png").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (out / "yacht").iterdir()}
    uci.main([*TINY, "--out", str(out)])  # all is done
    assert {path: path.stat().st_mtime_ns for path in (out / "yacht").iterdir()} == before
    with pytest.raises(ValueError, match="is of other settings"):
        uci.main([*TINY[:-1], "21", "--out", str(out)])


@pytest.mark.parametrize(
    "content", ["", "half a", "[[1]]", "3", "[[[0, 1.0, 1.0]]]", '[[["a", 1.0, 1.0], [0, 1.0, 1.0]]]']
)
def test_choices_that_cannot_be_read_are_named(tmp_path, content):
    place = tmp_path / "mn"
    place.with_name("mn.choices.json").write_text(content)
    splits = uci_data.load("yacht", 2)
    with pytest.raises(ValueError, match=r"mn\.choices\.json cannot be read .*; delete it to judge"):
        uci_choice.choose(splits, Recipe(hidden=(5,), steps=1, seed=0), [], place)


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_a_killed_run_goes_on_to_the_same_result(tmp_path, monkeypatch):
    options = [*TINY, "--methods", "mn", "--out"]
    whole = uci.main([*options, str(tmp_path / "whole")])["runs"]
    fit, calls = mnvi.fit, []

    def killed_in_the_third(*arguments, **options):
        calls.append(options["kl_weight"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(mnvi, "fit", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        uci.main([*options, str(tmp_path / "parts")])
    parts = uci.main([*options, str(tmp_path / "parts")])["runs"]
    assert calls[:4] == [1.0, 0.3, 0.1, 0.1]  # the first two are not trained again
    for row in ("mn", "mn-ensemble"):
        assert parts["yacht"][row]["splits"] == whole["yacht"][row]["splits"]
        assert parts["yacht"][row]["chosen"] == whole["yacht"][row]["chosen"]


def test_standardized_by_the_training_rows_alone(table):
    x, y, mask = table
    split = uci_data.split(x, y, mask[0], 54)
    changed, targets = x.copy(), y.copy()
    changed[mask[0]], targets[mask[0]] = 1e3, -1e3
    other = uci_data.split(changed, targets, mask[0], 54)
    for name in ("x", "y", "mean", "std"):
        assert torch.equal(getattr(split, name), getattr(other, name))
    assert len(split.test_y) == 6
    np.testing.assert_allclose(split.x[:, :2].std(0, correction=0), 1, rtol=1e-5)
    np.testing.assert_allclose(split.y.std(0, correction=0), 1, rtol=1e-5)
    assert bool((split.x[:, 2] == 0).all())  # a constant column
    assert len(uci_data.split(x, y, mask[0], 50).x) == 50


@pytest.mark.parametrize(("size", "folds", "held"), [(54, 5, 10), (1999, 5, 399), (2000, 1, 200)])
def test_parts_hold_every_row_out_at_most_once(size, folds, held):
    found = uci_choice.parts(size, seed=3)
    assert [len(out) for _, out in found] == [held] * folds
    for rest, out in found:
        assert sorted(torch.cat([rest, out]).tolist()) == list(range(size))
    outs = torch.cat([out for _, out in found])
    assert len(outs.unique()) == len(outs)


def test_held_out_rows_choose_the_likelier_networks_and_their_noise(tmp_path):
    """Of networks that are off by a constant, with a noise that is far too small."""
    torch.manual_seed(0)
    x = torch.arange(200.0)[:, None]
    noise = 0.5 * torch.randn(200, 1)
    split = uci_data.Split(x, noise, x, noise, torch.tensor(0.0), torch.tensor(1.0))

    class Constant:
        log_scales = [math.log(0.1)] * 5

        def __init__(self, value):
            self.value = value

        def drawn(self, inputs, count):
            return [torch.full((count, len(rows), 1), self.value) for rows in inputs]

    def candidate(value):
        def train(pairs, recipe, checkpoint):
            for rows, y in pairs:  # four fifths of the rows, with the targets that belong to them
                assert len(rows) == 160
                assert torch.equal(y, noise[rows[:, 0].long()])
            return Constant(value)

        return train

    candidates = [candidate(value) for value in (2.0, 0.0, -1.0)]
    [choice] = uci_choice.choose([split], Recipe(draws=2), candidates, tmp_path / "kept")
    assert choice.candidate == 1
    # an estimate of log c of 200 rows has a deviation of 1/√400, and is pulled by 1/(400·0.3²) towards 0
    assert math.log(0.1 * choice.widening) == pytest.approx(math.log(0.5), abs=5 / 20 + 0.03 * math.log(5))
    deviation = noise.square().mean().sqrt().item()
    expected = -scipy.stats.norm.logpdf(noise, 0, 0.1 * choice.widening).mean()
    assert choice.loss == pytest.approx(expected, rel=1e-4)
    assert 0.1 * choice.widening == pytest.approx(deviation, rel=0.06)


def test_the_noise_of_an_ensemble_is_that_beside_its_mixture(tmp_path):
    """Two networks of each fold, off by a constant up and down: their mean is right, each alone is not."""
    torch.manual_seed(0)
    x, y = torch.arange(200.0)[:, None], 0.1 * torch.randn(200, 1)
    split = uci_data.Split(x, y, x, y, torch.tensor(0.0), torch.tensor(1.0))

    class UpAndDown:
        log_scales = [math.log(0.1)] * 10

        def drawn(self, inputs, count):
            shifts = itertools.cycle((0.1, -0.1))
            return [torch.full((count, len(rows), 1), next(shifts)) for rows in inputs]

    trainings = []

    def train(pairs, recipe, checkpoint):
        trainings.append(len(pairs))
        return UpAndDown()

    [choice] = uci_choice.choose([split], Recipe(draws=2), [train], tmp_path / "kept", judges=2)
    assert trainings == [10]
    assert choice.widening < 1 < choice.alone == pytest.approx(2**0.5, rel=0.15)
    final = uci_choice.finish([split], Recipe(draws=2), [train], [choice], 2, tmp_path / "kept")
    assert [len(final.predictions[0]), len(final.alone[0])] == [2, 1]
    scales = [each[0][0].variance[0].sqrt().item() for each in (final.predictions, final.alone)]
    assert scales == pytest.approx([0.1 * choice.widening, 0.1 * choice.alone], rel=1e-5)


def test_scores_against_scipy():
    torch.manual_seed(0)
    y, outputs, scales = torch.randn(40, 1), torch.randn(2, 3, 40, 1), (0.5, 2.0)
    members = [Gaussian(scale).prediction(each) for scale, each in zip(scales, outputs, strict=True)]
    found = uci_scores.scores(members, y)
    density = np.mean([scipy.stats.norm.pdf(y, each, s) for s, each in zip(scales, outputs, strict=True)], (0, 1))
    assert found["log_likelihood"] == pytest.approx(np.log(density).mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(float(((outputs.mean((0, 1)) - y) ** 2).mean().sqrt()), rel=1e-5)


def test_intervals_of_a_right_prediction_hold_nineteen_in_twenty():
    torch.manual_seed(0)
    y = 3 * torch.randn(4000, 1)
    coverage = uci_scores.scores([Gaussian(3.0).prediction(torch.zeros(1, 4000, 1))], y)["coverage"]
    # the quantiles of 2,000 draws are within a percent of the interval's, those of 4,000 rows within 4 deviations
    assert abs(coverage - 0.95) < 0.01 + 4 * (0.95 * 0.05 / 4000) ** 0.5


def test_laplace_of_a_linear_model_is_the_exact_posterior():
    torch.manual_seed(0)
    model = network(3, Recipe(hidden=(4,)))
    x = torch.randn(20, 3)
    jacobian = uci_laplace.jacobian(model, x).double()
    assert jacobian.shape == (20, 21)
    # the last layer's part of the Jacobian is its input
    torch.testing.assert_close(jacobian[:, 16:20], torch.relu(model[0](x)).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(uci_laplace.gram(model, x, 7), jacobian.mT @ jacobian)


def test_evidence_is_where_the_marginal_likelihood_is_greatest():
    """Of Bayesian linear regression, by a search over both with scipy's density; there w and the residuals move too."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4))
    y = features @ rng.normal(size=4) + 0.3 * rng.normal(size=30)
    values = np.linalg.eigvalsh(features.T @ features)
    alpha, noise = 1.0, 1.0
    for _ in range(200):
        w = np.linalg.solve(features.T @ features / noise + alpha * np.eye(4), features.T @ y / noise)
        error, norm = np.square(y - features @ w).sum(), np.square(w).sum()
        alpha, noise = uci_laplace.evidence(*map(torch.tensor, (values, error, norm)), 30)

    def log_evidence(alpha, noise):
        return scipy.stats.multivariate_normal.logpdf(
            y, np.zeros(30), features @ features.T / alpha + noise * np.eye(30)
        )

    best = log_evidence(alpha, noise)
    for a, b in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        assert log_evidence(a * alpha, b * noise) < best


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--sets", "cars"], "sets must be of"), (["--methods", "magic"], "methods must be of"), (["--splits", "0"], "1")],
)
def test_bad_options(option, message, capsys):
    with pytest.raises(SystemExit):
        uci.main(option)
    assert message in capsys.readouterr().err


def test_a_missing_set_says_where_it_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"boston is read from \$MNVI_DATA/uci/boston.npz"):
        uci.main(["--sets", "boston", "--out", str(tmp_path / "out")])
