"""Maps: a class for every pixel of an image, as an 8-bit PNG file of the image's size."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data.refusal import Refusal

IGNORE = 255  # of no class
MODES = {"P": "palette", "L": "grey"}


@dataclass(frozen=True, slots=True)
class AdmittedMap:
    """A checked map; ``top`` is the highest class in it, -1 if it has none."""

    data: bytes
    top: int


def admit_map(
    data: bytes,
    whole: tuple[int, int],
    stored: tuple[int, int],
    classes: int | None,
    ignored: tuple[int, ...] = (),
) -> AdmittedMap:
    """Check one map; raises ``Refusal``. What is fine is kept byte for byte, where no class is ignored.

    Args:
        whole: (width, height) of its image, upright.
        stored: the same, after the image was shrunk: the map is shrunk alike, to the nearest pixels.
        classes: how many there are; None: as many as the maps name.
        ignored: classes that become 255; the others move down to fill their places (``renumbered``).
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            return _admit(data, whole, stored, classes, ignored)
        except Refusal:
            raise
        except Exception as error:  # a decoder of a damaged file raises whatever it likes
            raise Refusal(
                f"damaged map: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from None


def renumbered(ignored: tuple[int, ...]) -> NDArray[np.uint8]:
    """[256] what each class becomes: 255 where it is ignored, else its place among those that are not."""
    kept = np.ones(256, bool)
    kept[[*ignored, IGNORE]] = False
    return np.where(kept, np.cumsum(kept) - 1, IGNORE).astype(np.uint8)


def _admit(
    data: bytes,
    whole: tuple[int, int],
    stored: tuple[int, int],
    classes: int | None,
    ignored: tuple[int, ...],
) -> AdmittedMap:
    picture = Image.open(io.BytesIO(data), formats=("PNG",))
    if picture.size != whole:
        raise Refusal(
            f"wrong map: {picture.width} x {picture.height} pixels, where the image has {whole[0]} x {whole[1]}"
        )
    depth, kind = data[24], picture.mode
    if kind not in ("P", "L", "1") or (kind == "L" and depth != 8):
        raise Refusal(f"wrong map: a PNG of the kind {kind!r} with {depth} bits, not a palette or 8 bits of grey")
    Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    numbers = np.asarray(picture).astype(np.uint8)
    if ignored:
        numbers = renumbered(ignored)[numbers]
    seen = np.unique(numbers)
    named = seen[seen != IGNORE]
    top = int(named[-1]) if len(named) else -1
    if classes is not None and top >= classes:
        raise Refusal(f"wrong map: it has the class {top}, but there are {classes} class names")
    if kind != "1" and stored == whole and not ignored:
        return AdmittedMap(data, top)
    out = io.BytesIO()
    small = Image.fromarray(numbers).resize(stored, Image.Resampling.NEAREST)
    small.save(out, "PNG")
    return AdmittedMap(out.getvalue(), top)
