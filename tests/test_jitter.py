"""Colour jitter is torchvision's, with factors and order that the position alone decides."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, kstest
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as theirs

from mae_pipe import recipe
from mae_pipe.data import jitter
from mae_pipe.errors import RecipeError
from mae_pipe.seeding import key

TABLE_1E = (0.4, 0.4, 0.4, 0.1)
ADJUST = (theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation, theirs.adjust_hue)


def noise(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)


def test_the_pixels_are_torchvisions_with_the_same_factors_in_the_same_order() -> None:
    pixels = noise(3)
    orders, factors = jitter.draw(key(0, "jitter"), np.arange(50), (0.8, 0.8, 0.8, 0.5))
    for order, factor in zip(orders, factors, strict=True):
        image = Image.fromarray(pixels)
        for operation in order.tolist():
            image = ADJUST[operation](image, float(factor[operation]))
        ours = jitter.jittered(pixels, order, factor, (0.8, 0.8, 0.8, 0.5))
        assert np.array_equal(ours, np.asarray(image))


def test_grey_images_change_in_brightness_and_contrast_as_torchvisions() -> None:
    pixels = noise(1)
    orders, factors = jitter.draw(key(1, "jitter"), np.arange(10), TABLE_1E)
    for order, factor in zip(orders, factors, strict=True):
        image = Image.fromarray(pixels[..., 0])
        for operation in order.tolist():
            image = ADJUST[operation](image, float(factor[operation]))
        ours = jitter.jittered(pixels, order, factor, TABLE_1E)
        assert ours.shape == (20, 30, 1)
        assert np.array_equal(ours[..., 0], np.asarray(image))


def test_a_strength_of_0_leaves_its_operation_out() -> None:
    pixels = noise(3)
    orders, factors = jitter.draw(key(0, "jitter"), np.arange(1), (0.0, 0.0, 0.9, 0.0))
    ours = jitter.jittered(pixels, orders[0], factors[0], (0.0, 0.0, 0.9, 0.0))
    alone = theirs.adjust_saturation(Image.fromarray(pixels), float(factors[0, 2]))
    assert np.array_equal(ours, np.asarray(alone))
    assert not np.array_equal(ours, pixels)


@pytest.mark.parametrize("strengths", [TABLE_1E, (1.5, 0.2, 1.0, 0.5)])
def test_factors_and_orders_are_distributed_as_torchvisions(strengths: tuple[float, float, float, float]) -> None:
    orders, factors = jitter.draw(key(0, "jitter"), np.arange(6000), strengths)
    ranges = ColorJitter(*strengths)
    for column, (low, high) in enumerate((ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)):
        assert kstest(factors[:, column], "uniform", (low, high - low)).pvalue > 1e-3
    counts = Counter(map(tuple, orders.tolist()))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_what_is_drawn_belongs_to_the_position() -> None:
    alone = jitter.draw(key(3, "jitter"), np.array([17]), TABLE_1E)
    among = jitter.draw(key(3, "jitter"), np.arange(100), TABLE_1E)
    other = jitter.draw(key(4, "jitter"), np.arange(100), TABLE_1E)
    assert np.array_equal(alone[0][0], among[0][17])
    assert np.array_equal(alone[1][0], among[1][17])
    assert not np.array_equal(among[1], other[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("data.crop=none",), "no augmentation at all"),
        (("data.mean=[0.1, 0.2]", "data.std=[1.0, 1.0]"), "not for 2 channels"),
        (("data.jitter=[0.4, 0.4, 0.4, 0.6]",), "less than or equal to 0.5"),
        (("data.jitter=[-0.1, 0.4, 0.4, 0.1]",), "greater than or equal to 0"),
    ],
)
def test_jitter_that_makes_no_sense_is_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load("mae_vit_base_patch16", ("data.jitter=[0.4, 0.4, 0.4, 0.1]", *changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.size=[224, 0]", "data.size: expected a number of pixels, or \\[height, width\\]"),
        ('data.size="big"', "data.size: expected a number of pixels"),
        ("data.mean=[0.5]", "mean has 1 and std 3 numbers"),
        ("data.std=[0.0, 1.0, 1.0]", "greater than 0"),
        ("data.size=[224, 100]", "must be a multiple of encoder.patch"),
    ],
)
def test_sizes_and_statistics_that_fit_no_image_are_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load("mae_vit_base_patch16", (change,))


def test_a_recipe_tells_height_width_and_channels() -> None:
    data = recipe.load("mae_vit_base_patch16", ("data.size=[64, 96]", "data.mean=[0.4]", "data.std=[0.2]")).data
    assert (data.height, data.width, data.channels, data.sides) == (64, 96, 1, (64, 96))
