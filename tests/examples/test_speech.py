"""The speech example: frames, files and errors against independent ones; a kill changes nothing; errors."""

import json
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from torch.nn.utils.rnn import pad_packed_sequence, pad_sequence

from examples.papers import frames, speech
from examples.papers.frames import Recordings, decimate, log_magnitudes, read
from tests.cases import cases
from tests.laws import assert_refused

ROOT = Path(__file__).parents[2]

RANDOM = np.random.default_rng(0)
TINY = ["--data", "tones", "--methods", "dtriv100,lstm", "--hidden", "6", "--epochs", "2", "--batch-size", "5"]
FILES = {
    "dtriv100.pt",
    "dtriv100.json",
    "dtriv100.npz",
    "lstm.pt",
    "lstm.json",
    "lstm.npz",
    "result.json",
    "speech.png",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A few tones, no data folder, and torch as it was before."""
    monkeypatch.setattr(frames, "COUNTS", (12, 4, 4))
    monkeypatch.delenv("MNVI_DATA", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(speech, "figure", lambda path, *_: path.touch())


def noise(samples):
    return 0.1 * RANDOM.standard_normal(samples)


def recordings(*counts):
    return Recordings.of(noise(count) for count in counts)


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 128, 700])
def test_frames_are_scipys(samples):
    signal = noise(samples)
    padded = np.concatenate([np.zeros(256), signal, np.zeros(-samples % 128 + 256)])
    options = {"nperseg": 256, "noverlap": 128, "boundary": None, "padded": False}
    spectrum = scipy.signal.stft(padded, window="hann", **options)[2] * 128  # scipy divides by the sum of the window
    expected = 10 * np.log10(1e-5 + np.abs(spectrum.T) ** 2)
    assert len(expected) == math.ceil(samples / 128) + 3
    np.testing.assert_allclose(log_magnitudes(signal), expected, atol=1e-3)


def test_a_tone_is_a_line_and_silence_is_the_floor():
    time = np.arange(2048)
    found = log_magnitudes(np.sin(2 * np.pi * 20 / 256 * time))[4:-4]  # frames without an end
    assert torch.all(found.argmax(1) == 20)
    expected = 20 * math.log10(256 / 4)  # half the amplitude, half the window
    torch.testing.assert_close(found[:, 20], torch.full((len(found),), expected), atol=1e-4, rtol=0)
    assert torch.all(found[:, [17, 23, 60]] < -49)
    assert torch.all(log_magnitudes(np.zeros(300)) == -50)
    with pytest.raises(ValueError, match="at least one sample"):
        log_magnitudes(np.zeros(0))


def test_a_batch_has_all_frames_but_the_last_and_those_that_follow():
    data = recordings(900, 300, 2000, 300)
    batch = data.batch(torch.tensor([1, 2, 0]))
    padded, lengths = pad_packed_sequence(batch.frames)
    following, _ = pad_packed_sequence(batch.frames._replace(data=batch.following))
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    for column, number in enumerate((2, 0, 1)):
        whole, length = data.recording(number), int(lengths[column])
        assert length == len(whole) - 1
        assert torch.equal(padded[:length, column], whole[:-1])
        assert torch.equal(following[:length, column], whole[1:])


def test_batches_have_every_recording_once_and_little_padding():
    data = recordings(*RANDOM.integers(100, 6000, 60))

    def rectangles(parts):
        return sum(int(data.lengths[part].max()) * len(part) for part in parts)

    first, same, other = (data.batches(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for parts in (first, other, data.batches(8)):
        assert sorted(torch.cat(parts).tolist()) == list(range(60))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    assert rectangles(first) < 1.25 * int(data.lengths.sum()) < rectangles(torch.arange(60).split(8))


@pytest.mark.parametrize("method", ["exprnn", "scurnn", "lstm"])
def test_the_error_is_that_of_a_loop_and_padding_does_not_count(method):
    data = recordings(900, 300, 2000)
    model = speech.Predictor(method, 5, mean=data.frames.mean(0), std=data.frames.std(0)).requires_grad_(False)
    squares, count, predictions = 0.0, 0, []
    for number in range(3):  # one by one
        whole = data.recording(number)
        predictions.append(model(data.batch(torch.tensor([number])).frames))
        squares += ((predictions[-1] - whole[1:]) ** 2).sum().item()
        count += len(whole) - 1
    found = speech.mean_squared_error(model, data, batch_size=3)
    assert found == pytest.approx(squares / count / 129, rel=1e-5)
    assert found == pytest.approx(speech.mean_squared_error(model, data, batch_size=2), rel=1e-5)
    # An average over the rectangle of a padded batch, wrong predictions of nothing included, is another number.
    targets = pad_sequence([data.recording(number)[1:] for number in range(3)])
    assert ((pad_sequence(predictions) - targets) ** 2).mean().item() < 0.9 * found


def test_a_prediction_knows_nothing_of_later_frames_or_other_recordings():
    data, changed = recordings(900, 900), recordings(900, 900)
    changed.frames[:4] = data.frames[:4]
    model = speech.Predictor("exprnn", 5)
    numbers = torch.arange(2)
    first, second = (model(each.batch(numbers).frames)[::2] for each in (data, changed))  # of the first recording
    torch.testing.assert_close(first[:4], second[:4])
    assert not torch.isclose(first[4:], second[4:]).any(1).all()


def test_what_the_layers_do_not_see():
    """With mean and std, the network of standardised frames, its outputs back in dB."""
    data = recordings(600, 900)
    mean, std = data.frames.mean(0), data.frames.std(0)
    model = speech.Predictor("lstm", 4, mean=mean, std=std)
    plain = speech.Predictor("lstm", 4)
    plain.load_state_dict(model.state_dict() | {"mean": torch.zeros(129), "std": torch.ones(129)})
    batch = data.batch(torch.arange(2))
    expected = plain(Recordings((data.frames - mean) / std, data.lengths).batch(torch.arange(2)).frames) * std + mean
    torch.testing.assert_close(model(batch.frames), expected)


# The published LSTM has one bias where torch's has two.
PUBLISHED = {("lstm", 224): 84, ("lstm", 322): 120, ("lstm", 425): 158, ("scurnn", 224): 128, ("cwy", 224): 224}


@pytest.mark.parametrize(("method", "hidden"), PUBLISHED)
def test_sizes_are_the_published_ones(method, hidden):
    assert abs(speech.size(method, hidden) - PUBLISHED[method, hidden]) <= (method == "lstm")


# Files ----------------------------------------------------------------------------------------------------------------


def riff(path, samples, rate=8000, width=2):
    """``samples`` int16, (count,) or (count, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def sphere(path, samples, rate=16000, order="01", coding=None, count=None):
    """A file as TIMIT's are, with a header of 1,024 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = ["NIST_1A", "   1024", "database_id -s5 TIMIT", "channel_count -i 1"]
    fields += [f"sample_count -i {len(samples) if count is None else count}", f"sample_rate -i {rate}"]
    fields += ["sample_n_bytes -i 2", f"sample_byte_format -s2 {order}", "sample_sig_bits -i 16"]
    fields += [f"sample_coding -s{len(coding)} {coding}"] if coding else []
    header = "\n".join([*fields, "end_head", ""]).encode().ljust(1024)
    path.write_bytes(header + samples.astype("<i2" if order == "01" else ">i2").tobytes())


def integers(count):
    return RANDOM.integers(-(2**15), 2**15, count).astype(np.int16)


SAMPLES = integers(501)
WRITERS = {
    "riff": (riff, {}),
    "stereo": (lambda path, samples: riff(path, np.stack([samples, integers(len(samples))], 1)), {}),
    "sphere": (sphere, {"rate": 8000}),
    "sphere-pcm": (sphere, {"rate": 8000, "coding": "pcm"}),
    "sphere-big-endian": (sphere, {"rate": 8000, "order": "10"}),
}


@cases("writer", WRITERS)
def test_files_are_read_as_they_were_written(tmp_path, writer):
    write, options = writer
    write(tmp_path / "a.wav", SAMPLES, **options)
    assert np.array_equal(read(tmp_path / "a.wav"), SAMPLES.astype(float) / 32768)


@pytest.mark.parametrize("write", [riff, sphere])
@pytest.mark.parametrize("factor", [2, 3])
def test_higher_rates_become_8_kHz_as_in_scipy(tmp_path, write, factor):
    write(tmp_path / "a.wav", SAMPLES, rate=8000 * factor)
    expected = scipy.signal.resample_poly(SAMPLES / 32768, 1, factor)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), expected, atol=1e-6)


def test_what_8_kHz_cannot_hold_is_gone():
    time = np.arange(4000) / 16000
    low, high = (decimate(np.sin(2 * np.pi * pitch * time), 2)[50:-50] for pitch in (1000, 6000))
    np.testing.assert_allclose(low, np.sin(2 * np.pi * 1000 * time[::2])[50:-50], atol=5e-3)
    assert np.abs(high).max() < 5e-3


BAD_FILES = {
    "8-bit": (lambda path: riff(path, SAMPLES[:500], width=1), "16-bit samples expected, got 8-bit"),
    "rate": (lambda path: riff(path, SAMPLES, rate=44100), "multiple of 8000 Hz, got 44100"),
    "empty": (lambda path: riff(path, SAMPLES[:0]), "no samples"),
    "not audio": (lambda path: path.write_bytes(b"hello, this is a text"), "RIFF"),
    "cut": (lambda path: path.write_bytes(b"RIFF"), "cannot read"),
    "packed": (lambda path: sphere(path, SAMPLES, coding="pcm,embedded-shorten-v2.00"), "sph2pipe"),
    "too short": (lambda path: sphere(path, SAMPLES, count=600), "buffer"),
    "no size": (lambda path: path.write_bytes(b"NIST_1A"), "cannot read"),
    "no fields": (lambda path: path.write_bytes(b"NIST_1A\n   1024\n".ljust(1024)), "sample_n_bytes"),
    "byte order": (lambda path: sphere(path, SAMPLES, order="11"), "11"),
}


@cases("bad", BAD_FILES)
def test_other_files_are_refused_by_name(tmp_path, bad):
    write, message = bad
    write(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=rf"cannot read .*a\.wav: .*|{message}") as error:
        read(tmp_path / "a.wav")
    assert message in str(error.value)


def test_a_folder_of_timit(tmp_path):
    """SA sentences and the speakers of TEST that are in no list are left out, second copies too."""
    signals = {name: integers(1600) for name in ("SI1", "SX2", "SX3", "SX4", "other")}
    sphere(tmp_path / "data/TRAIN/DR1/FCJF0/SI1.WAV", signals["SI1"])
    riff(tmp_path / "data/TRAIN/DR1/FCJF0/SI1.WAV.wav", signals["SI1"], rate=16000)
    sphere(tmp_path / "data/TRAIN/DR1/FCJF0/SA1.WAV", signals["other"])
    sphere(tmp_path / "data/TRAIN/DR2/MABC0/SX2.WAV", signals["SX2"])
    sphere(tmp_path / "data/TEST/DR2/FAKS0/SX3.WAV", signals["SX3"])
    sphere(tmp_path / "data/TEST/DR1/MDAB0/SX4.WAV", signals["SX4"])
    sphere(tmp_path / "data/TEST/DR1/FXYZ0/SX5.WAV", signals["other"])
    (tmp_path / "data/TEST/DR1/MDAB0/SX4.TXT").write_text("0 1600 Hello.")
    found = frames.load("timit", str(tmp_path))
    expected = {key: Recordings.of([scipy.signal.resample_poly(x / 32768, 1, 2)]) for key, x in signals.items()}
    assert (len(found.train), len(found.validation), len(found.test)) == (2, 1, 1)
    for part, name in ((found.validation, "SX3"), (found.test, "SX4")):
        torch.testing.assert_close(part.frames, expected[name].frames, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.train.recording(0), expected["SI1"].frames, atol=1e-2, rtol=0)
    assert sorted(list(frames.SPEAKERS.values()).count(part) for part in ("validation", "test")) == [24, 50]


def digits(folder, takes=(0, 4, 5, 7, 8, 49)):
    folder.mkdir()
    signals = [integers(count) for count in RANDOM.integers(400, 900, len(takes))]
    offset = np.cumsum([0, *map(len, signals)])
    arrays = {"signal": np.concatenate(signals), "offset": offset, "take": np.array(takes, np.uint8), "rate": 8000}
    np.savez(folder / "fsdd.npz", **arrays)
    return signals, arrays


def test_digits_of_an_archive_and_of_files(tmp_path, monkeypatch):
    signals, arrays = digits(tmp_path / "archive")
    for signal, take in zip(signals, arrays["take"], strict=True):
        riff(tmp_path / f"files/7_jackson_{take}.wav", signal)
    monkeypatch.setenv("MNVI_DATA", str(tmp_path / "archive"))
    archive, files = frames.load("fsdd"), frames.load("fsdd", str(tmp_path / "files"))
    for part, numbers in (("test", (0, 1)), ("validation", (2, 3)), ("train", (4, 5))):
        expected = Recordings.of(signals[i] / 32768 for i in numbers)
        torch.testing.assert_close(getattr(archive, part).frames, expected.frames, atol=1e-3, rtol=0)
        assert torch.equal(getattr(archive, part).lengths, expected.lengths)
        assert getattr(files, part).frames.sum() == pytest.approx(float(expected.frames.sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["signal", "offset", "take", "rate"])
def test_an_archive_of_something_else_is_refused(tmp_path, name):
    _, arrays = digits(tmp_path / "archive")
    wrong = {
        "signal": arrays["signal"].astype(float),
        "offset": arrays["offset"][:-1],
        "take": np.arange(9),
        "rate": 16000,
    }
    for content in (arrays | {name: wrong[name]}, {key: value for key, value in arrays.items() if key != name}):
        np.savez(tmp_path / "archive/fsdd.npz", **content)
        with pytest.raises(ValueError, match=r"fsdd\.npz must have signal"):
            frames.load("fsdd", str(tmp_path / "archive"))


def test_where_recordings_come_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither fsdd.npz nor .*MNVI_DATA.*git clone https://github"):
        frames.load("fsdd", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"TRAIN/DR1.*LDC93S1.*--data fsdd"):
        frames.load("timit", str(tmp_path))
    digits(tmp_path / "archive", takes=(0, 1, 9))
    with pytest.raises(ValueError, match="1 for train, 0 for validation, 2 for test"):
        frames.load("fsdd", str(tmp_path / "archive"))


# The whole job --------------------------------------------------------------------------------------------------------


def run(out, *options):
    return speech.main([*TINY, "--out", str(out), *options])


def timeless(result):
    return {name: {k: v for k, v in each.items() if k != "seconds"} for name, each in result["runs"].items()}


@pytest.mark.slow
def test_it_runs(tmp_path):
    result = run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "result.json").read_text()) == result
    tones = frames.load("tones", seed=0)
    for each in result["runs"].values():
        assert len(each["loss"]) == 2 * 3
        assert len(each["validation"]) == each["epochs"] == 2
        assert each["validation error"] == pytest.approx(min(each["validation"]), abs=1e-4)
        previous, mean = [], tones.train.frames.mean(0)
        for i in range(len(tones.test)):
            frame = tones.test.recording(i)
            previous.append(torch.stack([(frame[1:] - frame[:-1]) ** 2, (frame[1:] - mean) ** 2], 1))
        expected = torch.cat(previous).mean((0, 2)).tolist()
        assert list(each["baselines"].values()) == pytest.approx(expected, rel=1e-5)
    assert run(tmp_path, "--methods", "") == result  # draws again what there is


@pytest.mark.parametrize("option", [[], ["--decibels"]])
@pytest.mark.parametrize("method", ["scurnn", "cwy", "rnn"])
def test_other_methods_run(tmp_path, no_figure, method, option):
    result = run(tmp_path, "--methods", method, "--epochs", "1", *option)["runs"][method]
    weights = torch.load(tmp_path / f"{method}.pt")["states"]["model"]
    assert math.isfinite(result["test error"])
    assert torch.all(weights["std"] == 1) == bool(option)


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, no_figure):
    """The clock stops it after a step, before the first validation, and after one more."""
    expected = run(tmp_path / "whole")
    stopped = run(tmp_path / "parts", "--minutes", "1e-9")
    assert [len(each["loss"]) for each in stopped["runs"].values()] == [1, 1]
    result = run(tmp_path / "parts")
    assert timeless(result) == timeless(expected)
    for name in ("dtriv100", "lstm"):
        first, second = (torch.load(tmp_path / part / f"{name}.pt")["states"]["model"] for part in ("whole", "parts"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    again = run(tmp_path / "parts", "--restart", "--methods", "lstm", "--epochs", "1")
    assert again["runs"]["lstm"]["loss"] == expected["runs"]["lstm"]["loss"][:3]


@pytest.mark.slow
def test_training_helps(tmp_path, no_figure):
    """Below the mean frame in a few steps, by a network that sees frames of mean 0 and variance 1."""
    result = run(tmp_path, "--methods", "rnn", "--hidden", "32", "--epochs", "40", "--gated-lr", "1e-2")["runs"]["rnn"]
    assert result["test error"] < 0.7 * result["baselines"]["mean frame"]
    assert result["validation error"] < 0.5 * result["validation"][0]


BAD_OPTIONS = {
    "method": (["--methods", "exprnn,gpt"], "methods must be of .*, got gpt"),
    "hidden": (["--hidden", "1"], "hidden must be at least 2, got 1"),
    "nan": (["--lr", "nan"], "lr must be at least 1e-12, got nan"),
    "batch": (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
    "data": (["--data", "ted"], "invalid choice: 'ted'"),
}


@cases("options, message", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, capsys, options, message):
    assert_refused(run, options, message, tmp_path / "out", capsys)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, no_figure):
    run(tmp_path, "--methods", "lstm", "--epochs", "1")
    with pytest.raises(ValueError, match=r"lr 0.003 \(now 0.01\)"):
        run(tmp_path, "--methods", "lstm", "--gated-lr", "0.01")
