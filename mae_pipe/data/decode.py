"""Stored bytes -> the pixels of a crop, exactly as Pillow makes them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data.crops import centre
from mae_pipe.data.sample import Stored

FORMATS = ("JPEG", "PNG", "WEBP")  # no other decoder is ever tried


def picture(stored: Stored) -> Image.Image:
    """The whole image, RGB."""
    if stored.encoding == "raw":
        pixels = np.frombuffer(stored.data, np.uint8)
        return Image.frombuffer("RGB", (stored.width, stored.height), pixels, "raw", "RGB", 0, 1)
    return Image.open(io.BytesIO(stored.data), formats=FORMATS).convert("RGB")


def cropped(image: Image.Image, box: tuple[int, int, int, int], size: int, flip: bool) -> NDArray[np.uint8]:
    """[S, S, 3]: a box resized by antialiased bicubic; mirrored where ``flip``."""
    # A box of the wanted size needs no arithmetic; Pillow copies it.
    part = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def centred(image: Image.Image, size: int, share: float) -> NDArray[np.uint8]:
    """[S, S, 3]: resized, then cropped in the middle (``crops.centre``)."""
    resized, box = centre(*image.size, size, share)
    return np.asarray(image.resize(resized, Image.Resampling.BICUBIC).crop(box))
