"""Where an image is cropped: random boxes by position, or the centre."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mae_pipe.seeding import uniforms

TRIES = 10  # of torchvision's RandomResizedCrop


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


def flips(key: int, positions: NDArray[np.int64], probability: float) -> NDArray[np.bool_]:
    """[B] True where the image is mirrored left to right."""
    return uniforms(key, positions, 1)[:, 0] < probability


def centre(width: int, height: int, size: int, share: float) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Evaluation's view: the (width, height) to resize to and the box of side ``size`` in its middle.

    The short side becomes int(size / share), 256 for 224 and 0.875, as in the official evaluation.
    """
    short = max(size, int(size / share))
    if width <= height:
        resized = short, max(size, int(short * height / width))
    else:
        resized = max(size, int(short * width / height)), short
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return resized, (left, top, left + size, top + size)
