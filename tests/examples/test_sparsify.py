"""The example: every choice runs, a kill changes nothing, every bad input is refused before anything is done."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import mnvi
from examples import sparsify
from examples.common import (
    bayesian,
    checkpoints,
    command_line,
    data,
    families,
    metrics,
    networks,
    plain,
    plots,
    pruning,
    sparse,
)
from mnvi.sparsity import compact, prune, report
from tests.cases import cases
from tests.laws import assert_refused

ROOT = Path(__file__).parents[2]

# After two epochs on 64 images.
pytestmark = pytest.mark.filterwarnings("ignore:nothing (is left of|was held)")
TINY = ["--threads", "1", "--epochs", "2", "--plain-epochs", "2", "--finetune", "1", "--limit", "64", "--samples", "2"]
FILES = {"checkpoint.pt", "compact.pt", "result.json", "training.png", "weights.png"}


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Caches of this test alone, no data folder, and a few calls instead of a hundred where speed is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MNVI_DATA", raising=False)
    monkeypatch.setattr(metrics.latency, "__defaults__", (2,))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_figures(monkeypatch):
    for name in ("training_figure", "weights_figure"):
        monkeypatch.setattr(plots, name, lambda path, *_: path.touch())


def run(out, *options):
    return sparsify.main([*TINY, "--plain", str(out.parent / "plain"), "--out", str(out), *options])


def timeless(result):
    """The numbers that do not depend on the clock or on the folder."""
    result = {key: value for key, value in result.items() if key not in ("latency_ms", "train_seconds")}
    return result | {"settings": {**result["settings"], "out": None, "plain": None}}


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["states"]


def assert_same(first, second):
    """Equal, bit by bit, nested states of networks and optimisers."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


# --- every choice runs ---

# Each model with each posterior; priors and groups take turns. The first of each model draws its figures.
CHOICES = {
    "mlp-mn": "--model mlp --posterior mn --prior ard --groups weights",
    "lenet5-mn": "--model lenet5 --posterior mn --prior normal --groups columns --threshold 0.1",
    "vgg-mn": "--model vgg --posterior mn --prior group-ard --groups rows --threshold 0.1",
    "mlp-diagonal": "--model mlp --posterior diagonal --prior group-ard --groups both",
    "lenet5-diagonal": "--model lenet5 --posterior diagonal --prior ard --groups weights --threshold 1",
    "vgg-diagonal": "--model vgg --posterior diagonal --prior normal --groups weights --threshold 1",
    "mlp-both": "--model mlp --posterior mn+diagonal --prior normal --groups rows",
    "lenet5-both": "--model lenet5 --posterior mn+diagonal --prior group-ard --groups both --threshold 0.1",
    "vgg-both": "--model vgg --posterior mn+diagonal --prior ard --groups taps --threshold 0.1",
    "mlp-scaled": "--model mlp --posterior scaled --prior hierarchical --groups weights --noise 0.2 --start plain",
    "cnn-scaled": "--model cnn --posterior scaled --prior channel-ard --groups rows --threshold 1 --estimator flipout",
    "vgg-wide": "--model vgg --width 2 --batch-norm --posterior diagonal --prior hierarchical --threshold 0.1",
    "mlp-magnitude": "--model mlp --method magnitude --left 500",
    "cnn-magnitude": "--model cnn --method magnitude --left 3000 --groups rows --batch-norm --augment",
    "vgg-magnitude": "--model vgg --method magnitude --left 20000 --groups rows --finetune 0",
}


