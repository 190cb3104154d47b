"""A fit that was killed goes on to the same bits, whenever it was; and only where everything is as it was."""

import copy
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import mnvi
from mnvi._progress import Progress
from mnvi.likelihoods import Gaussian
from tests.cases import cases
from tests.test_fit import LABELS, REAL, Noisy, X, network, same

pytestmark = pytest.mark.filterwarnings(
    "ignore:the posterior has not settled", "ignore:.* is of a fit that began with other weights"
)
SEARCH = {"epochs": (2, 3), "kl_weight": (1.0, 0.1), "batch_size": 8}  # trials of 5 and 10 steps, then 15 or 10


class Killed(Exception):
    """As a signal would."""


def dropout(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mnvi.Sequential(mnvi.MNLinear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.ReLU(), mnvi.MNLinear(6, 2))


@pytest.fixture
def killed_at(monkeypatch):
    """A function that has the next fit die at a step of it, or of its judging (0 steps)."""
    monkeypatch.setattr("mnvi._fitting.checkpoint.EVERY", 0.0)
    advance = Progress.advance

    def at(call):
        calls = [0]

        def counting(self, count):
            calls[0] += 1
            if calls[0] == call:
                raise Killed
            advance(self, count)

        monkeypatch.setattr(Progress, "advance", counting)

    yield at
    monkeypatch.setattr(Progress, "advance", advance)


def one(seed=0, **options):
    model = dropout(seed)
    return [model], mnvi.fit(model, (X, LABELS), **{**SEARCH, **options})


def several(seed=0, **options):
    models = [dropout(seed + k) for k in range(2)]
    return models, mnvi.fit(models, (X, LABELS), **{**SEARCH, **options})


def augmented(seed=0, **options):
    model = network(outputs=1, seed=seed)
    held_out = {"kl_weight": 0.3, "epochs": 4, "validation": (X[:9], REAL[:9])}  # calibrates after the training
    return [model], mnvi.fit(model, Noisy(), "gaussian", batch_size=8, **held_out, **options)


@cases("fitted", {"one": one, "several": several})
@pytest.mark.parametrize("call", [3, 6, 7, 8, 10, 13, 19, 22, 26])
def test_a_killed_fit_goes_on_to_the_same_bits(fitted, call, tmp_path, killed_at):
    expected, history = fitted()
    path = tmp_path / "new folder" / "fit.pt"
    killed_at(call)
    with pytest.raises(Killed):
        fitted(checkpoint=path)
    killed_at(None)
    torch.rand(call)
    models, resumed = fitted(seed=50, checkpoint=path)  # whose own initial weights do not matter
    assert all(map(same, expected, models))
    assert same(history, resumed)
    assert os.listdir(path.parent) == ["fit.pt"]


def test_trials_one_by_one_resume_as_well(tmp_path, killed_at, monkeypatch):
    monkeypatch.setattr("mnvi._fitting.job.SMALL", 0)
    test_a_killed_fit_goes_on_to_the_same_bits(one, 9, tmp_path, killed_at)


@pytest.mark.parametrize("call", [2, 12, 21])
def test_augmentation_and_calibration_resume_as_well(call, tmp_path, killed_at):
    expected, history = augmented()
    killed_at(call)
    with pytest.raises(Killed):
        augmented(checkpoint=tmp_path / "fit.pt")
    killed_at(None)
    models, resumed = augmented(checkpoint=tmp_path / "fit.pt")
    assert same(expected[0], models[0])
    assert same(history, resumed)


class Centred(mnvi.Module):
    """Its running mean is no part of the state_dict, and neither is a buffer that the first call makes."""

    def __init__(self, seed=0, first=None):
        super().__init__()
        self.net = network(seed=seed)
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("first", first, persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
            self.first = x.mean(0) if self.first is None else self.first
        return self.net(x - self.mean + (0 if self.first is None else self.first))


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("call", [3, 10])
def test_buffers_that_are_not_saved_with_the_model_resume_as_well(call, same_process, tmp_path, killed_at):
    def fitted(model, **options):
        return mnvi.fit(model, (X, LABELS), epochs=4, kl_weight=0.1, batch_size=8, **options)

    first = torch.ones(3) if same_process else None
    expected, killed, resumed = Centred(first=first), Centred(first=first), Centred(seed=3, first=first)
    history = fitted(expected)
    killed_at(call)
    with pytest.raises(Killed):
        fitted(killed, checkpoint=tmp_path / "fit.pt")
    killed_at(None)
    model = killed if same_process else resumed
    again = fitted(model, checkpoint=tmp_path / "fit.pt")
    assert same(history, again)
    assert same(expected, model)
    assert model.mean.equal(expected.mean)
    assert model.first.equal(expected.first)


def test_a_fit_may_be_killed_again_and_again(tmp_path, killed_at):
    expected, history = one()
    for _ in range(20):
        killed_at(7)
        try:
            models, resumed = one(checkpoint=tmp_path / "fit.pt")
            break
        except Killed:
            continue
    assert same(expected[0], models[0])
    assert same(history, resumed)


@cases("fitted", {"one": one, "several": several, "augmented": augmented})
def test_a_fit_that_had_ended_returns_at_once(fitted, tmp_path, monkeypatch):
    expected, history = fitted(checkpoint=tmp_path / "fit.pt")
    monkeypatch.setattr("mnvi._fitting.trial.Trial.run_epoch", None)
    monkeypatch.setattr("mnvi._fitting.checkpoint.torch.save", None)  # its folder may be one to read only
    models, again = fitted(seed=3, checkpoint=tmp_path / "fit.pt")
    assert all(map(same, expected, models))
    assert same(history, again)
    assert not any(model.training for model in models)


SCRIPT = """
import os, signal, sys
import mnvi._fitting.checkpoint
from mnvi._progress import Progress
from tests._fitting.test_resume import one

mnvi._fitting.checkpoint.EVERY = 0.0
advance = Progress.advance
steps = [0]

def count(self, number):
    steps[0] += number
    if steps[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, number)

Progress.advance = count
one(checkpoint=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 18])
def test_a_process_that_was_killed_leaves_what_a_new_one_goes_on_from(step, tmp_path):
    path = tmp_path / "fit.pt"
    root = Path(mnvi.__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT, str(path), str(step)]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert path.exists()
    expected, history = one()
    models, resumed = one(checkpoint=path)
    assert same(expected[0], models[0])
    assert same(history, resumed)
    assert len(history.search) == 4


# What it refuses ------------------------------------------------------------------------------------------------------


class Activated(nn.Module):
    """Its activation is no module, and its weights may be frozen or have another prior."""

    def __init__(self, activation=torch.tanh, prior=None, frozen=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = mnvi.MNLinear(3, 5, prior=prior), mnvi.MNLinear(5, 2)
        self.first.weight.requires_grad_(not frozen)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


HIDDEN = {  # what makes another fit and is seen in no shape
    "activation": {"activation": torch.relu},
    "a prior's scale": {"prior": mnvi.priors.Normal(0.3)},
    "a frozen weight": {"frozen": True},
}


@cases("options", HIDDEN)
def test_what_no_shape_tells_makes_another_fit_too(options, tmp_path):
    fixed = {"epochs": 2, "kl_weight": 0.1, "checkpoint": tmp_path / "fit.pt"}
    mnvi.fit(Activated(prior=mnvi.priors.Normal(1.0)), (X, LABELS), **fixed)
    with pytest.raises(ValueError, match="another fit: models 1 of"):
        mnvi.fit(Activated(**{"prior": mnvi.priors.Normal(1.0), **options}), (X, LABELS), **fixed)


@cases("pair", {
    "ignored label": (mnvi.likelihoods.Categorical(ignore_index=7), mnvi.likelihoods.Categorical()),
    "moments": [mnvi.likelihoods.Standardized(Gaussian(), torch.zeros(1), torch.full((1,), c)) for c in (1.0, 2.0)],
})  # fmt: skip
def test_so_does_what_a_likelihood_knows(pair, tmp_path):
    real = isinstance(pair[0], mnvi.likelihoods.Standardized)
    fixed = {"epochs": 2, "kl_weight": 0.1, "checkpoint": tmp_path / "fit.pt"}
    for likelihood in pair:
        with pytest.raises(ValueError, match="another fit: ") if likelihood is pair[1] else nullcontext():
            mnvi.fit(network(outputs=1 if real else 2), (X, REAL if real else LABELS), likelihood, **fixed)


CHANGED = X.clone()
CHANGED[5, 1] += 1e-3
OTHER = {  # a call, and what it differs in
    "lr": ({"lr": 0.02}, r"lr 0\.01 \(now 0\.02\)"),
    "epochs": ({"epochs": 3}, r"epochs \[2\] \(now \[3\]\)"),
    "kl_weight": ({"kl_weight": 1.0}, r"kl_weight \[0\.1\] \(now \[1\.0\]\)"),
    "batch_size": ({"batch_size": 9}, "batch_size 8"),
    "draws": ({"draws": 2}, "draws 1"),
    "warmup": ({"warmup": 0.1}, "warmup 0.5"),
    "seed": ({"seed": 1}, "seed 0"),
    "calibrate": ({"calibrate": False}, "calibrate True"),
    "validation": ({"validation": (X, LABELS)}, "validation 0.1"),
    "values of the data": ({"data": (CHANGED, LABELS)}, "data .*checksum"),
    "fewer data": ({"data": (X[1:], LABELS[1:])}, r"\(36, 3\)"),
    "a Dataset": ({"data": TensorDataset(X, LABELS[:, None], LABELS)}, "data "),
    "architecture": ({"model": mnvi.Sequential(mnvi.MNLinear(3, 4), nn.Tanh(), mnvi.MNLinear(4, 2))}, "models 1 of"),
    "several models": ({"model": [network(), network()]}, r"models 1 of .* \(now 2 of"),
    "likelihood": ({"likelihood": mnvi.likelihoods.Categorical(1)}, r"likelihood Categorical\(dim=-1\)"),
}
OTHER.pop("a Dataset")


@cases("row", OTHER)
def test_the_checkpoint_of_another_fit_is_refused_and_kept(row, tmp_path):
    options, message = row
    base = {"model": network(), "data": (X, LABELS), "epochs": 2, "kl_weight": 0.1, "batch_size": 8}
    base["checkpoint"] = path = tmp_path / "fit.pt"
    mnvi.fit(**base)
    before = path.read_bytes()
    model = options.get("model", network(seed=7))
    weights = [p.clone() for p in (model if isinstance(model, nn.Module) else model[0]).parameters()]
    with pytest.raises(ValueError, match=f"is the checkpoint of another fit: .*{message}.*another path, or delete"):
        mnvi.fit(**{**base, "model": model, **options})
    assert path.read_bytes() == before
    left = (model if isinstance(model, nn.Module) else model[0]).parameters()
    assert all(a.equal(b) for a, b in zip(weights, left, strict=True))


def chooses(kind):
    """What it does with a set of texts, whose order is another in every process."""

    def chosen(x):
        return torch.relu(x) if kind in {"relu", "silu", "gelu", "elu", "selu"} else x

    return chosen


FINGERPRINT = """
from mnvi._fitting import fingerprint
from mnvi._fitting.models import Objective
from tests._fitting.test_resume import Activated, chooses
import mnvi

print(fingerprint.of_models([Objective(Activated(chooses("relu")), mnvi.likelihoods.Categorical())], set()))
"""


def test_the_fingerprint_is_the_same_in_every_process():
    root, found = Path(mnvi.__file__).parents[1], set()
    for seed in "12":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", FINGERPRINT]
        found.add(subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize("learn", [False, True])
def test_scales_that_a_prior_fits_make_no_other_fit(learn, tmp_path):
    def fitted(model):
        mnvi.fit(model, (X, LABELS), epochs=2, kl_weight=0.1, checkpoint=tmp_path / "fit.pt")

    model = Activated(prior=mnvi.priors.GroupARD(learn=learn))
    fitted(model)
    fitted(model)
    assert model.first.prior.log_row_precision.ne(0).any()
    with pytest.raises(ValueError, match="another fit: models 1 of"):
        fitted(Activated(prior=mnvi.priors.GroupARD(rows=False, learn=learn)))


class Dated(mnvi.Module):
    """Its extra state is a time, which torch reads back only where that is allowed."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)

    def get_extra_state(self):
        return {"age": timedelta(1)}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("count", [1, 2])
def test_an_extra_state_that_cannot_be_read_back_is_said_before_training(count, tmp_path):
    models = [Dated() for _ in range(count)]
    before = copy.deepcopy(models[0].net)
    with pytest.raises(ValueError, match=r"cannot hold _extra_state, a dict: .* or fit without checkpoint"):
        mnvi.fit(models if count > 1 else models[0], (X, LABELS), epochs=1, checkpoint=tmp_path / "fit.pt")
    assert same(models[0].net, before)
    assert not any(tmp_path.iterdir())
    mnvi.fit(models[0], (X, LABELS), epochs=1, kl_weight=1.0)


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tmp_path, monkeypatch):
    def save(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("mnvi._fitting.checkpoint.torch.save", save)
    with pytest.raises(OSError, match=r"fit\.pt cannot be written \(PytorchStreamWriter failed"):
        mnvi.fit(network(), (X, LABELS), epochs=1, checkpoint=tmp_path / "fit.pt")
    assert not any(tmp_path.iterdir())


@cases("content", {"other bytes": b"not torch", "empty": b""})
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the checkpoint of a fit"):
        mnvi.fit(network(), (X, LABELS), checkpoint=path)
    assert path.read_bytes() == content


def test_the_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is not the checkpoint of a fit"):
        mnvi.fit(network(), (X, LABELS), checkpoint=tmp_path / "model.pt")


def test_seconds_count_what_was_before_the_kill(tmp_path, monkeypatch):
    _, history = one(checkpoint=tmp_path / "fit.pt")
    _, again = one(checkpoint=tmp_path / "fit.pt")
    assert again.seconds >= 0.9 * history.seconds


@cases("fitted", {"one": one, "several": several})
def test_other_weights_than_those_of_the_fit_are_told(fitted, tmp_path, recwarn):
    path = tmp_path / "fit.pt"
    models, _ = fitted(checkpoint=path)
    mnvi.fit(models if len(models) > 1 else models[0], (X, LABELS), **SEARCH, checkpoint=path)  # with what it left
    fitted(checkpoint=path)  # with what it began with
    assert not [each for each in recwarn if "other weights" in str(each.message)]
    fitted(seed=3, checkpoint=path)
    assert len([each for each in recwarn if f"{path} is of a fit that began with other weights" in str(each.message)])


def test_the_temperature_that_a_fit_has_set_is_no_other_fit(tmp_path):
    likelihood = mnvi.likelihoods.Categorical()
    for _ in range(2):
        history = mnvi.fit(network(), (X, LABELS), likelihood, **SEARCH, checkpoint=tmp_path / "fit.pt")
    assert history.widening != 1
    assert likelihood.temperature == pytest.approx(history.widening)
