"""The scripts at the top of examples: two steps of each, what they claim, and how they are called."""

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples import calibration, manifold_optimization, natural_gradient, orthogonal_rnn, uncertainty

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    "calibration",
    "uncertainty",
    "regression",
    "manifold_optimization",
    "orthogonal_rnn",
    "natural_gradient",
    "sparsify",
)


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_two_steps_of_uncertainty(tmp_path, capsys):
    settings = uncertainty.Settings(train=64, epochs=1, more_epochs=1, draws=2, out=str(tmp_path))
    rows = uncertainty.main(settings)
    assert list(rows) == ["plain network", "plain network, longer", "mean weights", "2 draws"]
    for row in rows.values():
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["ece"] <= 100
    with Image.open(tmp_path / "uncertainty.png") as image:
        assert image.size == (1350, 525)
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows)


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_a_few_steps_of_calibration(capsys):
    rows = calibration.main(calibration.Settings(train=100, steps=2, draws=2))
    assert list(rows) == ["nn.Linear", "mnvi.MNLinear"]
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows)


def test_metrics_of_certain_predictions():
    assert calibration.described("", torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1])) == (
        uncertainty.describe("", torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1]))
    )
    row = uncertainty.describe("", torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1]))
    assert row["accuracy"] == 50
    assert row["ece"] == pytest.approx(40)
    assert row["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2)


def test_two_steps_on_manifolds(capsys):
    errors = manifold_optimization.main(manifold_optimization.Settings(steps=2))
    assert all(math.isfinite(value) for value in errors.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in errors)


def test_the_manifolds_arrive_at_the_exact_answers():
    errors = manifold_optimization.main(manifold_optimization.Settings(size=40, steps=150))
    assert errors["Grassmann, SGD"] < 1e-4
    assert abs(errors["SPD, SGD"]) < 1e-10
    assert errors["free, L Lᵀ, Adam"] > 1e-3


def test_two_steps_of_copying():
    shares = orthogonal_rnn.main(orthogonal_rnn.Settings(steps=2, length=8, hidden=6, batch_size=2))
    assert list(shares) == ["OrthogonalRNN", "nn.RNN", "nn.LSTM"]
    assert all(math.isfinite(share) for share in shares.values())


@pytest.mark.slow
def test_the_orthogonal_layer_remembers():
    shares = orthogonal_rnn.main(orthogonal_rnn.Settings(steps=100, length=30))
    assert shares["OrthogonalRNN"] < 0.5 < min(shares["nn.RNN"], shares["nn.LSTM"])


def test_sequences_hold_letters_blanks_and_a_marker():
    settings = orthogonal_rnn.Settings(count=3, length=4, batch_size=2)
    x, y = orthogonal_rnn.sequences(settings)
    symbols = x.argmax(-1)
    assert symbols.shape == y.shape == (10, 2)
    assert torch.equal(symbols[:3], y[-3:])
    assert bool(((y[-3:] >= 1) & (y[-3:] <= 8)).all())
    assert symbols[3:].flatten().tolist() == [0] * 6 + [9] * 2 + [0] * 6
    assert y[:-3].eq(0).all()


def test_two_steps_of_natural_gradient():
    steps = natural_gradient.main(natural_gradient.Settings(steps=2, adam_rates=(0.1,)))
    assert steps == {"natural gradient, lr 1": None, "Adam, lr 0.1": None}


def test_natural_gradient_arrives_in_few_steps():
    steps = natural_gradient.main(natural_gradient.Settings(steps=30, adam_rates=(0.3,)))
    assert 5 < steps["natural gradient, lr 1"] < 15
    assert steps["Adam, lr 0.3"] is None


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_read_in_one_scroll(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert re.search(r"@dataclass\(frozen=True\)\nclass Settings", text)
    assert f"python examples/{name}.py" in text
    assert len(text.splitlines()) < (170 if name == "sparsify" else 100)


@pytest.mark.slow
def test_the_module_command_finds_the_examples():
    command = [sys.executable, "-m", "examples.sparsify", "--epochs", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "epochs must be a finite number of at least 1, got 0" in done.stderr
    assert "usage: python -m examples.sparsify [-h]" in done.stderr


def test_the_file_puts_the_repository_on_the_path(monkeypatch):
    """As with an installation that is not editable, where only the folder of the file is on the path."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in (str(ROOT), "")])
    runpy.run_path(str(ROOT / "examples" / "sparsify.py"), run_name="sparsify")
    assert sys.path[0] == str(ROOT)
