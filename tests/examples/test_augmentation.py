"""Random flips and shifts of images: every image is one of those that a loop makes."""

import pytest
import torch
import torch.nn.functional as F

from examples.common.augmentation import flipped_and_shifted


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
