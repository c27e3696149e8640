"""Random erasing is timm's in distribution, exact inside and outside of its box, and belongs to the position."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mae_pipe import recipe
from mae_pipe.erasing import boxes, erased, mask_of
from mae_pipe.errors import RecipeError
from mae_pipe.pixels import normalise
from mae_pipe.rng import Rng
from mae_pipe.seeding import key
from tests.test_classification import WEIGHTS, batch, task

COUNT = 6000


def timms(height: int, width: int) -> Tensor:
    """[n, 4]: the boxes of timm's own, read off the pixels that changed."""
    random.seed(0)
    erasing = RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")
    found = []
    for _ in range(COUNT):
        image = torch.zeros(1, height, width)
        erasing(image)
        rows, cols = image[0].any(dim=1).nonzero()[:, 0], image[0].any(dim=0).nonzero()[:, 0]
        if len(rows):
            top, left = int(rows[0]), int(cols[0])
            found.append([top, left, int(rows[-1]) - top + 1, int(cols[-1]) - left + 1])
    return torch.tensor(found)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 64)])
def test_boxes_are_distributed_as_timms(height: int, width: int) -> None:
    ours = boxes(Rng(key(0, "erase"), torch.arange(COUNT)), height, width, 0.25)
    ours, theirs = ours[ours[:, 2] > 0], timms(height, width)
    deviation = (COUNT * 0.25 * 0.75) ** 0.5
    assert abs(len(ours) - 0.25 * COUNT) < 4 * deviation
    assert abs(len(theirs) - 0.25 * COUNT) < 4 * deviation
    area, aspect = (lambda b: (b[:, 2] * b[:, 3]).float()), (lambda b: b[:, 2] / b[:, 3])
    for what in (area, aspect, lambda b: b[:, 0].float(), lambda b: b[:, 1].float()):
        assert ks_2samp(what(ours).numpy(), what(theirs).numpy(), method="asymp").pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_pixels_become_normal_noise_inside_and_stay_as_they_are_outside() -> None:
    images = torch.rand(400, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    given, place = images.clone(), torch.arange(400)
    found = erased(images, Rng(7, place), 0.5)
    inside = mask_of(boxes(Rng(7, place), 24, 20, 0.5), 24, 20)[:, None].expand_as(images)
    assert torch.equal(images, given), "the images themselves are left alone"
    assert torch.equal(found[~inside], images[~inside])
    assert kstest(found[inside].numpy(), "norm").pvalue > 1e-3
    noise = found[inside]
    assert len(noise.unique()) > 0.99 * len(noise), "a number for every pixel and channel"
    of_boxes = inside[:, 0].flatten(1).sum(dim=1)
    assert 0.4 < (of_boxes > 0).float().mean() < 0.6
    for mask, (top, left, high, wide) in zip(inside[:, 0], boxes(Rng(7, place), 24, 20, 0.5).tolist(), strict=True):
        by_hand = torch.zeros(24, 20, dtype=torch.bool)
        by_hand[top : top + high, left : left + wide] = True
        assert torch.equal(mask, by_hand)


def test_what_is_erased_belongs_to_the_position() -> None:
    images = torch.zeros(8, 3, 16, 16)
    whole = erased(images, Rng(5, torch.arange(8)), 0.9)
    assert torch.equal(erased(images[3:], Rng(5, torch.arange(3, 8)), 0.9), whole[3:])
    assert not torch.equal(erased(images, Rng(6, torch.arange(8)), 0.9), whole)


def test_probabilities_of_0_and_1_erase_none_and_all() -> None:
    images = torch.zeros(50, 1, 32, 32)
    assert not erased(images, Rng(0, torch.arange(50)), 0.0).any()
    assert erased(images, Rng(0, torch.arange(50)), 1.0).flatten(1).any(dim=1).all()


def test_some_normal_numbers_are_those_of_all() -> None:
    images, places = torch.tensor([0, 3, 3]), torch.tensor([11, 0, 7])
    some, every = Rng(2, torch.arange(4)), Rng(2, torch.arange(4))
    some.uniform(3), every.uniform(3)
    assert torch.equal(some.normal_at(images, places, 12), every.normal(12)[images, places])
    assert torch.equal(some.uniform(2), every.uniform(2)), "and what comes after them too"


def test_a_task_erases_normalised_images_in_training_alone() -> None:
    tuned, given = task("finetune", WEIGHTS, data=recipe.Data(size=16, erase=0.9)), batch()
    seen: list[Tensor] = []
    tuned.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tuned(given), tuned.eval()(given), tuned.train()(given, mode="metrics")
    changed, plain, measured = seen
    assert torch.equal(plain, normalise(given.pixels, tuned.mean, tuned.std))
    assert torch.equal(plain, measured)
    assert torch.equal(changed, erased(plain, Rng(key(0, "erase"), given.positions), 0.9))
    assert not torch.equal(changed, plain)


def test_pretraining_has_none() -> None:
    with pytest.raises(RecipeError, match=r"data.erase is for probe and finetune"):
        recipe.load("mae_vit_base_patch16", ["data.erase=0.25"])
