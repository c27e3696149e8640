"""JPEG files: is every pixel there, and as it was written?"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data.refusal import Refusal

EOI = b"\xff\xd9"


def checked(data: bytes, image: Image.Image, converted: list[str]) -> tuple[bytes, Image.Image]:
    """A JPEG's bytes, mended where that loses nothing, and its picture: RGB, grey or CMYK.

    libjpeg goes on after damage and only warns, so its warnings count as errors here.
    """
    space = {"RGB": "RGB", "L": "GRAY"}.get(image.mode, "CMYK")
    try:
        pixels = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        data, note = _mended(data, error)
        try:
            pixels = simplejpeg.decode_jpeg(data, space)
        except ValueError:
            raise _damage(error) from None
        converted.append(note)
    if space == "CMYK":
        return data, Image.open(io.BytesIO(data), formats=("JPEG",))  # Pillow knows Adobe's inversion
    return data, from_array(pixels, image.mode)


def from_array(pixels: NDArray[np.uint8], mode: str) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


def _damage(error: ValueError) -> Refusal:
    text = str(error)
    if "remature end" in text:
        return Refusal(f"truncated: {text}")
    return Refusal(f"damaged: {text}")


def _mended(data: bytes, error: ValueError) -> tuple[bytes, str]:
    """A JPEG without what is only untidy: a missing end marker, padding before a marker."""
    if "Premature end of JPEG file" in str(error) and not data.endswith(EOI) and _is_one_scan(data):
        return data + EOI, "end marker added"
    if "extraneous bytes before marker" not in str(error):
        raise _damage(error)
    if str(error).endswith("0xd9"):  # after the last pixel; anything but padding there means that decoding went astray
        body = data[: data.rindex(EOI)]
        return body.rstrip(b"\0").rstrip(b"\xff").rstrip(b"\0") + EOI, "padding removed"
    return _tidy_header(data), "padding removed"


def _is_one_scan(data: bytes) -> bool:
    """Whether one Huffman-coded scan holds all of a JPEG's picture, so that a decoder notices if any of it is missing.

    Of several scans, as in progressive files, the last may be missing and what is left still decodes: to a blur.
    """
    at, components = 2, 0
    while 0 <= at < len(data) - 9:
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):
            at = data.find(b"\xff", at + 1)
            continue
        if marker in (0xC0, 0xC1):  # sequential
            components = data[at + 9]
        if marker == 0xDA:
            return data[at + 4] == components
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _tidy_header(data: bytes) -> bytes:
    """The same JPEG without stray bytes between the segments before its first scan."""
    out, at = [data[:2]], 2
    while at + 4 <= len(data):
        at = data.find(b"\xff", at)
        if at < 0 or data[at + 1] == 0xDA:
            break
        if data[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        out.append(data[at:end])
        at = end
    return b"".join(out) + data[max(at, 0) :]
