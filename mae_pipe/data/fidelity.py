"""How far stored images lie from their originals, as a model would see them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data import decode

SAMPLED = 25  # of so many images one is compared
SIDE = 224  # pixels of the views that are compared
Picture = Image.Image | NDArray[np.uint8]


def error(original: Picture, stored: Picture) -> float:
    """Mean squared difference of the centre views, in levels of 8 bits."""
    views = [decode.centred(_same(picture), SIDE, 0.875).astype(np.float64) for picture in (original, stored)]
    return float(((views[0] - views[1]) ** 2).mean())


def _same(picture: Picture) -> Picture:
    return (
        picture.convert("RGB") if isinstance(picture, Image.Image) and picture.mode != "RGBA" else np.asarray(picture)
    )


def decibels(errors: float, images: int) -> float | None:
    """Peak signal-to-noise ratio of a sum of errors; None where nothing was compared, infinite without any error."""
    if not images:
        return None
    return math.inf if errors == 0 else 10 * math.log10(255**2 / (errors / images))
