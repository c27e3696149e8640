"""What the header of an image file says, without decoding it."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from mae_pipe.data.arrays import PIXELS
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Encoding

ORIENTATION = 0x0112  # EXIF
KEPT: dict[str, Encoding] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
MODES = {1: ("L",), 3: ("RGB", "L"), 4: ("RGBA", "CMYK")}  # that need no conversion, by channels


class Header(NamedTuple):
    """Of an image file that is kept byte for byte."""

    encoding: Encoding
    width: int
    height: int


def glance(data: bytes, channels: int) -> Header:
    """Read a header; raises ``Refusal`` where the file would have to be converted."""
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    width, height = image.size
    if width * height > PIXELS:
        raise Refusal(f"claims {width} x {height} pixels, more than {PIXELS // 10**6} megapixels")
    deep = image.format == "PNG" and data[24] == 16
    plain = image.mode in MODES.get(channels, ()) and "transparency" not in image.info
    moving = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    if deep or moving or not plain or orientation(image) != 1:
        what = "16 bits" if deep else "several frames" if moving else image.mode if not plain else "rotated"
        raise Refusal(f"to be converted: {what}, which an index cannot do")
    return Header(KEPT[str(image.format)], width, height)


def orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8; 1 where that is not said, or not readable."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the picture worse
        return 1
    return value if value in range(2, 9) else 1
