"""What the memory of a batch holds, for whoever allocates it and whoever fills it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Numbers = NDArray[np.int64]
Shape = tuple[int, ...]
STEP = 64  # bytes: where an array may begin


class Arrays(NamedTuple):
    """Those of one batch; ``numbers`` and ``positions`` say what is to be filled into the others."""

    pixels: tuple[NDArray[np.uint8], ...]  # each [B, V, C, h, w]
    maps: NDArray[np.int64] | None  # [B, H, W]
    numbers: Numbers  # [B]
    positions: Numbers  # [B]


@dataclass(frozen=True)
class Layout:
    """The shapes of a batch's arrays, and where each lies in one piece of memory.

    Attributes:
        pixels: of the views of each size: [B, V, C, h, w] uint8.
        maps: [B, H, W] int64, or None where no maps are wanted.
    """

    pixels: tuple[Shape, ...]
    maps: Shape | None

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(_rounded(math.prod(shape) * np.dtype(kind).itemsize) for shape, kind in self._parts)

    @property
    def _parts(self) -> list[tuple[Shape, DTypeLike]]:
        count = self.pixels[0][:1]
        pixels: list[tuple[Shape, DTypeLike]] = [(shape, np.uint8) for shape in self.pixels]
        return [*pixels, (self.maps or (0,), np.int64), (count, np.int64), (count, np.int64)]

    def arrays(self, memory: NDArray[np.uint8]) -> Arrays:
        """Views of ``memory``, [bytes]."""
        found, at = [], 0
        for shape, kind in self._parts:
            size = math.prod(shape) * np.dtype(kind).itemsize
            found.append(memory[at : at + size].view(kind).reshape(shape))
            at += _rounded(size)
        *pixels, maps, numbers, positions = found
        return Arrays(tuple(pixels), None if self.maps is None else maps, numbers, positions)


def _rounded(size: int) -> int:
    return -(-size // STEP) * STEP
