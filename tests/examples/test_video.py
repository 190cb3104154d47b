"""The video example: its films, its network, two steps of every method, a kill that changes nothing, bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.papers import clips, convolutional, video
from examples.papers.convolutional import METHODS, Network
from mnvi.manifolds import Stiefel
from tests.cases import cases
from tests.laws import assert_refused

ROOT = Path(__file__).parents[2]

TINY = ["--width", "2", "--batch-size", "2", "--frames", "4", "--validation", "2", "--test", "3", "--threads", "1"]
TINY += ["--iterations", "3", "--every", "2"]


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes most of the time of a tiny run."""
    monkeypatch.setattr(video, "figure", lambda path, *_: path.touch())


def run(out, methods, *options):
    return video.main([*TINY, "--methods", methods, "--out", str(out), *options])


# --- films ---


@pytest.fixture(scope="module")
def films():
    return clips.moving("digits", frames=30, validation=4, test=5, seed=0)


def test_bouncing_digits_are_films_from_black_to_white(films):
    frames, mask = films.train.batch([0, 10**9, 3])
    assert frames.shape == (30, 3, 1, 32, 32)
    assert mask.shape == (30, 3)
    assert mask.all()
    assert frames.min() == 0
    assert frames.max() == 1
    assert (len(films.validation), len(films.test)) == (4, 5)


def test_films_follow_from_number_and_seed(films):
    again = clips.moving("digits", frames=30, validation=4, test=5, seed=0)
    other = clips.moving("digits", frames=30, validation=4, test=5, seed=1)
    assert torch.equal(films.train.clip(7), again.train.clip(7))
    assert not torch.equal(films.train.clip(7), films.train.clip(8))
    assert not torch.equal(films.train.clip(7), other.train.clip(7))
    assert torch.equal(films.validation.clip(1), other.validation.clip(1))
    assert not torch.equal(films.validation.clip(1), films.test.clip(1))


def test_the_digits_of_the_splits_are_different_images(films):
    images = [split.images.flatten(1) for split in (films.train, films.validation, films.test)]
    assert sum(map(len, images)) == 1797
    for i, one in enumerate(images):
        for other in images[i + 1 :]:
            # 1797 scans have a few twins at 8 × 8 pixels with 17 greys, hence not strictly none
            assert (torch.cdist(one, other).min(1).values == 0).float().mean() < 0.01


def test_digits_keep_their_shape_move_slowly_and_see_nearly_all_of_the_frame():
    image = torch.rand(1, 8, 8).clamp(0.01)
    split = clips.BouncingDigits(image, 1, 60, 32, (0,))
    for i in range(5):
        film = split.clip(i)
        brightness = film.sum((1, 2)) / image.sum()
        assert 1 - 1e-5 <= brightness.min() <= brightness.max() <= 2 + 1e-5  # of two digits, which may overlap
        for axis in (1, 2):
            first = film.amax(axis).gt(0).int().argmax(1)  # of the rows or columns that are not black
            assert first.diff().abs().max() <= math.ceil(clips.SPEED * (32 - 8))
    seen = torch.stack([split.clip(i).amax(0) for i in range(20)]).amax(0)
    assert seen.gt(0).float().mean() > 0.95


@pytest.fixture
def folder(tmp_path):
    """A clip of every person, 120 × 160 pixels; of person 1 a longer one of another action, and one in a .npy file."""
    random = np.random.default_rng(0)
    for person in range(1, 26):
        frames = random.integers(0, 256, (2 + person % 3, 120, 160), dtype=np.uint8)
        name = f"person{person:02}_walking_d1_1"
        if person % 2:
            np.savez(tmp_path / f"{name}.npz", frames=frames, other=np.zeros(1))
        else:
            (tmp_path / "walking" / name).mkdir(parents=True)
            for t, frame in enumerate(frames):
                Image.fromarray(frame).save(tmp_path / "walking" / name / f"{t:04}.png")
    np.save(tmp_path / "person01_boxing_d2.npy", random.random((9, 120, 160)).astype(np.float32))
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_kth_splits_by_person(folder):
    films = clips.kth(folder, "walking", None)
    assert [len(split) for split in (films.train, films.validation, films.test)] == [12, 4, 9]
    assert len(clips.kth(folder, None, None).train) == 13
    frames, mask = films.validation.batch(range(4))  # persons 13 to 16: 3, 4, 2 and 3 frames
    assert frames.shape == (4, 4, 1, 128, 128)
    assert mask.sum(0).tolist() == [3, 4, 2, 3]
    assert frames[3, 2].abs().max() == 0
    assert 0 <= frames.min() <= frames.max() <= 1
    assert clips.kth(folder, None, 2).train.batch(range(13)).mask.all()


