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
from mae_pipe.views import groups


class Form:
    """Makes the batches that a ``Filler`` fills.

    Args:
        shelf: the images.
        wanted: of them.
    """

    def __init__(self, shelf: Shelf, wanted: Wanted) -> None:
        self._shelf, self._index, self._kind = shelf, shelf.index, wanted.labels
        self._classes = len(shelf.manifest.classes_of(wanted.labels))
        self._channels, self._groups = wanted.data.channels, groups(wanted.views, wanted.data.sides)
        self._pin = torch.cuda.is_available()

    def layout(self, count: int) -> Layout:
        """Of ``count`` images."""
        pixels = tuple((count, views, self._channels, *sides) for sides, views in self._groups)
        return Layout(pixels, (count, *self._groups[0][0]) if self._kind == "map" else None)

    def memory(self, count: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Pixels and maps for ``count`` images, page-locked where there is a GPU."""
        layout = self.layout(count)
        pixels = tuple(torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin) for shape in layout.pixels)
        if layout.maps is None:
            return pixels, None
        return pixels, torch.empty(layout.maps, dtype=torch.int64, pin_memory=self._pin)

    def batch(self, numbers: Numbers, positions: Numbers, pixels: tuple[Tensor, ...], maps: Tensor | None) -> Batch:
        """The batch of such memory."""
        self._shelf.check_rows(numbers[numbers >= 0])
        first, *others = pixels
        return Batch(
            first if first.shape[1] > 1 else first[:, 0],
            self._labels(numbers) if maps is None else maps,
            torch.from_numpy(numbers.astype(np.int64)),
            torch.from_numpy(positions),
            tuple(others),
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
