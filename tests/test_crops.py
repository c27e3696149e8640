"""Crops are torchvision's in distribution and Pillow's in pixels."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import crop, resized_crop

from mae_pipe.data import crops, decode
from mae_pipe.data.sample import Stored
from mae_pipe.seeding import key, uniforms


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


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_crop_equals_torchvisions_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    image = noise(93, 71)
    theirs = np.asarray(resized_crop(image, 5, 10, 55, 60, list(size), InterpolationMode(name)))
    for mirrored in (False, True):
        ours = decode.view(image, crops.Cut((10, 5, 70, 60), mirrored=mirrored), size, decode.FILTERS[name])
        assert np.array_equal(ours, theirs[:, ::-1] if mirrored else theirs)


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(("width", "height"), [(93, 71), (71, 93), (256, 256), (20, 31), (400, 97)])
def test_the_centre_view_equals_torchvisions_resize_and_centre_crop(width: int, height: int, name: str) -> None:
    image = noise(width, height)
    theirs = CenterCrop(56)(Resize(64, InterpolationMode(name))(image))
    assert np.array_equal(decode.centred(image, 56, 0.875, decode.FILTERS[name]), np.asarray(theirs))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 1))
@settings(max_examples=200, deadline=None)
def test_a_view_that_is_not_square_is_the_centre_and_keeps_the_images_proportions(
    width: int, height: int, high: int, wide: int, share: float
) -> None:
    cut = crops.centre(width, height, (high, wide), share)
    assert cut.resized is not None
    left, top, right, bottom = cut.box
    assert (right - left, bottom - top) == (wide, high)
    assert 0 <= left <= right <= cut.resized[0]
    assert 0 <= top <= bottom <= cut.resized[1]
    assert abs(left - (cut.resized[0] - right)) <= 1
    assert abs(top - (cut.resized[1] - bottom)) <= 1
    frame = max(wide, int(wide / share)), max(high, int(high / share))
    factors = cut.resized[0] / width, cut.resized[1] / height
    assert cut.resized[0] == frame[0] or cut.resized[1] == frame[1], "the tightest side is what was asked for"
    grain = 1 / min(width, height) + 1e-9  # sizes are whole pixels
    assert abs(factors[0] - factors[1]) <= grain or high == cut.resized[1] or wide == cut.resized[0]


def test_a_fixed_crop_is_torchvisions_resize_and_a_box_at_every_place_equally_often() -> None:
    image = noise(90, 60)
    resized = Resize(32, InterpolationMode.BICUBIC)(image)  # 48 x 32
    u = uniforms(key(0, "crop"), np.arange(4000), 2)
    cuts = [crops.fixed(90, 60, (28, 28), 0.875, tuple(pair)) for pair in u.tolist()]
    places = np.array([cut.box[:2] for cut in cuts])
    assert set(map(tuple, places.tolist())) == {(left, top) for left in range(21) for top in range(5)}, "RandomCrop's"
    counts = np.unique(places, axis=0, return_counts=True)[1]
    expected = len(cuts) / counts.size
    assert chisquare(counts).pvalue > 1e-3, f"about {expected:.0f} each"
    for cut in cuts[:5]:
        theirs = crop(resized, cut.box[1], cut.box[0], 28, 28)
        assert np.array_equal(decode.view(image, cut, (28, 28)), np.asarray(theirs))


def test_many_channels_are_resized_each_as_a_grey_image() -> None:
    bands = np.random.default_rng(0).integers(0, 256, (41, 57, 6), dtype=np.uint8)
    for cut in (crops.Cut((5, 3, 50, 40), None, True), crops.centre(57, 41, (16, 24), 0.8)):
        seen = decode.view(bands, cut, (16, 24))
        assert seen.shape == (16, 24, 6)
        for band in range(6):
            grey = Image.fromarray(np.ascontiguousarray(bands[..., band]))
            assert np.array_equal(seen[..., band], decode.view(grey, cut, (16, 24))[..., 0])


def test_encoded_and_raw_images_decode_to_the_same_pixels() -> None:
    image = noise(9, 7)
    file = io.BytesIO()
    image.save(file, "PNG")
    encoded = Stored(file.getvalue(), "png", 9, 7)
    raw = Stored(memoryview(np.asarray(image).tobytes()), "raw", 9, 7)
    assert np.array_equal(np.asarray(decode.picture(encoded)), np.asarray(decode.picture(raw)))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (90, 400), (2, 1)])
def test_tf_boxes_are_distributed_as_one_draw_that_is_cut_off_at_the_image(width: int, height: int) -> None:
    """The rule of the official linear probe, by torch's generator."""
    count, low, high = 8000, 0.08, 1.0
    torch.manual_seed(0)
    area = width * height * torch.empty(count).uniform_(low, high).double()
    shape = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3)).double().exp()
    w = (area * shape).sqrt().round().clamp(1, width)
    h = (area / shape).sqrt().round().clamp(1, height)
    left = (torch.rand(count, dtype=torch.float64) * (width - w + 1)).floor()
    top = (torch.rand(count, dtype=torch.float64) * (height - h + 1)).floor()
    sizes = np.full(count, width), np.full(count, height)
    ours = crops.single_draws(key(0, "crop"), np.arange(count), *sizes, (low, high), (3 / 4, 4 / 3))
    for mine, theirs in zip(ours.T, (left, top, left + w, top + h), strict=True):
        assert ks_2samp(mine, theirs.numpy(), method="asymp").pvalue > 1e-3
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] <= [width, height]).all()
    assert (ours[:, 2:] > ours[:, :2]).all()
    if (width, height) == (90, 400):
        assert (ours[:, 2] - ours[:, 0] == 90).mean() > 0.5, "often cut off: another rule than ten tries"


def test_a_tf_box_belongs_to_the_position() -> None:
    sizes = np.full(50, 120), np.full(50, 80)
    among = crops.single_draws(7, np.arange(50), *sizes, (0.08, 1.0), (3 / 4, 4 / 3))
    alone = crops.single_draws(7, np.array([31]), sizes[0][:1], sizes[1][:1], (0.08, 1.0), (3 / 4, 4 / 3))
    assert np.array_equal(alone[0], among[31])
