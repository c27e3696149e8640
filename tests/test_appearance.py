"""Colours of views are torchvision's, with what a position draws for each image; on any part of a batch the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as theirs

from mae_pipe import appearance
from mae_pipe.api import Batch, Crop, Method, View
from mae_pipe.appearance import changed, drawn, taps
from mae_pipe.errors import RecipeError
from mae_pipe.pixels import normalise

STRONG = (0.8, 0.8, 0.8, 0.5)
ADJUST = (theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation, theirs.adjust_hue)
VIEW = View(height=32, width=32, patch=(4, 4), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
DINO = (  # its first two views and a small one
    Crop(jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=1.0),
    Crop(jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.1, solarize=0.2),
    Crop(size=16, jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.5),
)


def noise(count: int, channels: int = 3, height: int = 33, width: int = 47) -> Tensor:
    """Half of it smooth, with pixels of no colour and of the extremes."""
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    images[::2] = images[::2].cumsum(3) / width
    images[:, :, 0], images[:, :, 1], images[:, :, 2] = 0.0, 1.0, 0.4
    return images


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("view", "tolerance"),
    [
        (Crop(jitter=(0.8, 0, 0, 0), jitter_share=1), 1e-5),
        (Crop(jitter=(0, 0.8, 0, 0), jitter_share=1), 1e-5),
        (Crop(jitter=(0, 0, 0.8, 0), jitter_share=1), 1e-5),
        (Crop(jitter=(0, 0, 0, 0.5), jitter_share=1), 1e-4),
        (Crop(grey=0.5), 1e-5),
        (Crop(blur=1.0), 1e-5),
        (Crop(blur=0.5, sigma=(0.5, 6.0)), 1e-5),
        (Crop(solarize=0.5), 1e-5),
        (Crop(jitter=STRONG, jitter_share=0.8, grey=0.2, blur=0.5, solarize=0.3), 5e-4),
    ],
)
def test_each_image_is_changed_as_torchvision_changes_it_alone(view: Crop, tolerance: float, channels: int) -> None:
    """With the same factors in the same order; what no grey image has is left out."""
    images, how = noise(40, channels), drawn(view, 1, 7, np.arange(40))
    for number, (ours, image) in enumerate(zip(changed(images.clone(), view, how), images, strict=True)):
        seen = image
        for operation in how.orders[number].tolist() if how.jittered[number] else ():
            if view.jitter[operation] and (channels == 3 or operation < 2):
                seen = ADJUST[operation](seen, float(how.factors[number, operation]))
        if how.grey[number] and channels == 3:
            seen = theirs.rgb_to_grayscale(seen, 3)
        if how.blurred[number]:
            seen = theirs.gaussian_blur(seen, [taps(47), taps(33)], [float(how.sigma[number])] * 2)
        if how.solarized[number]:
            seen = theirs.solarize(seen, 0.5)
        torch.testing.assert_close(ours, seen, atol=tolerance, rtol=0)


def test_as_many_images_are_changed_as_the_view_says() -> None:
    view, count = Crop(jitter=STRONG, grey=0.2, blur=0.1, sigma=(0.3, 1.7), solarize=0.35), 5000
    how = drawn(view, 2, 0, np.arange(count))
    for mask, share in ((how.jittered, 0.8), (how.grey, 0.2), (how.blurred, 0.1), (how.solarized, 0.35)):
        assert binomtest(int(mask.sum()), count, share).pvalue > 1e-3
    both = how.grey & how.jittered
    assert binomtest(int(both.sum()), count, 0.16).pvalue > 1e-3, "they are drawn apart"
    assert kstest(how.sigma.numpy(), "uniform", (0.3, 1.4)).pvalue > 1e-3
    for column, (low, width) in enumerate(((0.2, 1.6),) * 3 + ((-0.5, 1.0),)):
        assert kstest(how.factors[:, column].numpy(), "uniform", (low, width)).pvalue > 1e-3
    orders = Counter(map(tuple, how.orders.tolist()))
    assert len(orders) == 24
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_nothing_happens_where_shares_are_0() -> None:
    images, view = noise(30), Crop(jitter=STRONG, jitter_share=0.0)
    assert view.plain
    assert changed(images.clone(), view, drawn(view, 0, 0, np.arange(30))).equal(images)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (27, 21), (200, 200)])
def test_an_image_does_not_depend_on_the_others(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: not on the batch, nor on how many are worked on at once, nor on threads."""
    view = Crop(jitter=STRONG, grey=0.2, blur=0.5, solarize=0.3)
    images, positions = noise(5, 3, height, width), np.arange(5)
    whole = changed(images.clone(), view, drawn(view, 0, 3, positions))
    assert not whole.equal(images)
    before = torch.get_num_threads()
    for start, threads, at_once in ((1, 2, 1 << 30), (3, 1, 1), (4, 2, 1 << 18)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(appearance, "AT_ONCE", at_once)
        parts = [
            changed(images[part].clone(), view, drawn(view, 0, 3, positions[part]))
            for part in (slice(0, start), slice(start, 5))
        ]
        assert torch.cat(parts).equal(whole)
    torch.set_num_threads(before)


class Several(Method):
    """Of several views; it learns nothing."""

    def __init__(self, views: tuple[Crop, ...]) -> None:
        super().__init__()
        self.views, self.encoder = views, nn.Identity()

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack([images.mean() for images in self.images_of(batch)]).sum()


def batch_of(positions: list[int]) -> Batch:
    """As a stream gives the views of ``DINO``; pixels belong to positions."""
    draws = [np.random.default_rng(place) for place in positions]
    made = [torch.from_numpy(np.stack([d.integers(0, 256, shape, dtype=np.uint8) for d in draws]))
            for shape in ((2, 3, 32, 32), (1, 3, 16, 16))]  # fmt: skip
    where = torch.tensor(positions)
    return Batch(made[0], where, where, where, (made[1],))


def test_a_method_sees_changed_views_that_depend_on_positions_alone() -> None:
    method = Several(DINO).bind(view=VIEW, seed=4)
    whole = method.images_of(batch_of([5, 6, 7, 8, 9, 10]))
    assert [tuple(images.shape) for images in whole] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)]
    assert all(images.dtype == torch.float32 for images in whole)
    batch = batch_of([5, 6, 7, 8, 9, 10])
    mean, std = (torch.tensor(given).view(3, 1, 1) for given in (VIEW.mean, VIEW.std))
    for number, pixels in enumerate((*batch.pixels.unbind(1), batch.others[0][:, 0])):
        values = changed(pixels / 255, DINO[number], drawn(DINO[number], number, 4, np.arange(5, 11)))
        torch.testing.assert_close(whole[number], (values - mean) / std, atol=1e-5, rtol=0)
    method.eval()
    with torch.no_grad():
        for part in ([9, 10], [7, 5, 6, 8]):
            for images, all_images in zip(method.images_of(batch_of(part)), whole, strict=True):
                assert images.equal(all_images[[place - 5 for place in part]])


