"""Views of stored images without decoding the rest of them, with the pixels that Pillow gives.

A C extension reads the usual kinds of JPEG, and of those the rows and columns that a view needs; ``marks`` let it
begin at any row of blocks. Other images, and machines without the extension, are Pillow's: see ``decode.py``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data import crops
from mae_pipe.data.sample import Stored

VARIABLE = "MAE_PIPE_DECODER"  # "pillow": for everything
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # which pass of a resize comes first; it moves last bits
FILTERS = {Image.Resampling.BILINEAR: 0, Image.Resampling.BICUBIC: 1}
VECTORS = ("C", "C, AVX2", "C, AVX-512")


def _loaded() -> ModuleType | None:
    if os.environ.get(VARIABLE, "").lower() == "pillow":
        return None
    try:
        from mae_pipe.data import _native
    except ImportError:
        return None
    return _native


_native = _loaded()


def decoder() -> str:
    """What decodes JPEGs in this process, in words."""
    if _native is None:
        return f"Pillow {PIL.__version__}"
    return f"regions ({VECTORS[_native.vectors(len(VECTORS))]}), as Pillow {PIL.__version__}"


def crc32(data: bytes | memoryview) -> int:
    """As ``zlib.crc32``."""
    return zlib.crc32(data) if _native is None else int(_native.crc32(data))


def can_mark() -> bool:
    """Whether ``marks_of`` finds any."""
    return _native is not None


def marks_of(data: bytes) -> bytes | None:
    """Where each row of a JPEG's blocks begins, in 11 bytes a row; None where regions of it cannot be read."""
    if _native is None:
        return None
    try:
        found: bytes | None = _native.marks(data)
    except ValueError:  # damaged, though it may be that only this decoder is so strict
        return None
    return found


def views(
    stored: Stored,
    marks: bytes | None,
    cuts: Sequence[crops.Cut],
    outs: Sequence[NDArray[np.uint8]],
    resampling: Image.Resampling,
) -> bool:
    """Fill all views of ``outs``, each [views, C, h, w], with cuts of one image; False where that is left to Pillow.

    A JPEG is decoded once, and no more of it than all of them show.
    """
    if _native is None or resampling not in FILTERS or outs[0].shape[1] not in (1, 3):
        return False
    seen = [view for out in outs for view in out]
    places = tuple(_place(cut, stored, view.shape[1:]) for cut, view in zip(cuts, seen, strict=True))
    how = FILTERS[resampling], TALL_FIRST
    try:
        if stored.encoding == "jpeg":
            out = outs[0] if len(outs) == 1 else tuple(outs)
            return bool(_native.view_jpeg(stored.data, marks, out, places, *how, stored.width, stored.height))
        if stored.encoding not in ("raw", "yuv420"):
            return False
        for place, view in zip(places, seen, strict=True):
            if stored.encoding == "raw":
                known = _native.view_pixels(stored.data, stored.width, stored.height, 3, view, *place, *how)
            else:
                known = _native.view_planar(stored.data, stored.width, stored.height, view, *place, *how)
            if not known:
                return False
    except ValueError:  # Pillow has the last word on what is damaged
        return False
    return True


def _place(cut: crops.Cut, stored: Stored, size: tuple[int, ...]) -> tuple[object, ...]:
    """As the extension takes it."""
    if cut.resized is None:
        return cut.box, (size[1], size[0]), (0, 0), cut.mirrored
    return (0, 0, stored.width, stored.height), cut.resized, cut.box[:2], cut.mirrored
