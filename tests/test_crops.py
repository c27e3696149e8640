"""Crops are torchvision's in distribution and Pillow's in pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import resized_crop

from mae_pipe.data import crops, decode
from mae_pipe.data.sample import Stored
from mae_pipe.seeding import key


def boxes(count: int, width: int, height: int) -> np.ndarray:
    positions = np.arange(count)
    sizes = np.full(count, width), np.full(count, height)
    return crops.random_boxes(key(0, "crop"), positions, *sizes, (0.2, 1.0), (3 / 4, 4 / 3))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (200, 500)])
def test_random_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = boxes(4000, width, height)
    top, left, h, w = theirs.T
    for a, b in [
        (ours[:, 0] / width, left / width),
        (ours[:, 1] / height, top / height),
        ((ours[:, 2] - ours[:, 0]) / width, w / width),
        ((ours[:, 3] - ours[:, 1]) / height, h / height),
    ]:
        assert (
            np.abs(np.quantile(a, [0.1, 0.25, 0.5, 0.75, 0.9]) - np.quantile(b, [0.1, 0.25, 0.5, 0.75, 0.9])).max()
            < 0.03
        )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 1), (2000, 10), (10, 2000)])
def test_boxes_lie_inside_images_of_any_shape(width: int, height: int) -> None:
    b = boxes(200, width, height)
    assert (b[:, :2] >= 0).all()
    assert (b[:, 2] <= width).all()
    assert (b[:, 3] <= height).all()
    assert (b[:, 2:] > b[:, :2]).all()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_crop_equals_torchvisions_bit_for_bit() -> None:
    image = noise(93, 71)
    ours = decode.cropped(image, (10, 5, 70, 60), 32, flip=False)
    theirs = resized_crop(image, 5, 10, 55, 60, [32, 32], InterpolationMode.BICUBIC)
    assert np.array_equal(ours, np.asarray(theirs))
    assert np.array_equal(decode.cropped(image, (10, 5, 70, 60), 32, flip=True), np.asarray(theirs)[:, ::-1])


@pytest.mark.parametrize(("width", "height"), [(93, 71), (71, 93), (256, 256), (20, 31), (400, 97)])
def test_the_centre_view_equals_torchvisions_resize_and_centre_crop(width: int, height: int) -> None:
    image = noise(width, height)
    theirs = CenterCrop(56)(Resize(64, InterpolationMode.BICUBIC)(image))
    assert np.array_equal(decode.centred(image, 56, 0.875), np.asarray(theirs))


def test_encoded_and_raw_images_decode_to_the_same_pixels() -> None:
    image = noise(9, 7)
    file = io.BytesIO()
    image.save(file, "PNG")
    encoded = Stored(file.getvalue(), "png", 9, 7)
    raw = Stored(memoryview(np.asarray(image).tobytes()), "raw", 9, 7)
    assert np.array_equal(np.asarray(decode.picture(encoded)), np.asarray(decode.picture(raw)))