def test_kth_clips_are_the_same_from_images_and_arrays(folder):
    films = clips.kth(folder, "walking", None)
    two = films.train.clip(1)
    stack = np.stack([np.asarray(Image.open(path)) for path in sorted(films.train.paths[1].glob("*"))])
    np.savez(folder / "person02_jogging_d1.npz", stack)
    array = clips.Files((folder / "person02_jogging_d1.npz",)).clip(0)
    assert torch.equal(two, array)


def test_kth_frames_are_cropped_in_the_middle_and_resized(folder):
    frames = np.zeros((2, 120, 160), np.float32)
    frames[:, :, :20] = frames[:, :, 140:] = 1  # what is cut off
    frames[1, :60] = 0.5
    np.save(folder / "person03_running_d1.npy", frames)
    clip = clips.Files((folder / "person03_running_d1.npy",)).clip(0)
    assert clip.shape == (2, 128, 128)
    assert clip[0].max() == 0
    assert torch.allclose(clip[1, :62], torch.tensor(0.5))
    assert clip[1, 66:].max() == 0


BAD_CLIPS = {
    "one-frame": (np.zeros((1, 20, 20)), "with two frames or more"),
    "colour": (np.zeros((4, 20, 20, 3)), "shape .time, height, width."),
    "range": (np.full((4, 20, 20), 2.0), "floats from 0 to 1"),
    "nan": (np.full((4, 20, 20), np.nan), "floats from 0 to 1"),
    "large": (np.full((4, 20, 20), 256), "integers from 0 to 255"),
    "bool": (np.zeros((4, 20, 20), bool), "integers from 0 to 255 .* got bool"),
}


@cases("frames, message", BAD_CLIPS)
def test_bad_clips_are_refused(tmp_path, frames, message):
    np.save(tmp_path / "person01_walking.npy", frames)
    with pytest.raises(ValueError, match=message):
        clips.Files((tmp_path / "person01_walking.npy",)).clip(0)


def test_files_that_are_no_clips_are_refused(tmp_path):
    (tmp_path / "person01_walking").mkdir()
    (tmp_path / "person02_walking.npz").write_text("no")
    np.savez(tmp_path / "person03_walking.npz", a=np.zeros((3, 4, 4)), b=np.zeros(1))
    for name in ("person01_walking", "person02_walking.npz", "person03_walking.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a clip"):
            clips.Files((tmp_path / name,)).clip(0)


def test_a_folder_without_clips_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="name it with --folder"):
        clips.kth(tmp_path / "nowhere", None, None)
    with pytest.raises(ValueError, match="of running: 0 for train, 0 for validation, 0 for test"):
        clips.kth(folder, "running", None)


# --- the network ---


def network(method):
    """One whose last convolution is not zero, as it is at the start."""
    model = Network(method, 2)
    torch.nn.init.normal_(model.last.weight)
    return model


def test_the_published_size():
    """About 0.72 million parameters, of which the units' 18·Σf² = 479,232, and as many again for what skips bring."""
    assert sum(p.numel() for p in Network("tcwy", 32).parameters()) == pytest.approx(0.72e6, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_knows_the_past_only(method):
    model, frames = network(method), torch.rand(4, 2, 1, 32, 48)
    prediction = model(frames)
    assert prediction.shape == frames.shape
    changed = frames.clone()
    changed[2] = torch.rand(2, 1, 32, 48)
    after = model(changed)
    assert torch.equal(after[:2], prediction[:2])
    assert not torch.equal(after[2], prediction[2])
    assert torch.equal(after[3], prediction[3]) == (method == "zeros")  # all others remember


@pytest.mark.parametrize("method", METHODS)
def test_steps_keep_what_is_constrained(method):
    torch.manual_seed(0)
    model, frames = network(method), torch.rand(3, 2, 1, 32, 32)
    parts = convolutional.optimisers(model, method, 1e-2, 1e-3)
    before = [p.clone() for p in model.parameters()]
    for _ in range(2):
        error, count = video.absolute_error(model, clips.Batch(frames, torch.ones(3, 2, dtype=torch.bool)))
        model.zero_grad()
        (error / count).backward()
        for optimiser in parts.values():
            optimiser.step()
    kernels = [] if method == "convlstm" else [unit.kernel.weight for unit in model.units]
    on_manifold = [bool(Stiefel().residual(k.flatten(1).mT) < 1e-4) for k in kernels]
    assert all(on_manifold) if method not in ("glorot", "orth", "zeros", "convlstm") else not any(on_manifold)
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert sum(moved) == len(moved) - (5 if method == "zeros" else 0)
    assert all(k.count_nonzero() == 0 for k in kernels) == (method in ("zeros", "convlstm"))


def test_an_odd_frame_is_refused():
    with pytest.raises(ValueError, match="height and width must be multiples of 16, got 32 and 40"):
        Network("tcwy", 2)(torch.rand(2, 1, 1, 32, 40))


def test_the_error_leaves_out_what_is_padded():
    model = network("zeros")
    long, short = torch.rand(5, 1, 1, 32, 32), torch.rand(3, 1, 1, 32, 32)
    padded = torch.cat([long, torch.cat([short, torch.zeros(2, 1, 1, 32, 32)])], 1)
    mask = torch.tensor([[True, t < 3] for t in range(5)])
    total, count = video.absolute_error(model, clips.Batch(padded, mask))
    parts = [
        video.absolute_error(model, clips.Batch(x, torch.ones(len(x), 1, dtype=torch.bool))) for x in (long, short)
    ]
    assert count == 4 + 2 == sum(n for _, n in parts)
    torch.testing.assert_close(total, sum(error for error, _ in parts))


def test_the_baselines(films):
    frames = torch.stack([films.test.clip(i) for i in range(5)], 1)
    expected = {"black frame": frames[1:], "last frame": frames[1:] - frames[:-1]}
    errors = {name: each.abs().sum().item() / (29 * 5) for name, each in expected.items()}
    assert video.baselines(films.test) == pytest.approx(errors)
    assert errors["last frame"] < errors["black frame"]


# --- the run ---


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder, "tcwy,rgd-c-qr")


