"""Short grey films as tensors: digits that bounce in a frame, and a folder of the KTH actions."""

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from examples.common import data

ENDLESS = 2**31  # training clips of bouncing digits, made when asked for


class Batch(NamedTuple):
    """Frames from 0 to 1, (time, batch, 1, height, width), and a mask, (time, batch): False where a clip is over."""

    frames: Tensor
    mask: Tensor


class Split(ABC):
    """Clips by number; each is the same whenever it is asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def clip(self, i: int) -> Tensor:
        """Frames from 0 to 1, of shape (time, height, width)."""

    def batch(self, numbers: Any) -> Batch:
        clips = [self.clip(int(i)) for i in numbers]
        frames = torch.nn.utils.rnn.pad_sequence(clips).unsqueeze(2)
        lengths = torch.tensor([len(clip) for clip in clips])
        return Batch(frames, torch.arange(len(frames))[:, None] < lengths)


@dataclass(frozen=True)
class Clips:
    """What to train on, to choose by and to test on, and what a figure calls it."""

    train: Split
    validation: Split
    test: Split
    title: str


@dataclass(frozen=True)
class BouncingDigits(Split):
    """Two digits that move straight through a square frame and bounce off its sides, as in Moving MNIST.

    Args:
        images: digits, (N, s, s), from 0 to 1.
        count: of clips.
        frames: of each clip.
        side: of a frame, pixels.
        seed: of where the digits start and go, together with the number of a clip.

    Source: Srivastava, Mansimov & Salakhutdinov, 'Unsupervised learning of video representations using LSTMs' (2015).
    """

    images: Tensor
    count: int
    frames: int
    side: int
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return self.count

    def clip(self, i: int) -> Tensor:
        random = np.random.default_rng((*self.seed, i))
        room = self.side - self.images.shape[-1]
        frames = torch.zeros(self.frames, self.side, self.side)
        for digit in self.images[random.integers(len(self.images), size=2)]:
            start, angle = random.uniform(0, room, 2), random.uniform(0, 2 * np.pi)
            way = np.arange(self.frames)[:, None] * SPEED * room * np.array([np.cos(angle), np.sin(angle)])
            # A path that bounces between 0 and room is a straight one, folded.
            corners = (room - np.abs((start + way) % (2 * room) - room)).round().astype(int)
            for frame, (y, x) in zip(frames, corners, strict=True):
                window = frame[y : y + len(digit), x : x + len(digit)]
                torch.maximum(window, digit, out=window)
        return frames


SPEED = 0.04  # of the room to move in, a frame: slow enough for the last frame to say more than a black one


def moving(name: str, frames: int, validation: int, test: int, seed: int) -> Clips:
    """Clips of MNIST's digits in 64 × 64 pixels (``"mnist"``) or of scikit-learn's in 32 × 32 (``"digits"``).

    The digits of training, validation and test clips are different images. The latter two are ``validation`` and
    ``test`` clips, the same for every ``seed``, which is that of the training clips.
    """
    source = data.load(name)
    low, high = source.train_x.min(), source.train_x.max()
    train, held = ((x[:, 0] - low) / (high - low) for x in (source.train_x, source.test_x))
    kept, side = len(train) * 11 // 12, 64 if name == "mnist" else 32
    return Clips(
        BouncingDigits(train[:kept], ENDLESS, frames, side, (0, seed)),
        BouncingDigits(train[kept:], validation, frames, side, (1,)),
        BouncingDigits(held, test, frames, side, (2,)),
        f"bouncing digits ({source.title})",
    )


PERSONS = {"train": range(1, 13), "validation": range(13, 17), "test": range(17, 26)}
ACTIONS = ("walking", "jogging", "running", "boxing", "handwaving", "handclapping")
SIDE = 128


@dataclass(frozen=True)
class Files(Split):
    """Clips of the KTH actions, cropped to the square in their middle and resized to 128 × 128 pixels when asked for.

    Args:
        paths: of folders of PNG frames, or of .npy or .npz files.
        frames: at most, of each clip; None takes them all.
    """

    paths: tuple[Path, ...]
    frames: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def clip(self, i: int) -> Tensor:
        frames = _square(_read(self.paths[i])[: self.frames])
        return F.interpolate(frames[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


def kth(folder: str | Path | None, action: str | None, frames: int | None) -> Clips:
    """The KTH actions from a user's ``folder``, persons 1-12 for training, 13-16 for validation, 17-25 for testing.

    A clip is a folder of PNG frames, in the order of their names, or an array (time, height, width) in a .npy file or,
    alone or as ``frames``, in a .npz file; of integers from 0 to 255, or of floats from 0 to 1. Its name
    begins with person and action, as in ``person01_walking_d1_2`` or ``person01_walking_d1_2.npz``; it may lie at
    any depth below ``folder``. The films themselves are cut into clips and taken apart by, for instance,
    ``ffmpeg -i person01_walking_d1_uncomp.avi -vf select='between(n,0,94)' person01_walking_d1_1/%04d.png``.

    Args:
        folder: None is ``$MNVI_DATA/kth``.
        action: one of ``ACTIONS``; None takes all.
        frames: cut clips after so many.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: some split would have no clips. A clip that is not as above is refused when it is read.
    """
    where = Path(folder) if folder else Path(os.environ.get("MNVI_DATA", "."), "kth")
    if not where.is_dir():
        raise FileNotFoundError(f"there is no folder {where} with clips of the KTH actions; name it with --folder")
    found: dict[str, list[Path]] = {name: [] for name in PERSONS}
    for path in sorted(where.rglob("person*"), key=lambda path: path.name):
        name = re.match(r"person(\d+)_([a-z]+)", path.name)
        if name and (path.is_dir() or path.suffix in (".npy", ".npz")) and action in (None, name[2]):
            for split, persons in PERSONS.items():
                found[split] += [path] * (int(name[1]) in persons)
    if not all(found.values()):
        came = ", ".join(f"{len(paths)} for {split}" for split, paths in found.items())
        of = f" of {action}" if action else ""
        raise ValueError(f"{where} has these clips{of}: {came}; a clip's name begins as person01_walking does")
    splits = {split: Files(tuple(paths), frames) for split, paths in found.items()}
    return Clips(**splits, title=f"KTH, {action or 'all actions'}")


def _read(path: Path) -> Tensor:
    """The frames of a clip, from 0 to 1."""
    try:
        if path.is_dir():
            frames = np.stack([np.asarray(Image.open(file).convert("L")) for file in sorted(path.glob("*.png"))])
        else:
            content = np.load(path)
            frames = content if path.suffix == ".npy" else content[_only(content.files)]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a clip: {error}") from error
    if frames.ndim != 3 or len(frames) < 2 or not frames.size:
        raise ValueError(
            f"{path} must have the shape (time, height, width) with two frames or more, got {frames.shape}"
        )
    frames = frames / 255 if frames.dtype.kind in "iu" else frames
    if frames.dtype.kind != "f" or not (frames.min() >= 0 and frames.max() <= 1):
        raise ValueError(f"{path} must hold integers from 0 to 255 or floats from 0 to 1, got {frames.dtype}")
    return torch.from_numpy(frames.astype(np.float32))


def _only(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "frames"


def _square(frames: Tensor) -> Tensor:
    height, width = frames.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[:, top : top + side, left : left + side]
