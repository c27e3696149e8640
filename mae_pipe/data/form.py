"""An empty batch: its memory, and the labels for which no image has to be read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mae_pipe.data.batch import Batch
from mae_pipe.data.fill import Wanted
from mae_pipe.data.layout import Layout, Numbers
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError


class Form:
    """Makes the batches that a ``Filler`` fills.

    Args:
        shelf: the images.
        wanted: of them.
    """

    def __init__(self, shelf: Shelf, wanted: Wanted) -> None:
        self._shelf, self._index, self._kind, self._views = shelf, shelf.index, wanted.labels, wanted.views
        self._classes = len(shelf.manifest.classes_of(wanted.labels))
        self._view = (wanted.data.channels, *wanted.data.sides)
        self._pin = torch.cuda.is_available()

    def layout(self, count: int) -> Layout:
        """Of ``count`` images."""
        return Layout((count, self._views, *self._view), (count, *self._view[1:]) if self._kind == "map" else None)

    def memory(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Pixels and maps for ``count`` images, page-locked where there is a GPU."""
        layout = self.layout(count)
        pixels = torch.empty(layout.pixels, dtype=torch.uint8, pin_memory=self._pin)
        if layout.maps is None:
            return pixels, None
        return pixels, torch.empty(layout.maps, dtype=torch.int64, pin_memory=self._pin)

    def batch(self, numbers: Numbers, positions: Numbers, pixels: Tensor, maps: Tensor | None) -> Batch:
        """The batch of such memory."""
        self._shelf.check_rows(numbers[numbers >= 0])
        return Batch(
            pixels if self._views > 1 else pixels[:, 0],
            self._labels(numbers) if maps is None else maps,
            torch.from_numpy(numbers.astype(np.int64)),
            torch.from_numpy(positions),
        )

    def _labels(self, numbers: Numbers) -> Tensor:
        """Those of ``Batch`` that are no maps."""
        if self._kind == "class":
            return torch.from_numpy(np.where(numbers < 0, -1, self._index.label[numbers]).astype(np.int64))
        several = torch.zeros(len(numbers), self._classes)
        for place, number in enumerate(numbers.tolist()):
            if number >= 0:
                classes = self._index.labels(number).astype(np.int64)
                if classes.max(initial=-1) >= self._classes:
                    raise DataError(
                        f"the index of {self._shelf.folder} has the label {classes.max()}, which is no class"
                    )
                several[place, classes] = 1.0
        return several
