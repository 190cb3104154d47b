"""The examples of recurrent networks: what they compute, that they run and resume to the same result."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from examples.common import comparison, training
from examples.papers import copying, pixel_mnist, recurrent

COPYING = [
    "--length",
    "6",
    "--letters",
    "3",
    "--hidden",
    "8",
    "--lstm-hidden",
    "4",
    "--batch-size",
    "4",
    "--threads",
    "1",
]
PIXEL = ["--data", "digits", "--hidden", "8", "--epochs", "1", "--batch-size", "700", "--threads", "1"]


@pytest.fixture(autouse=True)
def restore_torch():
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def settings(*arguments):
    return copying.parse(copying.Settings, [*COPYING, *arguments], "")


def test_a_sequence_holds_letters_blanks_and_a_marker():
    x, y = copying.sequences(settings(), 5)
    assert x.shape == (6 + 2 * 3, 4, 10)
    symbols = x.argmax(-1)
    letters = symbols[:3]
    assert bool(((letters >= 1) & (letters <= 8)).all())
    assert symbols[3:8].eq(0).all()
    assert symbols[8].eq(9).all()  # the output begins one step later
    assert symbols[9:].eq(0).all()
    assert torch.equal(y[-3:], letters)
    assert y[:-3].eq(0).all()
    again, other = copying.sequences(settings(), 5)[0], copying.sequences(settings(), 6)[0]
    assert torch.equal(x, again)
    assert not torch.equal(x, other)


def test_the_baseline_is_the_loss_of_knowing_only_the_time():
    made = settings()
    _, y = copying.sequences(made, 0)
    logits = torch.full((*y.shape, 9), -1e9)
    logits[: 6 + 3, :, 0] = 0
    logits[-3:, :, 1:] = 0
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    assert loss.item() == pytest.approx(made.baseline, rel=1e-6)
    assert copying.Settings(methods="", length=1000).baseline == pytest.approx(10 * math.log(8) / 1020)


def test_partial_derivatives_are_those_of_finite_differences():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0])
    target = torch.randn(5, 5, dtype=torch.float64)

    def loss(w):
        return ((w - target) ** 3).sum()

    loss(weight).backward()
    found = copying.partial_derivatives(weight, weight.grad)
    expected, step = [], 1e-6
    for j in range(5):
        for k in range(j + 1, 5):
            basis = torch.zeros(5, 5, dtype=torch.float64)
            basis[j, k], basis[k, j] = 0.5**0.5, -(0.5**0.5)
            ends = [loss(weight.detach() @ torch.matrix_exp(sign * step * basis)) for sign in (1, -1)]
            expected.append((ends[0] - ends[1]) / (2 * step))
    assert torch.allclose(found, torch.stack(expected), rtol=1e-6)


def test_the_share_of_the_norm_is_that_of_the_largest():
    assert copying.share(np.array([3.0, 0, 0, -4.0]), 0.99) == 0.5
    assert copying.share(np.array([3.0, 0, 0, -4.0]), 0.79) == 0.25
    assert copying.share(np.ones(100), 0.5) == pytest.approx(0.25, abs=0.011)


@pytest.mark.parametrize("method", recurrent.METHODS)
def test_every_network_can_be_trained(method):
    torch.manual_seed(0)
    network = recurrent.Network(method, 3, 6, 4)
    x = torch.randn(5, 2, 3)
    assert network(x).shape == (5, 2, 4)
    assert torch.allclose(network(x)[-1], network.last(x), atol=1e-6)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    kernel, others = network.kernel_parameters(), network.other_parameters()
    assert len(kernel) + len(others) == len(list(network.parameters()))
    assert bool(kernel) is (method not in recurrent.GATED)


def test_parameters_are_counted_once():
    count = {
        method: recurrent.parameters(recurrent.Network(method, 3, 6, 4)) for method in ("dtriv100", "exprnn", "rnn")
    }
    assert count["dtriv100"] == count["exprnn"] == 6 * 5 // 2 + 3 * 6 + 6 + 6 * 4 + 4
    assert count["rnn"] == 6 * 6 + 3 * 6 + 2 * 6 + 6 * 4 + 4


METHODS = "dtriv100,exprnn,scornn,cwy,rgd,srcd-u,srcd-gs,block-gs,block-gs-disjoint,lstm"


@pytest.mark.slow
def test_copying_runs_and_resumes_to_the_same_result(tmp_path, monkeypatch):
    few = ["--iterations", "6", "--descent-iterations", "6"]
    whole = copying.main([*COPYING, *few, "--methods", METHODS, "--out", str(tmp_path / "whole")])

    def killed(path, parts, fixed, progress):
        save(path, parts, fixed, progress)
        if len(progress["history"]) == 3:
            raise KeyboardInterrupt

    save = training.checkpoints.save
    monkeypatch.setattr(training.checkpoints, "save", killed)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    command = [*COPYING, *few, "--out", str(tmp_path / "twice"), "--methods"]
    for method in METHODS.split(","):
        with pytest.raises(KeyboardInterrupt):
            copying.main([*command, method])
    monkeypatch.undo()
    twice = copying.main([*command, METHODS])
    for name, run in whole["runs"].items():
        assert twice["runs"][name]["loss"] == run["loss"]
    assert whole["derivatives"] == twice["derivatives"]
    assert set(whole["derivatives"]) == {"0", "5"}
    written = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert written["runs"].keys() == set(METHODS.split(","))
    assert (tmp_path / "whole" / "copying.png").stat().st_size > 10_000


@pytest.mark.slow
def test_copying_a_short_sequence_is_learnt(tmp_path):
    arguments = ["--length", "4", "--letters", "2", "--hidden", "32", "--batch-size", "32", "--threads", "1"]
    rates = ["--lr", "3e-3", "--kernel-lr", "3e-4", "--iterations", "250", "--methods", "cwy"]
    run = copying.main([*arguments, *rates, "--out", str(tmp_path)])["runs"]["cwy"]
    assert run["loss"][-1] < 0.3 * run["baseline"]


@pytest.mark.slow
def test_pixel_mnist_runs_and_resumes_to_the_same_result(tmp_path):
    methods = ["--methods", "dtriv100,cwy,rgd,lstm"]
    whole = pixel_mnist.main([*PIXEL, *methods, "--every", "1", "--out", str(tmp_path / "whole"), "--permuted"])
    command = [*PIXEL, *methods, "--every", "1", "--out", str(tmp_path / "twice"), "--permuted"]
    stopped = pixel_mnist.main([*command, "--minutes", "1e-9"])  # one step each
    assert all(run["steps"] == 1 for run in stopped["runs"].values())
    twice = pixel_mnist.main(command)
    for name, run in whole["runs"].items():
        assert twice["runs"][name]["loss"] == run["loss"]
        assert twice["runs"][name]["last"] == run["last"]
        assert len(run["epochs"]) == 1
        assert len(run["curve"]) == run["steps"]
    assert (tmp_path / "whole" / "pixel_mnist.png").stat().st_size > 10_000


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "{}", '{"settings": {}}', "not JSON"])
def test_results_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "cwy.json").write_text(content)
    with pytest.raises(ValueError, match=r"cwy.json is not a result of this program"):
        comparison.finished(tmp_path, ["cwy"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_arrays_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "lstm.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"lstm.npz cannot be read"):
        comparison.arrays(tmp_path / "lstm.npz")


def test_what_is_not_finite_ends_the_training(tmp_path):
    def step(i):
        return {"loss": 1.0, "validation": math.inf if i == 2 else 1.0}

    with pytest.raises(ValueError, match=r"the validation of lstm is inf at step 3; give a lower rate"):
        training.train(tmp_path / "state.pt", {}, {}, 6, step, title="lstm")


def test_a_signal_to_end_is_obeyed_after_the_step_and_the_state_saved(tmp_path):
    model, before = nn.Linear(1, 1), signal.getsignal(signal.SIGTERM)

    def step(i):
        with torch.no_grad():
            model.bias.fill_(i)
        if i == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": float(i)}

    arguments = (tmp_path / "state.pt", {"model": model}, {}, 6)
    with pytest.raises(KeyboardInterrupt):
        training.train(*arguments, step, title="")
    assert signal.getsignal(signal.SIGTERM) == before
    with torch.no_grad():
        model.bias.fill_(-1)
    began = []
    progress = training.train(*arguments, lambda i: began.append((i, model.bias.item())) or {"loss": i}, title="")
    assert began == [(4, 3.0), (5, 3.0)]
    assert [each["loss"] for each in progress["history"]] == [0, 1, 2, 3, 4, 5]


def test_pixels_are_permuted_as_published_and_between_0_and_1():
    options = {"data": "digits", "methods": ""}
    plain = pixel_mnist.sequences(pixel_mnist.Settings(**options))["test"][0]
    permuted = pixel_mnist.sequences(pixel_mnist.Settings(**options, permuted=True))["test"][0]
    order = np.random.RandomState(92916).permutation(64)
    assert plain.shape == (64, 360, 1)
    assert plain.min() == 0
    assert plain.max() == 1
    assert torch.equal(permuted, plain[torch.from_numpy(order)])


def test_the_lstm_has_as_many_parameters():
    for hidden in (170, 360, 512):
        lstm = recurrent.parameters(recurrent.Network("lstm", 1, pixel_mnist.same_size(hidden), 10))
        orthogonal = hidden * (hidden - 1) // 2 + 2 * hidden + 10 * (hidden + 1)
        assert abs(lstm / orthogonal - 1) < 0.03


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (copying, ["--methods", "gru,magic"], "magic"),
        (copying, ["--length", "0"], "length must be at least 1"),
        (pixel_mnist, ["--methods", "magic"], "magic"),
        (pixel_mnist, ["--minutes", "-1"], "minutes must be at least"),
    ],
)
def test_bad_options_are_refused(module, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        module.main([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    command = [*COPYING, "--iterations", "1", "--methods", "cwy", "--out", str(tmp_path)]
    copying.main(command)
    with pytest.raises(ValueError, match="other settings: lr"):
        copying.main([*command, "--lr", "1e-3"])


def test_a_folder_holds_runs_of_the_same_settings(tmp_path):
    copying.main([*COPYING, "--iterations", "1", "--methods", "cwy", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="is of other settings \\(length\\)"):
        copying.main([*COPYING, "--length", "9", "--iterations", "1", "--methods", "lstm", "--out", str(tmp_path)])
    assert not (tmp_path / "lstm.pt").exists()
    (tmp_path / "cwy.json").write_text("{")
    with pytest.raises(ValueError, match=r"cwy\.json is not a result"):
        copying.main(["--methods", "", "--out", str(tmp_path)])
