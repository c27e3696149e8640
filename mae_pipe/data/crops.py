"""Where an image is cropped: random boxes by position (two rules), boxes of a fixed size, or the centre."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae_pipe.seeding import uniforms

TRIES = 10  # of torchvision's RandomResizedCrop
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Cut(NamedTuple):
    """How a view is cut from an image.

    Attributes:
        box: of the image, to be resized; or of the resized image, where ``resized`` is given.
        resized: (width, height) that the whole image is resized to first.
        mirrored: left to right, afterwards.
    """

    box: Box
    resized: tuple[int, int] | None = None
    mirrored: bool = False


def random_boxes(
    key: int,
    positions: NDArray[np.int64],
    widths: NDArray[np.integer],
    heights: NDArray[np.integer],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """[B, 4] boxes (left, top, right, bottom), distributed as torchvision's RandomResizedCrop.

    Ten tries of an area in ``scale`` and a log-uniform width/height in ``ratio``; where none
    fits, the largest centre box within ``ratio``.
    """
    batch = len(positions)
    u = uniforms(key, positions, 2 * TRIES + 2)  # [B, 22]
    w, h = widths.astype(np.float64)[:, None], heights.astype(np.float64)[:, None]  # [B, 1]
    area = w * h * (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES])  # [B, 10]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = np.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])  # [B, 10]
    tried_w, tried_h = np.round(np.sqrt(area * shape)), np.round(np.sqrt(area / shape))  # [B, 10]
    fits = (tried_w > 0) & (tried_w <= w) & (tried_h > 0) & (tried_h <= h)
    first, rows = fits.argmax(axis=1), np.arange(batch)
    found = fits[rows, first]
    centre_w = np.where(w / h > ratio[1], np.round(h * ratio[1]), w)[:, 0]
    centre_h = np.where(w / h < ratio[0], np.round(w / ratio[0]), h)[:, 0]
    box_w = np.where(found, tried_w[rows, first], np.maximum(centre_w, 1))
    box_h = np.where(found, tried_h[rows, first], np.maximum(centre_h, 1))
    spare_w, spare_h = w[:, 0] - box_w, h[:, 0] - box_h
    left = np.where(found, np.floor(u[:, -2] * (spare_w + 1)), spare_w // 2)
    top = np.where(found, np.floor(u[:, -1] * (spare_h + 1)), spare_h // 2)
    return np.stack([left, top, left + box_w, top + box_h], axis=1).astype(np.int64)


def single_draws(
    key: int,
    positions: NDArray[np.int64],
    widths: NDArray[np.integer],
    heights: NDArray[np.integer],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """[B, 4] boxes as ``random_boxes``, by the rule that MAE's linear probe has from its TensorFlow original.

    One draw and no other tries: what does not fit is cut off at the image's sides.
    """
    u = uniforms(key, positions, 4)  # [B, 4]
    w, h = widths.astype(np.float64), heights.astype(np.float64)  # [B]
    area = w * h * (scale[0] + (scale[1] - scale[0]) * u[:, 0])
    shape = np.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[:, 1])
    box_w = np.clip(np.round(np.sqrt(area * shape)), 1, w)
    box_h = np.clip(np.round(np.sqrt(area / shape)), 1, h)
    left, top = np.floor(u[:, 2] * (w - box_w + 1)), np.floor(u[:, 3] * (h - box_h + 1))
    return np.stack([left, top, left + box_w, top + box_h], axis=1).astype(np.int64)


def flips(key: int, positions: NDArray[np.int64], probability: float) -> NDArray[np.bool_]:
    """[B] True where the image is mirrored left to right."""
    return uniforms(key, positions, 1)[:, 0] < probability


def centre(width: int, height: int, size: tuple[int, int], share: float) -> Cut:
    """Evaluation's view: resized, and a box of ``size`` (height, width) in the middle.

    A square's short side becomes int(side / share), 256 for 224 and 0.875, as in the official evaluation;
    a box that is not square takes up ``share`` of the side that is the tightest.
    """
    resized = _covering(width, height, size, share)
    left, top = round((resized[0] - size[1]) / 2), round((resized[1] - size[0]) / 2)
    return Cut((left, top, left + size[1], top + size[0]), resized)


def fixed(width: int, height: int, size: tuple[int, int], share: float, u: tuple[float, float]) -> Cut:
    """Resized as for ``centre``, and a box of ``size`` at a place drawn by ``u``: torchvision's Resize, RandomCrop."""
    resized = _covering(width, height, size, share)
    left = int(u[0] * (resized[0] - size[1] + 1))
    top = int(u[1] * (resized[1] - size[0] + 1))
    return Cut((left, top, left + size[1], top + size[0]), resized)


def _covering(width: int, height: int, size: tuple[int, int], share: float) -> tuple[int, int]:
    """The (width, height) of an image resized so that it just covers ``size`` / ``share``."""
    high, wide = (max(side, int(side / share)) for side in size)
    if width * high <= height * wide:
        return wide, max(size[0], int(wide * height / width))
    return max(size[1], int(high * width / height)), high