@pytest.mark.slow
@cases("options", CHOICES)
def test_every_choice_runs_and_writes_everything(tmp_path, monkeypatch, options):
    if "--posterior mn " not in options:
        for name in ("training_figure", "weights_figure"):
            monkeypatch.setattr(plots, name, lambda path, *_: path.touch())
    result = run(tmp_path / "out", *options.split())
    assert {file.name for file in (tmp_path / "out").iterdir()} - {".lock"} == FILES
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    settings = result["settings"]
    assert len(result["history"]) == 2 + ("--method" in options) * settings["finetune"]
    assert all(math.isfinite(value) for row in result["metrics"].values() for value in row.values())
    assert result["compacted_equals_pruned_within"] < 1e-4
    digits = data.load("digits")
    small = networks.load_compact(tmp_path / "out" / "compact.pt")
    probs = metrics.probabilities(small, digits.test_x)
    assert metrics.evaluate(probs, digits.test_y) == list(result["metrics"].values())[-1]
    assert sum(p.numel() for p in small.parameters()) == result["parameters"]["compacted"]
    if "--method" in options:
        wanted, left = settings["left"], result["sparsity"]
        count = left["total"]["left"] if "rows" not in options else left["compact"]["weights"]
        assert 0.8 * wanted < count <= wanted
    if "--posterior mn " in options:
        for name, width in (("training.png", 1800), ("weights.png", 1950)):
            with Image.open(tmp_path / "out" / name) as image:
                assert image.size[0] == width


@pytest.mark.slow
def test_training_sparsifies(tmp_path, no_figures):
    options = ["--posterior", "diagonal", "--epochs", "12", "--limit", "1300", "--tolerance", "2"]
    result = run(tmp_path, *options)
    assert result["metrics"]["pruned"]["accuracy"] > 90
    assert result["sparsity"]["compression"] > 4
    assert result["parameters"]["compacted"] < result["parameters"]["plain"]
    assert result["history"][-1]["neg_elbo"] < result["history"][0]["neg_elbo"] / 4


@pytest.mark.slow
def test_what_is_held_at_zero_stays_there(tmp_path, no_figures):
    options = ["--epochs", "4", "--threshold", "0.001"]  # which itself prunes next to nothing
    held = run(tmp_path / "held", *options, "--hold", "0.5", "--hold-tolerance", "50")
    free = run(tmp_path / "free", *options, "--hold", "1")
    assert held["history"][:2] == free["history"][:2]
    left = [epoch["left"] for epoch in held["history"]]
    assert left[2] == left[3] < 0.9 * left[1]
    assert held["sparsity"]["compression"] > 1.1 > free["sparsity"]["compression"]


# --- a kill changes nothing ---

RESUMED = ["--epochs", "3", "--prior", "group-ard", "--posterior", "mn+diagonal"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.latency, "__defaults__", (2,))
        for name in ("training_figure", "weights_figure"):
            patch.setattr(plots, name, lambda path, *_: path.touch())
        return folder, run(folder, *RESUMED)


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_result(tmp_path, no_figures, uninterrupted):
    folders = ["--plain", str(tmp_path / "plain"), "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "examples" / "sparsify.py"), *TINY, *folders, *RESUMED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    folder, expected = uninterrupted
    assert timeless(run(tmp_path, *RESUMED)) == timeless(expected)
    assert_same(weights(tmp_path), weights(folder))


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 3, 4, 5])  # of 6; the last two are after what can be pruned is held at zero
def test_an_interrupt_within_an_epoch_continues_to_the_same_result(
    tmp_path, monkeypatch, no_figures, uninterrupted, calls
):
    steps = iter(range(calls))
    forward = mnvi.ELBO.__call__

    def interrupted(self, *args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(mnvi.ELBO, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *RESUMED)
    folder, expected = uninterrupted
    assert timeless(run(tmp_path, *RESUMED)) == timeless(expected)
    assert_same(weights(tmp_path), weights(folder))


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    checkpoints.write_json(tmp_path / "result.json", {"whole": True})
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(tmp_path / "result.json", fail)
    assert json.loads((tmp_path / "result.json").read_text()) == {"whole": True}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path, error):
    def fail(path):
        path.write_text("half")
        raise error

    checkpoints.write_json(tmp_path / "result.json", {"whole": True})
    with pytest.raises(OSError, match=r"cannot write .*result\.json: .*nothing was changed there"):
        checkpoints.write(tmp_path / "result.json", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text()) == {"whole": True}


HOLDER = """
import sys, time
from examples.common.checkpoints import alone
with alone(sys.argv[1]):
    print("has it", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds):
    """Another process that has the folder for so long."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline().strip() == b"has it"
    return process


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, capsys):
    process = holder(tmp_path, 60)
    with pytest.raises(OSError, match="another process works in the folder"), checkpoints.alone(tmp_path):
        pass
    process.kill()  # without a word: no lock stays behind
    process.wait()
    with checkpoints.alone(tmp_path) as folder:
        assert folder == tmp_path
    process = holder(tmp_path, 1)
    with checkpoints.alone(tmp_path, wait=True):
        assert process.wait() == 0
    assert "waiting for another process" in capsys.readouterr().out


