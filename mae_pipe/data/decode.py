"""Stored bytes -> the pixels of a view, exactly as Pillow makes them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data import arrays, crops, planar
from mae_pipe.data.sample import Stored
from mae_pipe.errors import DataError

FILTERS = {  # all but "nearest" are antialiased
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
Picture = Image.Image | NDArray[np.uint8]  # grey or colour; else [H, W, C]


def picture(stored: Stored, channels: int = 3) -> Picture:
    """The whole image: grey (1 channel) or RGB (3) of Pillow's, or else an array [H, W, C]."""
    if stored.encoding == "npy":
        pixels = arrays.parsed(stored.data)
        _check_size(stored, pixels.shape[:2] == (stored.height, stored.width))
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels) if channels in (1, 3) else pixels
    if stored.encoding == "raw":
        _check_size(stored, len(stored.data) == 3 * stored.width * stored.height)
        flat = np.frombuffer(stored.data, np.uint8)
        return Image.frombuffer("RGB", (stored.width, stored.height), flat, "raw", "RGB", 0, 1)
    if stored.encoding == "yuv420":
        return planar.picture(stored.data, stored.width, stored.height)
    image = Image.open(io.BytesIO(stored.data), formats=(stored.encoding.upper(),))
    _check_size(stored, image.size == (stored.width, stored.height))
    if channels in (1, 3):
        return image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image)  # RGBA or CMYK


def _check_size(stored: Stored, right: bool) -> None:
    if not right:
        raise DataError(f"it is no image of {stored.width} x {stored.height} pixels, as its index says")


def views(
    stored: Stored,
    cuts: Sequence[crops.Cut],
    outs: Sequence[NDArray[np.uint8]],
    resampling: Image.Resampling,
) -> None:
    """Fill all views of ``outs``, each [views, C, h, w], with cuts of a stored image, which is decoded once."""
    planes = stored.encoding == "yuv420"
    whole = None if planes else picture(stored, outs[0].shape[1])
    for cut, out in zip(cuts, (out for several in outs for out in several), strict=True):
        size = out.shape[1], out.shape[2]
        if whole is None:
            seen = planar.view(stored.data, stored.width, stored.height, cut, size, resampling)
        else:
            seen = view(whole, cut, size, resampling)
        out[:] = seen.transpose(2, 0, 1)


def map_of(data: bytes | memoryview) -> Image.Image:
    """A stored map: 8 bits, whose values are class numbers."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    return Image.fromarray(np.asarray(image)) if image.mode == "P" else image


def view(
    image: Picture, cut: crops.Cut, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.uint8]:
    """[H, W, C], ``size``: the cut of an image, resized."""
    if isinstance(image, Image.Image):
        pixels = _view(image, cut, size, resampling)
        return pixels[..., None] if pixels.ndim == 2 else pixels
    # Band by band: Pillow would take a fourth channel for opacity.
    if cut.resized is None:
        left, top, right, bottom = cut.box
        image, cut = image[top:bottom, left:right], cut._replace(box=(0, 0, right - left, bottom - top))
    bands = (Image.fromarray(np.ascontiguousarray(image[..., band])) for band in range(image.shape[2]))
    return np.stack([_view(band, cut, size, resampling) for band in bands], axis=2)


def _view(image: Image.Image, cut: crops.Cut, size: tuple[int, int], resampling: Image.Resampling) -> NDArray[np.uint8]:
    if cut.resized is None:  # a box of the wanted size needs no arithmetic; Pillow copies it
        part = image.crop(cut.box).resize((size[1], size[0]), resampling)
    else:
        part = image.resize(cut.resized, resampling).crop(cut.box)
    if cut.mirrored:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def centred(
    image: Picture,
    size: int | tuple[int, int],
    share: float,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[np.uint8]:
    """[H, W, C]: resized, then cropped in the middle (``crops.centre``)."""
    sides = (size, size) if isinstance(size, int) else size
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    return view(image, crops.centre(width, height, sides, share), sides, resampling)
