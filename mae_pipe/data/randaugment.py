"""RandAugment (Cubuk et al. 2020): timm's operations, with what an image's position draws.

On 8-bit pixels in the decoding workers, after the flip. Whether an operation is applied, how strongly and in which
direction is decided in timm's own code; only its random numbers come from here.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.recipe import Data
from mae_pipe.seeding import uniforms

EACH = 5  # numbers that one operation may draw: which, whether, two for the magnitude, its sign


class RandAugment:
    """timm's transform of that name.

    Args:
        data: its ``randaugment``, and what timm's ``create_transform`` takes over: mean colour and interpolation.
    """

    def __init__(self, data: Data) -> None:
        timms, self._draws = _timms()
        fill = tuple(min(255, round(255 * level)) for level in data.mean)
        chosen = {"img_mean": fill, "interpolation": Image.Resampling[data.interpolation.upper()]}
        made = timms.rand_augment_transform(data.randaugment, chosen)
        self._operations: list[Callable[[Image.Image], Image.Image]] = made.ops
        self._count: int = made.num_layers

    def draw(self, key: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """[B, operations, ``EACH``] in [0, 1)."""
        return uniforms(key, positions, self._count * EACH).reshape(len(positions), self._count, EACH)

    def change(self, planes: NDArray[np.uint8], drawn: NDArray[np.float64]) -> None:
        """Put [3, H, W] through the operations that ``drawn``, [operations, ``EACH``], stands for, in its place."""
        image = first = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
        for which, *rest in drawn.tolist():
            self._draws.left = iter(rest)
            image = self._operations[int(which * len(self._operations))](image)
        if image is not first:
            for plane, band in zip(planes, image.split(), strict=True):
                plane[:] = np.asarray(band)


class _Draws(threading.local):
    """What timm's operations take for Python's module ``random``: the numbers of one image, in turn."""

    left: Iterator[float] = iter(())

    def random(self) -> float:
        return next(self.left)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def gauss(self, mean: float, deviation: float) -> float:
        """By Box and Muller (1958)."""
        radius = math.sqrt(-2 * math.log1p(-self.random()))
        return mean + deviation * radius * math.cos(2 * math.pi * self.random())


@cache
def _timms() -> tuple[ModuleType, _Draws]:
    """A copy of timm's module, so that its ``random`` is ours alone; without the package, which would import torch."""
    package = importlib.util.find_spec("timm")
    assert package is not None
    assert package.origin is not None
    place = Path(package.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location(f"{__name__}.timms", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.random = draws = _Draws()
    operations: dict[str, Any] = module.NAME_TO_OP
    for name, operation in operations.items():
        if operation is module.posterize:
            operations[name] = partial(_posterized, operation)
    return module, draws


def _posterized(operation: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's; and black where no bits are to be kept (at magnitude 10), which Pillow 13 refuses to do."""
    return operation(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
