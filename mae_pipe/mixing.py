"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a micro-batch with itself in reverse order, as timm's.

What is drawn belongs to the first position of the micro-batch. Its images need not be an even number: the one in the
middle is then mixed with itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from timm.data.mixup import mixup_target
from torch import Tensor

from mae_pipe.seeding import key
from mae_pipe.tables import Mixing


class Mix(NamedTuple):
    """How one micro-batch is mixed.

    Attributes:
        share: what is left of an image and its label; of the other one the rest.
        box: top, bottom, left, right of the part that is the other image's (CutMix); None: all pixels are mixed.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


class Mixer:
    """Labels as shares of classes, and images mixed as they are.

    Args:
        smoothing: share of a label that is spread over all classes.
        seed: of the run.
    """

    def __init__(self, mixing: Mixing, *, classes: int, smoothing: float, seed: int) -> None:
        self._mixing, self._classes, self._smoothing = mixing, classes, smoothing
        self._key = key(seed, "mixing")

    def __call__(self, images: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] and [B] int64 classes -> mixed images and [B, classes] float32."""
        height, width = images.shape[-2:]
        drawn = self.draw(int(positions[0]), height, width)
        return mixed(images, drawn), self.shares(labels, drawn.share)

    def shares(self, labels: Tensor, share: float = 1.0) -> Tensor:
        """[B] int64 classes -> [B, classes] float32, smoothed and mixed."""
        made: Tensor = mixup_target(labels, self._classes, share, self._smoothing)  # type: ignore[no-untyped-call]
        return made

    def draw(self, position: int, height: int, width: int) -> Mix:
        """For the micro-batch that begins at ``position``; a box that the image's sides cut off counts as it is."""
        table = self._mixing
        draws = np.random.Generator(np.random.Philox(key=np.array([self._key, position], np.uint64)))
        chosen, switched, *centre = draws.random(4).tolist()
        if chosen >= table.probability:
            return Mix(1.0)
        cut = bool(table.cutmix) and (not table.mixup or switched < table.switch)
        alpha = table.cutmix if cut else table.mixup
        share = float(draws.beta(alpha, alpha))
        if not cut:
            return Mix(share)
        box = box_of(share, height, width, (int(centre[0] * height), int(centre[1] * width)))
        return Mix(1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width), box)


def box_of(share: float, height: int, width: int, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the box around ``centre`` that leaves ``share`` of an image, inside of it."""
    found: list[int] = []
    for side, middle in zip((height, width), centre, strict=True):
        cut = int(side * math.sqrt(1 - share))
        found += [max(0, middle - cut // 2), min(side, middle + (cut + 1) // 2)]
    return found[0], found[1], found[2], found[3]


def mixed(images: Tensor, mix: Mix) -> Tensor:
    """[B, C, H, W] with their mirror image in the batch."""
    if mix.box is None:
        return images if mix.share == 1 else images.mul(mix.share).add_(images.flip(0).mul_(1 - mix.share))
    top, bottom, left, right = mix.box
    changed = images.clone()
    changed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return changed
