"""The picture in an image file: 8 bits, in as many channels as are wanted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data.arrays import Range, scaled
from mae_pipe.data.refusal import Refusal

NAMES = {"P": "palette", "CMYK": "cmyk", "YCbCr": "ycbcr", "RGBX": "rgbx"}


def picture(
    data: bytes, image: Image.Image, kind: str, channels: int, values: Range | None, converted: list[str]
) -> Image.Image:
    """Of anything but a JPEG."""
    if kind == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums, which decoding alone does not look at
    if kind not in ("PNG", "WEBP"):
        converted.append(kind.lower())
    if getattr(image, "n_frames", 1) > 1:
        converted.append("first page" if kind == "TIFF" else "first frame")
    deep = kind == "PNG" and data[24] == 16
    if deep or image.mode.startswith("I;16") or (kind == "PPM" and image.mode == "I"):
        converted.append("16-bit" if values is None else "uint16")
    if deep and image.mode in ("RGB", "RGBA"):
        found = _exact_16_bit(data, image.mode, values)
    else:
        image.load()
        found = image
    if found.mode.startswith("I;16") or (kind == "PPM" and found.mode == "I"):
        found = Image.fromarray(_eight_bits(np.asarray(found).astype(np.uint32), values))
    return of_channels(found, channels, converted)


def of_channels(found: Image.Image, channels: int, converted: list[str]) -> Image.Image:
    """Grey for 1 channel; RGB or grey for 3; RGBA or CMYK for 4. Nothing else is in an image file."""
    if channels == 4:
        return _of_four(found, converted)
    if channels not in (1, 3):
        raise Refusal(f"wrong channels: {len(found.getbands())}, not {channels}")
    found = _opaque(found, converted)
    if channels == 1 and found.mode == "RGB":
        red, green, blue = found.split()
        if not red.tobytes() == green.tobytes() == blue.tobytes():
            raise Refusal("wrong channels: 3, not 1")
        converted.append("grey")
        return red
    return found


def _opaque(found: Image.Image, converted: list[str]) -> Image.Image:
    """RGB or grey, without alpha (on white), palette or other colour spaces."""
    mode = found.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in found.info:
        converted.append("alpha")
        grey = mode in ("L", "LA", "La", "1")
        layer = found.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("L" if grey else "RGB")
    if mode in ("RGB", "L"):
        return found
    if mode == "1":
        converted.append("bilevel")
        return found.convert("L")
    if mode not in NAMES:
        raise Refusal(
            f"pixels of the kind {mode!r}, which have no agreed range; convert the file to 8 or 16 bits"
            + (", or give --value-range" if mode in ("I", "F") else "")
        )
    converted.append(NAMES[mode])
    return found.convert("RGB")


def _of_four(found: Image.Image, converted: list[str]) -> Image.Image:
    if found.mode in ("RGBA", "CMYK"):
        return found
    if found.mode in ("P", "PA") and "transparency" in found.info:
        converted.append("palette")
        return found.convert("RGBA")
    raise Refusal(
        f"wrong channels: {len(found.convert('RGB').getbands() if found.mode == 'P' else found.getbands())}, not 4"
    )


def _eight_bits(array: NDArray[Any], values: Range | None) -> NDArray[np.uint8]:
    return ((array + 128) // 257).astype(np.uint8) if values is None else scaled(array, values)


def _exact_16_bit(data: bytes, mode: str, values: Range | None) -> Image.Image:
    """A 16-bit colour PNG, rounded to 8 bits; Pillow alone would cut the lower byte off.

    Read as big-endian it gives the upper bytes, read as little-endian the lower ones.
    """
    halves = []
    for order in ("B", "L"):
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.tile = [tile._replace(args=f"{mode};16{order}") for tile in image.tile]
        halves.append(np.asarray(image).astype(np.uint32))
    return Image.fromarray(_eight_bits(halves[0] * 256 + halves[1], values), mode)
