"""The list of sparse runs: each is a command that sparsify.py takes, done once, and compared by what was left."""

import json
import shlex

import pytest

from examples import sparsify
from examples.common.command_line import parse
from examples.papers import sparse_networks
from examples.papers.sparse_runs import RUNS, Run
from tests.cases import cases

# After two epochs on 64 images.
pytestmark = pytest.mark.filterwarnings("ignore:nothing (is left of|was held)")
TINY = "--threads 1 --epochs 2 --plain-epochs 1 --finetune 1 --limit 64 --samples 2 --validation 50"


@cases("run", RUNS)
def test_every_run_is_a_command(run):
    left = ["--left", "9"] if run.left_of else []
    settings = parse(sparsify.Settings, [*shlex.split(run.options), *left], "")
    assert (settings.method == "magnitude") == bool(run.left_of)
    for other in {run.left_of, run.trained_as} - {""}:
        assert list(RUNS).index(other) < list(RUNS.values()).index(run)


@pytest.mark.slow
def test_runs_are_done_once_and_magnitude_leaves_as_many_weights(tmp_path, monkeypatch, capsys):
    runs = {"one-ard": Run(TINY), "one-magnitude": Run(f"{TINY} --method magnitude", "one-ard"), "two": Run("")}
    monkeypatch.setattr(sparse_networks, "RUNS", runs)
    found = sparse_networks.main(["--only", "one", "--out", str(tmp_path)])
    left = [result["sparsity"]["total"]["left"] for result in found.values()]
    assert list(found) == ["one-ard", "one-magnitude"]
    assert left[0] == left[1]
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in found)
    monkeypatch.setattr(sparsify, "main", lambda argv: pytest.fail("done again"))
    assert sparse_networks.main(["--only", "one", "--out", str(tmp_path)]) == found


def test_the_list_has_commands_with_as_many_epochs(tmp_path, capsys):
    sparse_networks.main(["--only", "cifar-mn-group", "--times", "2", "--seeds", "2", "--list", "--out", str(tmp_path)])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    assert [("--seed 0" in line, "--seed 1" in line) for line in shown] == [(True, False), (False, True)]
    assert all("--epochs 60" in line and "--finetune 20" in line for line in shown)
    assert f"--out {tmp_path}/cifar-mn-group-x2-seed1" in shown[1]


@pytest.mark.parametrize("times", [0.01, 3])
@cases("run", RUNS)
def test_every_run_may_be_longer_or_shorter(run, times):
    words = [*shlex.split(run.options), *(["--left", "9"] if run.left_of else [])]
    own = parse(sparsify.Settings, words, "")
    settings = parse(sparsify.Settings, [*words, *sparse_networks._longer(run, times)], "")
    assert settings.epochs == max(2 if run.left_of else 1, round(times * own.epochs))
    assert settings.finetune == round(times * own.finetune)


@pytest.mark.parametrize("options", ["--only [", "--only nothing", "--times 0", "--seeds 0"])
def test_what_cannot_be_done_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        sparse_networks.main(options.split())
    assert "error" in capsys.readouterr().err


def test_magnitude_needs_what_it_is_compared_with(tmp_path):
    with pytest.raises(ValueError, match="as many weights as lenet5-diagonal-ard-long, which has to be run before"):
        sparse_networks.main(["--only", "lenet5-magnitude$", "--out", str(tmp_path)])
    (tmp_path / "lenet5-diagonal-ard-long").mkdir()
    (tmp_path / "lenet5-diagonal-ard-long" / "result.json").write_text(json.dumps({"sparsity": {"total": {"left": 7}}}))
    settings = sparse_networks.Settings(out=str(tmp_path))
    assert sparse_networks._left(RUNS["lenet5-magnitude"], 0, settings) == "7"


@pytest.mark.slow
def test_one_training_is_pruned_in_two_ways(tmp_path, monkeypatch):
    tiny = f"{TINY} --hold 1 --threshold 0.5"
    runs = {"by-weights": Run(tiny), "by-rows": Run(f"{tiny} --groups rows", trained_as="by-weights")}
    monkeypatch.setattr(sparse_networks, "RUNS", runs)
    with pytest.raises(ValueError, match="by-rows prunes the network of by-weights, which has to be run before"):
        sparse_networks.main(["--only", "by-rows", "--out", str(tmp_path)])
    found = sparse_networks.main(["--out", str(tmp_path)])
    assert found["by-weights"]["metrics"]["mean weights"] == found["by-rows"]["metrics"]["mean weights"]
    assert found["by-weights"]["train_seconds"] == found["by-rows"]["train_seconds"]
    assert found["by-weights"]["sparsity"] != found["by-rows"]["sparsity"]
