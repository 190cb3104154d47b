"""Labelled images as tensors in memory: handwritten digits, MNIST, Fashion-MNIST, CIFAR-10."""

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Images float32 (N, C, H, W), normalised by the training images' mean and standard deviation of each channel."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    title: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Data":
        """The same images and labels there, the images in the layout in which convolutions are fastest."""
        x = [each.to(device, memory_format=torch.channels_last) for each in (self.train_x, self.test_x)]
        return replace(self, train_x=x[0], test_x=x[1], train_y=self.train_y.to(device), test_y=self.test_y.to(device))


class Source(NamedTuple):
    """Where a data set is on the hub, the columns of its images, and what a figure calls it."""

    hub: str
    image: str
    title: str


SOURCES = {
    "mnist": Source("ylecun/mnist", "image", "MNIST"),
    "fashion_mnist": Source("zalando-datasets/fashion_mnist", "image", "Fashion-MNIST"),
    "cifar10": Source("uoft-cs/cifar10", "img", "CIFAR-10"),
}
CLASSES = 10
PARTS = ("train_x", "train_y", "test_x", "test_y")
Arrays = dict[str, np.ndarray]  # by PARTS: x uint8 (N, H, W, C), y int64; and "title"


def load(name: str) -> Data:
    """The data set ``name``: ``"digits"`` (scikit-learn's, no network needed) or a key of ``SOURCES``.

    The latter are read from the folder ``$MNVI_DATA/name`` if that variable is set, else downloaded. Decoded images
    are kept in the user's cache folder, where that can be written.

    Raises:
        ValueError: unknown name, or the files are not what they should be.
        FileNotFoundError: ``$MNVI_DATA`` has no such folder.
        ConnectionError: the hub cannot be reached.
    """
    if name == "digits":
        return _normalised(_digits())
    if name not in SOURCES:
        raise ValueError(f"data must be digits or one of {', '.join(SOURCES)}, got {name!r}")
    root = os.environ.get("MNVI_DATA")
    folder = Path(root, name) if root else None
    if folder and not folder.is_dir():
        hint = f"unset MNVI_DATA to download {SOURCES[name].hub} instead"
        raise FileNotFoundError(f"MNVI_DATA is {root}, and the folder {folder} does not exist; {hint}")
    cache = _cache_path(name, folder)
    arrays = _cached(cache)
    if arrays is None:
        arrays = _decoded(name, folder)
        _keep(cache, arrays)
    return _normalised(arrays)


def hold_out(data: Data, count: int, limit: int | None = None) -> tuple[Data, Tensor, Tensor]:
    """The data without its last ``count`` training images (and cut to ``limit``), and these images and labels."""
    left = len(data.train_x) - count
    if left < 1:
        raise ValueError(f"holding out {count} of {len(data.train_x)} training images leaves none to train on")
    used = left if limit is None else min(left, limit)
    rest = replace(data, train_x=data.train_x[:used], train_y=data.train_y[:used])
    return rest, data.train_x[left:], data.train_y[left:]


def _digits() -> Arrays:
    bunch: Any = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    x, y = bunch.images[order, :, :, None].astype(np.uint8), bunch.target[order]
    parts = {"train_x": x[:1437], "train_y": y[:1437], "test_x": x[1437:], "test_y": y[1437:]}
    return parts | {"title": np.array("handwritten digits")}


def _normalised(arrays: Arrays) -> Data:
    train_x, train_y, test_x, test_y = (torch.from_numpy(arrays[name]) for name in PARTS)
    train_x, test_x = (x.movedim(-1, 1).contiguous().float() for x in (train_x, test_x))
    std, mean = torch.std_mean(train_x, (0, 2, 3), keepdim=True)
    for x in (train_x, test_x):
        x.sub_(mean).div_(std)
    return Data(train_x, train_y, test_x, test_y, CLASSES, str(arrays["title"]))


def _decoded(name: str, folder: Path | None) -> Arrays:
    """The images and labels of a data set that the ``datasets`` library reads."""
    source, where = SOURCES[name], str(folder or SOURCES[name].hub)
    with tempfile.TemporaryDirectory() as scratch:  # a local folder's Arrow copy is needed only once
        splits = _open(name, folder, scratch)
        if not {"train", "test"} <= set(splits):
            raise ValueError(f"{where} has the splits {', '.join(splits)}, expected train and test")
        arrays = {"title": np.array(source.title)}
        for part in ("train", "test"):
            table = splits[part].with_format("arrow")[:]
            if not {source.image, "label"} <= set(table.column_names):
                came = ", ".join(table.column_names)
                raise ValueError(f"{where} ({part}) has the columns {came}, expected {source.image} and label")
            arrays[f"{part}_x"], jpeg = _images(table[source.image], f"column {source.image} of {where} ({part})")
            arrays[f"{part}_y"] = _labels(table["label"], f"column label of {where} ({part})")
            if jpeg:  # such a copy is not the original, pixel by pixel
                arrays["title"] = np.array(f"{source.title} (JPEG)")
        train, test = (arrays[f"{part}_x"].shape[1:] for part in ("train", "test"))
        if train != test:
            raise ValueError(f"{where} has training images of shape {train} and test images of shape {test}")
        return arrays


def _open(name: str, folder: Path | None, scratch: str) -> Any:
    import datasets  # takes seconds, and is not needed for digits or what is in the cache

    datasets.disable_progress_bars()
    try:
        if folder:
            return datasets.load_dataset(str(folder), cache_dir=scratch)
        return datasets.load_dataset(SOURCES[name].hub)
    except Exception as error:  # every layer below has exceptions of its own
        if folder:
            raise ValueError(f"the datasets library cannot read {folder}: {error}") from error
        hint = f"set MNVI_DATA to a folder that has the folder {name} with its parquet files"
        raise ConnectionError(f"cannot get {SOURCES[name].hub} from the hub ({error}); {hint}") from error


def _images(column: Any, what: str) -> tuple[np.ndarray, bool]:
    """Images (N, H, W, C) decoded from a column of encoded files, and whether these are JPEG."""
    try:
        files = [cell["bytes"] for cell in column.to_pylist()]
        images = np.stack([_pixels(i, file) for i, file in enumerate(files)])
    except (TypeError, KeyError, IndexError, OSError, ValueError) as error:
        raise ValueError(f"{what} must hold encoded images of one size; the type is {column.type}: {error}") from error
    return images.reshape(*images.shape[:3], -1), files[0].startswith(b"\xff\xd8")


def _pixels(row: int, file: bytes) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(file)))
    except (OSError, SyntaxError) as error:  # as PIL says of no image, of half an image, of a damaged PNG
        raise ValueError(f"row {row}: {error}") from error


def _labels(column: Any, what: str) -> np.ndarray:
    labels = column.to_numpy()
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{what} must hold integers from 0 to {CLASSES - 1}; the type is {column.type}")
    return labels.astype(np.int64)


def _cache_path(name: str, folder: Path | None) -> Path:
    """Where the decoded data is kept, another file when a file of ``folder`` changes."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder else []
    key = [str(folder), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "mnvi", f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz")


def _cached(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return {name: file[name] for name in (*PARTS, "title")}
    except Exception:  # not there, or not whole: decoding again is always right
        return None


def _keep(path: Path, arrays: Arrays) -> None:
    """Write the cache, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            except OSError:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
    except OSError as error:
        print(f"the decoded images are not kept for the next run: {error}")
