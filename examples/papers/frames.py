"""Speech as frames of log-magnitudes: spoken digits, a folder of TIMIT, and gliding tones made by rule."""

import os
import re
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from tqdm import tqdm

RATE = 8000  # of all signals, Hz
WINDOW, HOP = 256, 128  # samples
BINS = WINDOW // 2 + 1
FLOOR = 1e-5  # −50 dB


class Batch(NamedTuple):
    """The frames of some recordings, all but the last of each, and those that follow each of them, (total, 129)."""

    frames: PackedSequence
    following: Tensor


@dataclass(frozen=True)
class Recordings:
    """Frames of recordings, one recording after the other, without any padding.

    Args:
        frames: in dB, (total, 129).
        lengths: frames of each recording, two or more.
    """

    frames: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, signals) -> "Recordings":
        """Transform ``signals``, arrays from −1 to 1 at 8 kHz."""
        parts = [log_magnitudes(signal) for signal in signals]
        return cls(torch.cat(parts), torch.tensor([len(part) for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: str) -> "Recordings":
        return Recordings(self.frames.to(device), self.lengths)

    def recording(self, i: int) -> Tensor:
        """All frames of one, (time, 129)."""
        return self.frames.split(self.lengths.tolist())[i]

    def batch(self, numbers: Tensor) -> Batch:
        """The recordings of these numbers, from the longest to the shortest."""
        numbers = numbers[self.lengths[numbers].argsort(descending=True, stable=True)]
        starts, lengths = (self.lengths.cumsum(0) - self.lengths)[numbers], self.lengths[numbers] - 1
        time = torch.arange(int(lengths[0]))[:, None]
        running = time < lengths
        rows = (starts + time)[running]
        return Batch(PackedSequence(self.frames[rows], running.sum(1)), self.frames[rows + 1])

    def batches(self, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Every recording's number once, recordings of about the same length together.

        With a ``generator``, the recordings are shuffled, sorted within each share of ``POOL`` batches, and the batches
        shuffled; without, all are sorted.
        """
        if generator is None:
            return self.lengths.argsort(stable=True).split(size)
        pools = torch.randperm(len(self), generator=generator).split(POOL * size)
        parts = [part for pool in pools for part in pool[self.lengths[pool].argsort(stable=True)].split(size)]
        return tuple(parts[i] for i in torch.randperm(len(parts), generator=generator))


POOL = 8


@dataclass(frozen=True)
class Speech:
    """What to train on, to choose by and to test on, and what a figure calls it."""

    train: Recordings
    validation: Recordings
    test: Recordings
    title: str


def log_magnitudes(signal: np.ndarray) -> Tensor:
    """10·log₁₀(10⁻⁵ + |X|²) of the short-time Fourier transform X, in dB; float32 (time, 129).

    The window is Hann's (periodic) of 256 samples, and moves by 128. The signal, from −1 to 1 at 8 kHz, is filled up
    with zeros to a multiple of 128 samples and lengthened by 256 zeros at both ends: n samples are ⌈n/128⌉ + 3 frames.

    Source: Wisdom, Powers, Hershey, Le Roux & Atlas, 'Full-capacity unitary recurrent neural networks' (2016), and the
    code of its experiments.
    """
    if not len(signal):
        raise ValueError("a recording needs at least one sample, got none")
    x = np.pad(signal.astype(np.float32), (WINDOW, -len(signal) % HOP + WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] * np.hanning(WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(windows)) ** 2
    return torch.from_numpy((10 * np.log10(FLOOR + power)).astype(np.float32))


def load(name: str, folder: str | None = None, seed: int = 0) -> Speech:
    """The data set ``name``: ``"tones"`` (made by rule from the ``seed``), ``"fsdd"`` or ``"timit"``.

    Args:
        folder: where the recordings are; None is ``$MNVI_DATA`` for fsdd.npz, ``$MNVI_DATA/timit`` for TIMIT.

    Raises:
        FileNotFoundError: there are no recordings; the message says where they come from.
        ValueError: the files are not what they should be.
    """
    if name == "tones":
        return tones(seed)
    return {"fsdd": digits, "timit": timit}[name](folder)


# Tones ----------------------------------------------------------------------------------------------------------------

COUNTS = (256, 64, 64)


def tones(seed: int) -> Speech:
    """Harmonics whose pitch glides and trembles, with faint noise, for 0.25 to 0.75 seconds: 256, 64 and 64."""
    parts = [
        Recordings.of(_glide(np.random.default_rng((seed, part, i))) for i in range(count))
        for part, count in enumerate(COUNTS)
    ]
    return Speech(*parts, title="gliding tones")


def _glide(random: np.random.Generator) -> np.ndarray:
    count = int(RATE * random.uniform(0.25, 0.75))
    share = np.arange(count) / count
    low, high = random.uniform(80, 400, 2)
    pitch = (low + (high - low) * share) * (1 + 0.03 * np.sin(2 * np.pi * random.uniform(2, 5) * share))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 10)) * np.sin(np.pi * share) ** 2
    return 0.2 * sound + 1e-3 * random.standard_normal(count)


# Free Spoken Digit Dataset --------------------------------------------------------------------------------------------

FSDD = "https://github.com/Jakobovski/free-spoken-digit-dataset"


def digits(folder: str | None) -> Speech:
    """The Free Spoken Digit Dataset: 3,000 recordings, of six speakers; takes 0-4 of each digit are for testing.

    Takes 5-7 are for validation, the others for training. The folder has ``fsdd.npz`` (``signal`` int16, one recording
    after the other, ``offset``, where each begins and the last ends, ``take``, ``rate``), or WAV files as in the data
    set's own folder ``recordings``, digit_speaker_take.wav.
    """
    where = Path(folder or os.environ.get("MNVI_DATA", "."))
    paths = sorted(where.glob("[0-9]_*_*.wav"))
    if (where / "fsdd.npz").is_file():
        signals, takes = _arrays(where / "fsdd.npz")
    elif paths:
        signals = [read(path) for path in tqdm(paths, desc="reading", mininterval=0.5)]
        takes = np.array([int(path.stem.split("_")[2]) for path in paths])
    else:
        raise FileNotFoundError(
            f"{where.resolve()} has neither fsdd.npz nor recordings such as 7_jackson_32.wav; set MNVI_DATA to a "
            f"folder with fsdd.npz, or git clone {FSDD} and give --folder free-spoken-digit-dataset/recordings"
        )
    parts = np.select([takes < 5, takes < 8], ["test", "validation"], "train")
    return _split(where, signals, parts, "spoken digits")


def _arrays(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    try:
        with np.load(path) as file:
            signal, offset, takes, rate = (file[name] for name in ("signal", "offset", "take", "rate"))
        if signal.dtype != np.int16 or rate != RATE or len(offset) != len(takes) + 1 or offset[-1] != len(signal):
            raise ValueError(
                f"signal {signal.dtype} {signal.shape}, offset {offset.shape}, take {takes.shape}, {rate} Hz"
            )
        return np.split(signal / np.float32(2**15), offset[1:-1]), takes.astype(int)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} must have signal (int16), offset, take and rate ({RATE}): {error}") from error


# TIMIT ----------------------------------------------------------------------------------------------------------------

# The speakers for validation are Halberstadt's development set (1998), those for testing TIMIT's own core test set.
SPEAKERS = {
    speaker: part
    for part, speakers in {
        "validation": """faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0
            mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0
            mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1""",
        "test": """mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0 mcmj0
            mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0""",
    }.items()
    for speaker in speakers.split()
}
SENTENCE = re.compile(r"(?:.*/)?(train|test)/[^/]+/([^/]+)/(s[ix]\d+)\.wav(?:\.wav)?")


def timit(folder: str | None) -> Speech:
    """TIMIT without its SA sentences: 3,696 recordings of TRAIN, 400 and 192 of TEST for validation and testing.

    The folder has files TRAIN/DR1/FCJF0/SI1027.WAV and so on, at any depth and in either case, NIST SPHERE or RIFF, of
    16-bit PCM. Validation is on the 50 development speakers of Halberstadt (1998), testing on the 24 of the core test.
    """
    where = Path(folder) if folder else Path(os.environ.get("MNVI_DATA", "."), "timit")
    found: dict[tuple[str, str], tuple[str, Path]] = {}
    for path in sorted(where.rglob("*")):
        if name := SENTENCE.fullmatch(path.relative_to(where).as_posix().lower()):
            part, speaker, sentence = name.groups()
            if part == "train" or speaker in SPEAKERS:
                found[speaker, sentence] = SPEAKERS.get(speaker, part), path  # some copies have each recording twice
    if not found:
        raise FileNotFoundError(
            f"{where} has no files such as TRAIN/DR1/FCJF0/SI1027.WAV; TIMIT is LDC93S1 at catalog.ldc.upenn.edu: "
            "give its folder by --folder, or try --data fsdd, which is free"
        )
    signals = [read(path) for _, path in tqdm(found.values(), desc="reading", mininterval=0.5)]
    return _split(where, signals, np.array([part for part, _ in found.values()]), "TIMIT")


PARTS = ("train", "validation", "test")


def _split(where: Path, signals: list[np.ndarray], parts: np.ndarray, title: str) -> Speech:
    """Recordings by their part, of PARTS."""
    numbers = {part: np.flatnonzero(parts == part) for part in PARTS}
    if not all(map(len, numbers.values())):
        came = ", ".join(f"{len(each)} for {part}" for part, each in numbers.items())
        raise ValueError(f"{where} must have recordings for {', '.join(PARTS)}; it has {came}")
    return Speech(*(Recordings.of(signals[i] for i in each) for each in numbers.values()), title=title)


# Files ----------------------------------------------------------------------------------------------------------------


def read(path: Path) -> np.ndarray:
    """The first channel of a file of 16-bit PCM, RIFF or NIST SPHERE, from −1 to 1, at 8 kHz."""
    try:
        content = path.read_bytes()
        rate, channels, samples = _sphere(content) if content.startswith(b"NIST_1A") else _riff(path)
        if rate <= 0 or rate % RATE:
            raise ValueError(f"the rate must be a multiple of {RATE} Hz, got {rate}")
        if not len(samples):
            raise ValueError("there are no samples")
    except (ValueError, KeyError, IndexError, EOFError, wave.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return decimate(samples[::channels] / np.float32(2**15), rate // RATE)


def _riff(path: Path) -> tuple[int, int, np.ndarray]:
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"16-bit samples expected, got {8 * file.getsampwidth()}-bit ones")
        return file.getframerate(), file.getnchannels(), np.frombuffer(file.readframes(file.getnframes()), "<i2")


def _sphere(content: bytes) -> tuple[int, int, np.ndarray]:
    """The header is text: the magic word, its size, and lines 'name -type value'."""
    size = int(content.split(b"\n", 2)[1])
    lines = content[:size].decode("ascii").split("end_head")[0].splitlines()[2:]
    fields = {words[0]: words[2] for line in lines if len(words := line.split(None, 2)) == 3}
    coding, bits = fields.get("sample_coding", "pcm").strip(), 8 * int(fields["sample_n_bytes"])
    if coding != "pcm" or bits != 16:
        raise ValueError(f"plain PCM of 16 bits expected, got {coding} of {bits} bits; sph2pipe converts it")
    order = {"01": "<i2", "10": ">i2"}[fields.get("sample_byte_format", "01").strip()]
    count = int(fields["sample_count"]) * int(fields["channel_count"])
    return int(fields["sample_rate"]), int(fields["channel_count"]), np.frombuffer(content, order, count, size)


def decimate(signal: np.ndarray, factor: int) -> np.ndarray:
    """Every ``factor``-th sample of the signal below the new Nyquist frequency.

    The filter is a sinc of 20·factor + 1 samples under Kaiser's window with β = 5, as in scipy's ``resample_poly``.
    """
    if factor == 1:
        return signal
    steps = np.arange(-10 * factor, 10 * factor + 1)
    kernel = np.sinc(steps / factor) * np.kaiser(len(steps), 5.0)
    return np.convolve(signal, kernel / kernel.sum())[10 * factor : 10 * factor + len(signal) : factor]