@pytest.mark.slow
def test_the_plain_network_is_trained_once_for_all_runs(tmp_path, monkeypatch, no_figures):
    first = run(tmp_path / "first", "--threshold", "1")
    train = plain.train_plain
    trained = []

    def counted(path, *args, **options):
        trained.append(path.parent.name if path.exists() else "new")
        return train(path, *args, **options)

    monkeypatch.setattr(sparse, "train_plain", counted)
    second = run(tmp_path / "second", "--threshold", "1", "--posterior", "diagonal", "--finetune", "0")
    assert first["metrics"]["plain network"] == second["metrics"]["plain network"]
    assert len(trained) == 1
    assert trained != ["new"]
    run(tmp_path / "third", "--threshold", "1", "--finetune", "0", "--noise", "0.1")  # another network
    assert trained[1:] == ["new"]
    assert len(list((tmp_path / "plain").iterdir())) == 2


@pytest.mark.slow
def test_a_finished_run_is_pruned_more_without_training(tmp_path, monkeypatch, no_figures):
    first = run(tmp_path, "--hold", "1", "--threshold", "0.5")
    monkeypatch.setattr(mnvi.ELBO, "__call__", None)  # no training step can be made
    second = run(tmp_path, "--hold", "1", "--threshold", "20")
    for name in ("plain network", "mean weights", "sampled", "tempered"):
        assert first["metrics"][name] == second["metrics"][name]
    assert first["sparsity"]["compression"] < second["sparsity"]["compression"]


@pytest.mark.slow
def test_what_is_only_pruned_at_the_end_is_pruned_by_other_groups_without_training(tmp_path, monkeypatch, no_figures):
    run(tmp_path, "--hold", "1", "--threshold", "0.5")
    monkeypatch.setattr(mnvi.ELBO, "__call__", None)
    second = run(tmp_path, "--hold", "1", "--threshold", "20", "--groups", "rows")
    assert second["sparsity"]["total"]["rows_left"] < second["sparsity"]["total"]["rows"]
    with pytest.raises(ValueError, match=r"hold 1.0 \(now 0.5\)"):
        run(tmp_path, "--hold", "0.5", "--groups", "rows")


@pytest.mark.slow
def test_units_are_held_to_numbers_and_pruned(tmp_path, no_figures):
    result = run(tmp_path, "--units", "7,5", "--groups", "both", "--tolerance", "0", "--finetune", "0")
    layers = result["sparsity"]["layers"]
    assert [layer["rows_left"] for layer in layers[:2]] <= [7, 5]
    held = [value for name, value in weights(tmp_path)["model"].items() if name.endswith("weight")]
    assert [int((each != 0).any(1).sum()) for each in held] == [7, 5, 10]


def test_the_strongest_units_stay():
    model = mnvi.Sequential(mnvi.MNLinear(3, 4), mnvi.MNLinear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, -4.0, 0.5, 2.0])[:, None].expand(4, 3))
    before = model[1].weight.clone()
    pruning.narrow_(model, [2])
    assert model[0].weight[:, 0].tolist() == [0, -4.0, 0, 2.0]
    assert torch.equal(model[1].weight, before)


@pytest.mark.slow
def test_another_seed_is_another_result(tmp_path, no_figures):
    results = [run(tmp_path / seed, "--seed", seed, "--threshold", "1") for seed in "01"]
    assert results[0]["history"] != results[1]["history"]


@pytest.mark.slow
def test_restart_begins_anew(tmp_path, no_figures):
    first = run(tmp_path, "--threshold", "1")
    with pytest.raises(ValueError, match="seed"):
        run(tmp_path, "--threshold", "1", "--seed", "1")
    again = run(tmp_path, "--threshold", "1", "--restart", "--seed", "1")
    assert first["history"] != again["history"]


# --- bad input ---

