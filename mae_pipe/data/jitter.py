"""Colour jitter: torchvision's ColorJitter, with factors and order that a position decides.

On 8-bit pixels in the decoding threads: Pillow's arithmetic, as torchvision's on images, so that what
a step sees depends neither on the device nor on how a batch was split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from mae_pipe.seeding import uniforms

Strengths = tuple[float, float, float, float]  # of brightness, contrast, saturation, hue
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
HUE = 3


def draw(key: int, positions: NDArray[np.int64], strengths: Strengths) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """[B, 4] orders of the four operations, and their [B, 4] factors.

    A factor is uniform in [max(0, 1 - strength), 1 + strength]; hue's in [-strength, strength].
    """
    u = uniforms(key, positions, 8)  # [B, 8]
    order = np.argsort(u[:, :4], axis=1, kind="stable")
    strength = np.array(strengths)
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = middle - strength, middle + strength
    low[:HUE] = np.maximum(low[:HUE], 0.0)
    return order, low + (high - low) * u[:, 4:]


def jittered(
    pixels: NDArray[np.uint8], order: NDArray[np.int64], factors: NDArray[np.float64], strengths: Strengths
) -> NDArray[np.uint8]:
    """[H, W, C] with C = 1 or 3, after the operations whose strength is not 0."""
    grey = pixels.shape[2] == 1
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    for operation in order.tolist():
        if strengths[operation] and not (grey and operation >= HUE - 1):  # grey has neither saturation nor hue
            factor = float(factors[operation])
            image = _turned(image, factor) if operation == HUE else ENHANCERS[operation](image).enhance(factor)
    changed = np.asarray(image)
    return changed[..., None] if grey else changed


def _turned(image: Image.Image, share: float) -> Image.Image:
    """Every hue turned by ``share`` of the whole circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray((np.asarray(hue).astype(np.int16) + int(share * 255)).astype(np.uint8))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