@pytest.mark.slow
def test_the_results(uninterrupted):
    folder, result = uninterrupted
    names = {f"{method}.{kind}" for method in ("tcwy", "rgd-c-qr") for kind in ("pt", "json", "npz")}
    assert {path.name for path in folder.iterdir()} == names | {"result.json", "video.png"}
    assert json.loads((folder / "result.json").read_text()) == result
    for each in result["runs"].values():
        assert each["iterations"] == len(each["loss"]) == 3
        assert [i for i, _ in each["validation"]] == [2]
        assert each["validation error"] == pytest.approx(each["validation"][0][1], abs=1e-3)
        assert all(math.isfinite(error) for error in (each["test error"], *each["baselines"].values()))
    arrays = np.load(folder / "tcwy.npz")
    assert arrays["film"].shape == arrays["prediction"].shape == (3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 2, 4])  # of loss and validation
@pytest.mark.usefixtures("no_figure")
def test_an_interrupt_continues_to_the_same_result(tmp_path, monkeypatch, uninterrupted, calls):
    left, error = iter(range(calls)), video.absolute_error

    def interrupted(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return error(*arguments)

    monkeypatch.setattr("examples.common.training.SAVE_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(video, "absolute_error", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "tcwy,rgd-c-qr")
    result, (_, expected) = run(tmp_path, "tcwy,rgd-c-qr"), uninterrupted
    for name, each in result["runs"].items():
        assert {**each, "seconds": 0} == {**expected["runs"][name], "seconds": 0}


@pytest.mark.usefixtures("no_figure")
def test_the_best_weights_are_tested(tmp_path, monkeypatch):
    """With validation errors that rise, those of the first validation."""
    errors = iter([1.0, 2.0])
    with monkeypatch.context() as patch:
        evaluate = video.evaluate
        patch.setattr(video, "evaluate", lambda model, split, size: next(errors, None) or evaluate(model, split, size))
        rising = run(tmp_path / "rising", "orth", "--every", "1", "--iterations", "2")
    once = run(tmp_path / "once", "orth", "--every", "1", "--iterations", "1")
    assert rising["runs"]["orth"]["validation error"] == 1
    assert rising["runs"]["orth"]["test error"] == once["runs"]["orth"]["test error"]


@pytest.mark.usefixtures("no_figure")
def test_more_time_continues_a_run(tmp_path):
    first = run(tmp_path, "zeros", "--minutes", "1e-9")
    assert first["runs"]["zeros"]["iterations"] == 1
    assert first["runs"]["zeros"]["validation"] == []
    assert run(tmp_path, "zeros")["runs"]["zeros"]["iterations"] == 3
    with pytest.raises(ValueError, match=r"zeros.pt is a checkpoint of other settings: width 2 \(now 4\)"):
        run(tmp_path, "zeros", "--width", "4")


@pytest.mark.usefixtures("no_figure")
def test_kth_runs(folder, tmp_path):
    result = run(tmp_path / "out", "own", "--data", "kth", "--folder", str(folder), "--iterations", "1")
    assert result["runs"]["own"]["data"] == "KTH, all actions"
    assert math.isfinite(result["runs"]["own"]["test error"])


BAD_OPTIONS = {
    "method": (["--methods", "tcwy,lstm"], "methods must be of tcwy, own, .* got lstm"),
    "data": (["--data", "ucf"], "invalid choice: 'ucf'"),
    "action": (["--action", "swimming"], "action must be one of walking, .* got swimming"),
    "width": (["--width", "0"], "width must be at least 1, got 0"),
    "frames": (["--frames", "1"], "frames must be at least 2, got 1"),
    "lr": (["--lr", "nan"], "lr must be at least 1e-12, got nan"),
}


@cases("options, message", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, capsys, options, message):
    assert_refused(run, ["tcwy", *options], message, tmp_path / "out", capsys)


def test_an_even_kernel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        run(tmp_path, "tcwy", "--kernel-size", "2")