BAD_OPTIONS = {
    "epochs": (["--epochs", "0"], "epochs must be a finite number of at least 1, got 0"),
    "lr": (["--lr", "-0.1"], "lr must be"),
    "lr-nan": (["--lr", "nan"], "lr must be"),
    "warmup": (["--warmup", "1.5"], "warmup must be a finite number from 0 to 1, got 1.5"),
    "decay": (["--decay", "-1"], "decay must be"),
    "batch": (["--batch-size", "0"], "batch_size must be"),
    "threshold": (["--threshold", "inf"], "threshold must be"),
    "hold": (["--hold", "2"], "hold must be a finite number from 0 to 1, got 2.0"),
    "seed": (["--seed", "-1"], "seed must be"),
    "limit": (["--limit", "0"], "limit must be"),
    "samples": (["--samples", "0"], "samples must be"),
    "data": (["--data", "imagenet"], "invalid choice: 'imagenet'"),
    "model": (["--model", "resnet"], "invalid choice: 'resnet'"),
    "posterior": (["--posterior", "full"], "invalid choice: 'full'"),
    "kind": (["--epochs", "many"], "invalid int value: 'many'"),
    "unknown": (["--epoch", "2"], "unrecognized arguments: --epoch"),
    "left": (["--left", "100"], "--left belongs to --method magnitude"),
    "no-left": (["--method", "magnitude"], "--left belongs to --method magnitude, which needs it"),
    "left-zero": (["--method", "magnitude", "--left", "0"], "left must be a finite number of at least 1, got 0"),
    "width": (["--width", "0"], "width must be a finite number of at least 1, got 0"),
    "noise": (["--noise", "-1"], "noise must be"),
    "kl-weight": (["--kl-weight", "0"], "kl_weight must be"),
    "units": (["--units", "5,x"], "units must be whole numbers >= 1 with commas, such as 5,10,16, got '5,x'"),
    "units-zero": (["--units", "5,0"], "units must be whole numbers >= 1"),
    "device": (["--device", "nowhere"], "device 'nowhere' cannot be used"),
}


@cases("options, message", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, capsys, options, message):
    assert_refused(run, options, message, tmp_path / "out", capsys)


def test_an_unwritable_folder_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(mnvi.ELBO, "__call__", None)
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file/out"):
        run(tmp_path / "file" / "out")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file"):
        run(tmp_path / "file")


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, monkeypatch, no_figures):
    run(tmp_path, "--threshold", "1")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(sparse, "plain_network", None)  # before anything is trained
    with pytest.raises(ValueError, match=r"model mlp \(now lenet5\), prior ard \(now normal\).*--restart"):
        run(tmp_path, "--model", "lenet5", "--prior", "normal")
    with pytest.raises(ValueError, match=r"posterior mn \(now scaled\), width 1 \(now 2\).*--restart"):
        run(tmp_path, "--width", "2", "--posterior", "scaled")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    path, settings = tmp_path / "checkpoint.pt", {"model": "mlp"}
    checkpoints.save(path, {"model": nn.Linear(2, 3)}, settings, {})
    with pytest.raises(ValueError, match=r"another architecture: (?s:.*)size mismatch"):
        checkpoints.resume(path, {"model": nn.Linear(3, 3)}, settings)
    with pytest.raises(ValueError, match="another architecture"):
        checkpoints.resume(path, {"other": nn.Linear(2, 3)}, settings)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a file"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_units_of_another_network_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse, "train_plain", None)
    with pytest.raises(ValueError, match=r"units must be 2 numbers, one for each hidden layer of mlp, got \[5\]"):
        run(tmp_path / "out", "--units", "5")


def test_magnitude_cannot_leave_more_weights_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse, "train_plain", None)
    with pytest.raises(ValueError, match="left must be less than the 50,200 weights of mlp, got 99,999"):
        run(tmp_path / "out", "--method", "magnitude", "--left", "99999")


@pytest.mark.parametrize(("hold", "epochs", "first"), [(0.5, 1, 1), (0.5, 2, 1), (0.5, 100, 50), (0, 9, 0), (1, 9, 9)])
def test_nothing_is_held_before_the_first_epoch_unless_from_the_start(hold, epochs, first):
    assert bayesian.hold_epoch(sparsify.Settings(hold=hold, epochs=epochs)) == first


