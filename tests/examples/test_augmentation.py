"""Random flips and shifts of images: every image is one of those that a loop makes."""

import pytest
import torch
import torch.nn.functional as F

from examples.common.augmentation import SAFE, flipped_and_shifted, transform
from examples.common.data import SOURCES


def as_bytes(image):
    return image.contiguous().numpy().tobytes()


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 8, 8)])
def test_every_image_is_a_flip_and_a_shift_of_its_own_and_all_of_them_come(shape):
    image = torch.randn(shape)
    padded = F.pad(image, [2] * 4)
    crops = [padded[:, i : i + shape[1], j : j + shape[2]] for i in range(5) for j in range(5)]
    expected = {as_bytes(each) for crop in crops for each in (crop, crop.flip(-1))}
    found = flipped_and_shifted(image.expand(2000, *shape), 2)
    assert {as_bytes(each) for each in found} == expected


def test_images_stay_in_their_order_and_as_they_are():
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 9, 9)
    before = x.clone()
    moved = flipped_and_shifted(x)
    assert torch.equal(x, before)
    assert torch.equal(moved[:, 0, 4, 4], torch.arange(6.0))


def test_without_a_shift_it_only_flips():
    x = torch.randn(64, 1, 2, 3)
    moved = flipped_and_shifted(x, 0)
    flips = [torch.equal(a, b.flip(-1)) for a, b in zip(moved, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(moved, x, strict=True)]
    assert all(a != b for a, b in zip(flips, same, strict=True))
    assert 10 < sum(flips) < 54


def test_without_mirroring_it_only_moves():
    image = torch.randn(1, 4, 4)
    padded = F.pad(image, [1] * 4)
    crops = {as_bytes(padded[:, i : i + 4, j : j + 4]) for i in range(3) for j in range(3)}
    assert {as_bytes(each) for each in flipped_and_shifted(image.expand(500, 1, 4, 4), 1, flip=False)} == crops


def test_a_transform_moves_and_adds_noise_as_asked():
    x = torch.randn(400, 3, 8, 8)
    assert torch.equal(transform("cifar10", False, 0.0)(x), x)
    noise = transform("cifar10", False, 0.5)(x) - x
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)  # of 76,800 numbers; five standard errors are 0.013
    moved = transform("mnist", True, 0.0)(x)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(moved, x)
    assert set(SAFE) == {"digits", *SOURCES}
