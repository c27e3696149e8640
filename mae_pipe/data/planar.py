"""Images as planes of YCbCr 4:2:0 without compression: half the bytes of RGB, and nothing to decode.

The luma plane, then both of chroma at half the sides (rounded up), rows one after the other; the colours are
JPEG's (BT.601, full range). A view resizes each plane on its own and makes colours of the result.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data.crops import Cut
from mae_pipe.errors import DataError


def stored(image: Image.Image) -> bytes:
    """The planes of an image; the mean of four pixels is one sample of chroma."""
    luma, *chroma = image.convert("RGB").convert("YCbCr").split()
    return b"".join([luma.tobytes(), *(plane.reduce(2).tobytes() for plane in chroma)])


def planes(data: bytes | memoryview, width: int, height: int) -> list[Image.Image]:
    """Luma and both planes of chroma."""
    half = (width + 1) // 2, (height + 1) // 2
    flat, found = np.frombuffer(data, np.uint8), []
    if flat.size != width * height + 2 * half[0] * half[1]:
        raise DataError(f"planes of {width} x {height} pixels have another number of bytes than {flat.size}")
    for across, down in ((width, height), half, half):
        found.append(Image.fromarray(flat[: across * down].reshape(down, across)))
        flat = flat[across * down :]
    return found


def picture(data: bytes | memoryview, width: int, height: int) -> Image.Image:
    """The whole image in RGB, at its own size."""
    luma, *chroma = planes(data, width, height)
    box = 0.0, 0.0, width / 2, height / 2
    wide = [plane.resize((width, height), Image.Resampling.BICUBIC, box) for plane in chroma]
    return Image.fromarray(_colours(luma, *wide))


def view(
    data: bytes | memoryview, width: int, height: int, cut: Cut, size: tuple[int, int], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """[H, W, 3], ``size``: the cut of an image, as the C extension makes it."""
    left, top, right, bottom = cut.box if cut.resized is None else (0, 0, width, height)
    made = []
    for plane, each in zip(planes(data, width, height), (1, 2, 2), strict=True):
        part = plane.crop((left // each, top // each, math.ceil(right / each), math.ceil(bottom / each)))
        begin = left / each - left // each, top / each - top // each
        box = *begin, begin[0] + (right - left) / each, begin[1] + (bottom - top) / each
        part = part.resize(cut.resized or (size[1], size[0]), resampling, box)
        part = part if cut.resized is None else part.crop(cut.box)
        made.append(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.mirrored else part)
    return _colours(*made)


def _colours(luma: Image.Image, blue: Image.Image, red: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3] RGB, in libjpeg's integers."""
    y, cb, cr = (np.asarray(plane).astype(np.int32) for plane in (luma, blue, red))
    cb, cr = cb - 128, cr - 128
    bands = [
        y + ((91881 * cr + 32768) >> 16),
        y + ((-22554 * cb - 46802 * cr + 32768) >> 16),
        y + ((116130 * cb + 32768) >> 16),
    ]
    return np.stack(bands, axis=2).clip(0, 255).astype(np.uint8)