def test_too_many_held_out_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holding out 1437 of 1437 training images"):
        run(tmp_path / "out", "--validation", "1437")
    assert not (tmp_path / "out").exists()


# --- data ---


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return {"bytes": file.getvalue(), "path": None}


def write_images(folder, *, image="image", label="label", shape=(28, 28), kind="PNG", counts=(40, 20), top=10):
    """A data set of random images as parquet files; the pixels by part."""
    random, pixels = np.random.RandomState(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "test"), counts, strict=True):
        pixels[part] = random.randint(0, 256, (count, *shape), dtype=np.uint8)
        columns = {image: [encoded(x, kind) for x in pixels[part]], label: np.arange(count) % top}
        pq.write_table(pa.table(columns), folder / f"{part}-00000-of-00001.parquet")
    return pixels


@pytest.fixture
def no_reading(monkeypatch):
    """Calls make the datasets library useless, so that only the cache can answer."""
    import datasets

    def fail(*_, **__):
        raise OSError("no network")

    return lambda: monkeypatch.setattr(datasets, "load_dataset", fail)


def test_digits_are_normalised_and_always_split_the_same_way():
    first, second = data.load("digits"), data.load("digits")
    assert first.train_x.shape == (1437, 1, 8, 8)
    assert first.test_x.shape == (360, 1, 8, 8)
    assert first.shape == (1, 8, 8)
    assert torch.equal(first.test_x, second.test_x)
    assert first.train_x.mean().abs() < 1e-5
    assert (first.train_x.std() - 1).abs() < 1e-5
    assert first.train_y.bincount(minlength=10).min() > 100


SETS = {
    "mnist": ("mnist", {}, "MNIST"),
    "fashion": ("fashion_mnist", {}, "Fashion-MNIST"),
    "cifar": ("cifar10", {"image": "img", "shape": (32, 32, 3)}, "CIFAR-10"),
    "cifar-jpeg": ("cifar10", {"image": "img", "shape": (32, 32, 3), "kind": "JPEG"}, "CIFAR-10 (JPEG)"),
}


@cases("name, options, title", SETS)
def test_a_data_folder_is_read_pixel_by_pixel(tmp_path, monkeypatch, name, options, title):
    pixels = write_images(tmp_path / name, **options)
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    loaded = data.load(name)
    assert loaded.title == title
    assert loaded.train_y.tolist() == [i % 10 for i in range(40)]
    if "JPEG" not in title:
        flat = {part: x.reshape(len(x), 28 if x.ndim == 3 else 32, -1, *x.shape[3:]) for part, x in pixels.items()}
        train, test = (torch.from_numpy(flat[part]).double() for part in ("train", "test"))
        train, test = (x[:, None] if x.dim() == 3 else x.movedim(-1, 1) for x in (train, test))
        std, mean = torch.std_mean(train, (0, 2, 3), keepdim=True)
        torch.testing.assert_close(loaded.test_x.double(), (test - mean) / std, rtol=0, atol=1e-5)


def test_decoded_images_are_cached_until_a_file_changes(tmp_path, monkeypatch, no_reading):
    write_images(tmp_path / "mnist")
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    first = data.load("mnist")
    no_reading()
    assert torch.equal(data.load("mnist").train_x, first.train_x)
    write_images(tmp_path / "mnist", counts=(41, 20))
    with pytest.raises(ValueError, match=r"cannot read .*mnist: no network"):
        data.load("mnist")


def test_a_cache_that_cannot_be_written_or_read_is_done_without(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "mnist")
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    first = data.load("mnist")
    [cached] = (tmp_path / "cache" / "mnvi").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    assert torch.equal(data.load("mnist").train_x, first.train_x)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.equal(data.load("mnist").train_x, first.train_x)
    assert "not kept for the next run" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_runs_on_a_data_folder(tmp_path, monkeypatch, no_figures):
    write_images(tmp_path / "mnist")
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    result = run(tmp_path / "out", "--data", "mnist", "--validation", "10", "--threshold", "1")
    assert result["data"] == {"title": "MNIST", "train": 30, "test": 20, "shape": [1, 28, 28]}
    assert result["settings"]["batch_size"] == 128


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"the folder .*mnist does not exist; unset MNVI_DATA to download ylecun"
    ):
        run(tmp_path / "out", "--data", "mnist")
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_points_to_the_variable(no_reading):
    no_reading()
    with pytest.raises(ConnectionError, match=r"zalando-datasets/fashion_mnist .*no network.*set MNVI_DATA"):
        data.load("fashion_mnist")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="digits or one of mnist, fashion_mnist, cifar10, got 'svhn'"):
        data.load("svhn")