def test_plain_views_are_only_normalised() -> None:
    batch = batch_of([0, 1, 2])
    plain = Several((Crop(), Crop(), Crop(size=16))).bind(view=VIEW, seed=4).images_of(batch)
    mixed = Several((Crop(), DINO[1], Crop(size=16))).bind(view=VIEW, seed=4).images_of(batch)
    for number, pixels in enumerate((*batch.pixels.unbind(1), batch.others[0][:, 0])):
        assert plain[number].equal(normalise(pixels, VIEW.mean, VIEW.std))
        assert mixed[number].equal(plain[number]) == (number != 1)


@pytest.mark.parametrize(
    ("views", "change", "words"),
    [
        (DINO, {"mean": (0.5,) * 4, "std": (0.2,) * 4}, "for colour or grey images, not for 4 channels"),
        ((Crop(), Crop(size=18)), {}, "views of 18 x 18 pixels, which patches of 4 x 4 do not tile"),
    ],
)
def test_views_that_cannot_be_are_refused(views: tuple[Crop, ...], change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Several(views).bind(view=replace(VIEW, **change), seed=0)


def test_a_blur_reaches_over_a_tenth_of_a_side() -> None:
    assert [taps(side) for side in (28, 64, 96, 128, 224, 518)] == [3, 7, 9, 13, 23, 51]
