"""The natural-gradient example: both tasks run, a kill changes nothing, its claim holds, bad input is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import mnvi
from examples.papers import conjugate_regression, natural_gradient
from examples.papers.natural_gradient import ADAM, NATURAL
from tests.cases import cases
from tests.laws import assert_refused, randomise

ROOT = Path(__file__).parents[2]

# 64 images: two steps of Adam an epoch, and three of natural gradient, so that a kill can split two covariance steps
TINY = ["--task", "mnist", "--data", "digits", "--limit", "64", "--epochs", "2", "--natural-epochs", "2"]
TINY += ["--batch-size", "32", "--natural-batch-size", "24", "--every", "2"]
STEPS = 2 * 2 + 2 * 3
FILES = {"adam.pt", "natural_gradient.pt", "result.json", "natural_gradient.png"}


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(out, *options):
    return natural_gradient.main([*TINY, "--out", str(out), *options])


def histories(result):
    """What does not depend on the clock."""
    return {
        name: [{key: value for key, value in row.items() if key != "seconds"} for row in method["history"]]
        for name, method in result["methods"].items()
    }


def weights(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)["states"]["model"]


def assert_same(folder, result, other, expected):
    assert histories(result) == histories(expected)
    for name in ("adam", "natural_gradient"):
        first, second = weights(folder, name), weights(other, name)
        assert all(torch.equal(first[key], second[key]) for key in first)


# --- regression ---


@pytest.mark.slow
def test_two_steps_of_regression(tmp_path, capsys):
    result = natural_gradient.main(["--steps", "2", "--seeds", "2", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "natural_gradient.png"}
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [len(each[name]["curve"]) for each in result["problems"] for name in (ADAM, NATURAL)] == [3] * 4
    for each in result["problems"]:
        assert each[ADAM]["curve"][0] == each[NATURAL]["curve"][0]  # the same start
        assert each[ADAM]["steps"] is each["ratio"]["steps"] is None
    assert result["summary"]["steps"][ADAM] is None
    assert "not all arrived" in capsys.readouterr().out


def test_the_gap_is_the_divergence_from_the_exact_posterior():
    """−ELBO + log evidence is KL(q ‖ p(W | Y)), here between dense normal distributions."""
    x, y = conjugate_regression.problem(0)
    layer = mnvi.MNLinear(8, 3, bias=False, posterior=mnvi.posteriors.MatrixNormal(), dtype=torch.float64)
    randomise(layer.posterior, 0.3)
    with torch.no_grad():
        gap = conjugate_regression.gap_to_evidence(layer, x, y, conjugate_regression.log_evidence(x, y))
        precision = torch.block_diag(*[x.mT @ x / conjugate_regression.NOISE**2 + torch.eye(8, dtype=x.dtype)] * 3)
        mean = torch.linalg.solve(precision, (y.mT @ x / conjugate_regression.NOISE**2).flatten())
        row, column = layer.posterior.row.covariance(), layer.posterior.column.covariance()
        approximate = torch.distributions.MultivariateNormal(layer.weight.flatten(), torch.kron(row, column))
        exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
        expected = torch.distributions.kl_divergence(approximate, exact)
    torch.testing.assert_close(gap, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_natural_gradient_needs_a_tenth_of_adams_steps(tmp_path):
    result = natural_gradient.main(["--seeds", "1", "--out", str(tmp_path)])
    problem = result["problems"][0]
    assert problem[NATURAL]["steps"] <= 30
    assert problem["ratio"]["steps"] == problem[ADAM]["steps"] / problem[NATURAL]["steps"] >= 10
    for name in (ADAM, NATURAL):
        curve = problem[name]["curve"]
        assert 0 <= curve[-1] <= 0.01 < min(curve[:-1])
        assert len(curve) == problem[name]["steps"] + 1
    arrived = [trial for trial in problem["trials"] if trial["steps"] is not None]
    assert min(trial["steps"] for trial in arrived) == problem[ADAM]["steps"]
    # the best rate lies inside the grid
    assert min(conjugate_regression.RATES) < problem[ADAM]["lr"] < max(conjugate_regression.RATES)


# --- images ---


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder)


def test_two_epochs_of_both_methods(uninterrupted):
    folder, result = uninterrupted
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "result.json").read_text()) == result
    for name in (ADAM, NATURAL):
        history = result["methods"][name]["history"]
        assert [row["epoch"] for row in history] == [1, 2]
        assert 0 < history[0]["seconds"] < history[1]["seconds"] == result["methods"][name]["seconds"]
        assert all(math.isfinite(value) for row in history for value in row.values())
        assert history[0]["neg_elbo"] == pytest.approx(history[0]["nll"] + history[0]["kl"] / 64)
    assert result["target"] == result["methods"][ADAM]["history"][-1]["neg_elbo"]
    with Image.open(folder / "natural_gradient.png") as image:
        assert image.size[0] == 1650


@pytest.mark.slow
def test_a_convolutional_network(tmp_path):
    result = run(tmp_path, "--model", "vgg")
    for method in result["methods"].values():
        assert [row["epoch"] for row in method["history"]] == [1, 2]
        assert all(math.isfinite(value) for row in method["history"] for value in row.values())
    with pytest.raises(ValueError, match=r"model vgg \(now mlp\)"):
        run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 3, 5, 8, 9])  # of 10, of which 4 are Adam's
def test_an_interrupt_continues_to_the_same_result(tmp_path, monkeypatch, uninterrupted, calls):
    left = iter(range(calls))
    forward = mnvi.ELBO.__call__

    def interrupted(self, *args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(mnvi.ELBO, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert not (tmp_path / "result.json").exists()
    folder, expected = uninterrupted
    assert_same(tmp_path, run(tmp_path), folder, expected)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first, calls = run(tmp_path), []
    forward = mnvi.ELBO.__call__
    monkeypatch.setattr(mnvi.ELBO, "__call__", lambda self, *args: calls.append(1) or forward(self, *args))
    assert run(tmp_path)["methods"] == first["methods"]
    assert not calls
    with pytest.raises(ValueError, match=r"natural_gradient.pt is a checkpoint of other settings: every 2 \(now 3\)"):
        run(tmp_path, "--every", "3")
    (tmp_path / "natural_gradient.pt").unlink()
    again = run(tmp_path, "--every", "3")
    assert again["methods"][ADAM] == first["methods"][ADAM]
    assert again["methods"][NATURAL] != first["methods"][NATURAL]
    assert len(calls) == 6
    run(tmp_path, "--restart")
    assert len(calls) == 6 + STEPS


def test_the_rates_end_at_zero():
    settings = natural_gradient.Settings(task="mnist", decay=0.3, fall=0.3, end=0.25)
    adam, natural = (natural_gradient.make_method(name, mnvi.MNLinear(3, 2), 100, settings) for name in (ADAM, NATURAL))
    assert [adam.factor(t) for t in (0.0, 0.5, 0.85, 1.0)] == pytest.approx([1, 1, 0.5, 0])
    assert [natural.factor(t) for t in (0.0, 0.5, 0.85, 1.0)] == pytest.approx([1, 0.5, 0.5 * 0.25**0.85, 0])
    assert natural_gradient.fall(0.999, 0) == 1


def test_when_adams_final_bound_is_reached_is_told():
    rows = [{"epoch": k, "seconds": 10.0 * k, "neg_elbo": 3.0 - k, "accuracy": 90.0} for k in (1, 2)]
    methods = {name: {"history": rows, "seconds": 20.0} for name in (ADAM, NATURAL)}
    result = {"methods": methods, "reached": {"epoch": 1, "seconds": 10.0}}
    assert "at epoch 1 and 10.0 s, 0.50 and 0.50 of Adam's" in natural_gradient.summary(result)
    assert "did not reach" in natural_gradient.summary(result | {"reached": None})


# --- bad input ---

BAD_OPTIONS = {
    "task": (["--task", "cifar"], "invalid choice: 'cifar'"),
    "data": (["--data", "imagenet"], "invalid choice: 'imagenet'"),
    "steps": (["--steps", "0"], "steps must be a finite number of at least 1, got 0"),
    "natural-lr": (["--natural-lr", "nan"], "natural_lr must be a finite number"),
    "momentum": (["--momentum", "1"], "momentum must be a finite number from 0 to 0.9999, got 1.0"),
    "every": (["--every", "0"], "every must be a finite number of at least 1, got 0"),
    "end": (["--end", "0"], "end must be a finite number from 1e-06 to 1, got 0.0"),
    "unknown": (["--natural", "2"], "unrecognized arguments: --natural"),
}


@cases("options, message", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, capsys, options, message):
    assert_refused(run, options, message, tmp_path / "out", capsys)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(mnvi.ELBO, "__call__", None)
    for task in ("regression", "mnist"):
        with pytest.raises(OSError, match="cannot write to the output folder"):
            run(tmp_path / "file", "--task", task)


def test_a_rate_that_is_far_too_large_is_told(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        run(tmp_path, "--lr", "1e30")