BAD_SETS = {
    "image": ({"image": "pixels"}, r"mnist \(train\) has the columns pixels, label, expected image and label"),
    "label": ({"label": "class"}, r"mnist \(train\) has the columns image, class, expected image and label"),
    "range": ({"top": 11}, r"column label of .* must hold integers from 0 to 9"),
}


@cases("options, message", BAD_SETS)
def test_other_columns_are_named(tmp_path, monkeypatch, options, message):
    write_images(tmp_path / "mnist", **options)
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", "--data", "mnist")
    assert not (tmp_path / "out").exists()


def test_images_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    write_images(tmp_path / "mnist")
    table = {"image": [1.0, 2.0], "label": [0, 1]}
    pq.write_table(pa.table(table), tmp_path / "mnist" / "train-00000-of-00001.parquet")
    pq.write_table(pa.table(table), tmp_path / "mnist" / "test-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=r"column image of .* must hold encoded images of one size; the type is double"
    ):
        data.load("mnist")
    sizes = [encoded(np.zeros((n, n), np.uint8)) for n in (8, 9)]
    for part in ("train", "test"):
        table = pa.table({"image": sizes, "label": [0, 1]})
        pq.write_table(table, tmp_path / "mnist" / f"{part}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="must hold encoded images of one size"):
        data.load("mnist")


def test_half_a_file_is_refused_with_its_place(tmp_path, monkeypatch):
    """An image that does not decode, and a download that was interrupted."""
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    write_images(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-00000-of-00001.parquet"
    images = [encoded(np.zeros((28, 28), np.uint8), "JPEG") for _ in range(3)]
    images[1]["bytes"] = images[1]["bytes"][:-40]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), path)
    with pytest.raises(ValueError, match=r"column image of .*mnist \(train\) must hold encoded .*: row 1: Truncated"):
        data.load("mnist")
    write_images(tmp_path / "mnist")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"the datasets library cannot read .*mnist"):
        data.load("mnist")


def test_a_folder_without_both_parts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    write_images(tmp_path / "mnist")
    (tmp_path / "mnist" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="has the splits train, expected train and test"):
        data.load("mnist")
    (tmp_path / "fashion_mnist").mkdir()
    with pytest.raises(ValueError, match=r"the datasets library cannot read .*fashion_mnist"):
        data.load("fashion_mnist")


# --- the parts ---

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar": (3, 32, 32)}


@cases("shape", SHAPES)
@pytest.mark.parametrize("name", ["mlp", "lenet5", "vgg"])
def test_networks_take_every_image(name, shape):
    plain = networks.build(name, shape, 10)
    bayesian = networks.build(name, shape, 10, mnvi.MNLinear, mnvi.MNConv2d).eval()
    missing, unexpected = bayesian.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("posterior" in key for key in missing)
    x = torch.randn(2, *shape)
    assert plain(x).shape == (2, 10)
    assert torch.equal(plain(x), bayesian(x))
    assert plain(x).std() > 0.1  # thirteen layers, and the signal is still there


def test_wide_layers_have_blocks():
    for size, kind in ((1024, "DenseFactor"), (6272, "BlockDiagonalFactor")):
        factor = families.Wide().build(size)
        assert type(factor).__name__ == kind
        assert sum(p.numel() for p in factor.parameters()) == families.Wide().num_parameters(size) < 1.3e6


def test_the_published_sizes():
    sizes = {name: report(networks.build(name, SHAPES["mnist"], 10)).weights for name in ("mlp", "lenet5")}
    assert sizes == {"mlp": 784 * 300 + 300 * 100 + 1000, "lenet5": 430_500}
    assert report(networks.build("vgg", SHAPES["cifar"], 10)).weights == 62_270


@pytest.mark.parametrize("name", ["mlp", "lenet5", "vgg"])
def test_a_compacted_network_comes_back_from_its_file(tmp_path, name):
    model = networks.build(name, SHAPES["digits"], 10, mnvi.MNLinear, mnvi.MNConv2d).eval()
    prune(model, fraction=0.4, groups="columns")
    small = compact(model)
    networks.save_compact(small, tmp_path / "compact.pt")
    again = networks.load_compact(tmp_path / "compact.pt")
    x = torch.randn(3, *SHAPES["digits"])
    assert repr(again) == repr(small)
    assert torch.equal(again(x), small(x))
    assert not again.training


def test_calibration_error_against_a_loop_over_bins():
    probs, y = torch.randn(500, 4, dtype=torch.float64).mul(2).softmax(1), torch.randint(4, (500,))
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = [i for i in range(500) if low < probs[i].max() <= low + 1 / 15]
        right = sum(int(probs[i].argmax() == y[i]) for i in inside)
        expected += abs(right - sum(float(probs[i].max()) for i in inside)) / 500
    assert metrics.calibration_error(probs, y) == pytest.approx(100 * expected)


def test_metrics_of_certain_predictions():
    probs, y = torch.eye(3), torch.tensor([0, 1, 1])
    result = metrics.evaluate(probs, y)
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["ece"] == pytest.approx(100 / 3)
    assert result["nll"] == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 3)


@pytest.fixture
def trained():
    """A network with means and scales of every size, so that every threshold matters."""
    model = networks.build("lenet5", SHAPES["digits"], 10, mnvi.MNLinear, mnvi.MNConv2d).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter).exp())
    return model


@pytest.mark.parametrize("groups", ["weights", "rows", "columns"])
def test_weights_left_is_what_pruning_leaves(trained, groups):
    counted = pruning.weights_left(trained)[groups]
    for k in range(0, len(pruning.THRESHOLDS), 7):
        assert counted[k] == report(pruning.pruned(trained, groups, pruning.THRESHOLDS[k])).left
    assert counted == sorted(counted, reverse=True)


def test_pruning_rows_keeps_the_classes_and_the_model(trained):
    sparse = pruning.pruned(trained, "both", 1e6)
    assert report(sparse).layers[0].left == 0
    assert report(pruning.pruned(trained, "rows", 1e6)).layers[-1].rows_left == 10
    assert report(trained).left == report(trained).weights


@pytest.mark.slow
def test_finetuning_lowers_the_loss_and_keeps_zeros(tmp_path, trained):
    digits, settings = data.load("digits"), sparsify.Settings(finetune=2)
    small = compact(prune(trained, fraction=0.5))
    before = metrics.evaluate(metrics.probabilities(small, digits.train_x), digits.train_y)
    zeros = [weight == 0 for weight in small.parameters() if weight.ndim > 1]
    (tmp_path / "finetune-7.pt").write_text("of a killed run that pruned more")
    tuned = sparse.finetuned(small, digits, settings, tmp_path)
    assert metrics.evaluate(metrics.probabilities(tuned, digits.train_x), digits.train_y)["nll"] < before["nll"] / 2
    for zero, weight in zip(zeros, (each for each in tuned.parameters() if each.ndim > 1), strict=True):
        assert zero.any()
        assert torch.equal(zero, weight == 0)
    assert not tuned.training
    assert not list(tmp_path.iterdir())


def test_what_held_out_images_allow_is_pruned(trained):
    x, y = torch.randn(50, 1, 8, 8), torch.randint(10, (50,))
    y[:40] = trained(x).argmax(1)[:40]
    for groups in pruning.GROUPS:
        sparse = pruning.pruned(trained, groups, pruning.search(trained, groups, (x, y), 5.0))
        before, after = (metrics.accuracy(metrics.probabilities(each, x), y) for each in (trained, sparse))
        assert after >= before - 5.0 - 1e-9
        assert report(sparse).left < report(trained).left


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.parse(sparsify.Settings, ["--help"], "Sparsify")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for name in sparsify.Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
