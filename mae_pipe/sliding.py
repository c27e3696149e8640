"""Whole images measured by windows that slide over them (MAE, He et al. 2022, A.4; as BEiT's and mmseg's "slide")."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.data import crops, decode
from mae_pipe.data.batch import IGNORE, Batch
from mae_pipe.data.stream import Stream
from mae_pipe.errors import PluginError
from mae_pipe.recipe import Sliding

WHOLE = ("miou", "mean_accuracy", "pixel_accuracy")  # that are measured
CLASSES = 8  # whose scores are enlarged to the map's size at once


class Model(Protocol):
    """What gives scores: the engine, or anything that is called as it is."""

    device: torch.device

    def __call__(self, batch: Batch, *, mode: str) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...


def places(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride`` pixels, the last one moved back to end with the image."""
    count = max(0, -(-(length - window) // stride)) + 1
    return [max(0, min(at * stride, length - window)) for at in range(count)]


def resized(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) of an image whose short side is made ``short_side``, rounded; None: as it is."""
    if short_side is None:
        return width, height
    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


class Slider:
    """Counts of (truth, prediction) over every pixel of every image of a split.

    Args:
        stream: of the split; its ``data.size`` is the window.
        sliding: stride and size; the stride is given.
        classes: C.
    """

    def __init__(self, stream: Stream, sliding: Sliding, classes: int) -> None:
        if sliding.stride is None:
            raise ValueError("a slider needs a stride")
        self._stream, self._data, self._classes = stream, stream.data, classes
        self._stride, self._short_side = sliding.steps, sliding.short_side
        self._filter = decode.FILTERS[self._data.interpolation]
        self._mean = np.array([round(255 * value) for value in self._data.mean], np.uint8)[:, None, None]

    @torch.no_grad()
    def confusion(self, model: Model) -> Tensor:
        """[C, C] int64 on the CPU: pixels by true class and by prediction; the same on every rank.

        All ranks call it, and call the model equally often, as ZeRO 3 needs; the model is in training mode after.
        """
        counts = torch.zeros(self._classes, self._classes, dtype=torch.int64, device=model.device)
        model.train(False)
        share = self._stream.share
        for first in range(0, len(self._stream.index), share.world):
            # Every rank knows the sizes of all images, and so how often the slowest one calls the model.
            here = range(first, min(first + share.world, len(self._stream.index)))
            calls = max(-(-len(self._windows(number)) // share.micro_batch) for number in here)
            mine = first + share.rank
            if mine in here:
                counts += self._of_image(model, mine, calls)
            else:
                for _ in range(calls):
                    model(self._batch([], model.device), mode="scores")
        if dist.is_initialized() and share.world > 1:
            dist.all_reduce(counts)
        model.train()
        return counts.cpu()

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._data.channels, self._data.height, self._data.width

    def _size(self, number: int) -> tuple[int, int]:
        index = self._stream.index
        return resized(int(index.width[number]), int(index.height[number]), self._short_side)

    def _windows(self, number: int) -> list[tuple[int, int]]:
        """(top, left) of the windows of an image."""
        width, height = self._size(number)
        tops = places(height, self._data.height, self._stride[0])
        return [(top, left) for top in tops for left in places(width, self._data.width, self._stride[1])]

    def _of_image(self, model: Model, number: int, calls: int) -> Tensor:
        """[C, C] counts of one image; the model is called ``calls`` times."""
        pixels, truth = self._read(number)
        width, height = self._size(number)
        windows = self._windows(number)
        sums = torch.zeros(self._classes, height, width, device=model.device)
        seen = torch.zeros(height, width, device=model.device)
        micro = self._stream.share.micro_batch
        for call in range(calls):
            some = windows[call * micro : (call + 1) * micro]
            batch = self._batch([self._cut(pixels, *place) for place in some], model.device)
            scores = model(batch, mode="scores")
            wanted = (scores.shape[0], self._classes, *self._shape[1:])
            if scores.shape != wanted:
                raise PluginError(
                    f"the head's output has shape {list(scores.shape)}; sliding windows need {list(wanted)}, a score "
                    "of every class at every pixel"
                )
            for (top, left), score in zip(some, scores.float(), strict=False):  # the rest is padding
                part = (slice(top, top + self._data.height), slice(left, left + self._data.width))
                inside = seen[part].shape
                sums[:, *part] += score[:, : inside[0], : inside[1]]
                seen[part] += 1
        guess = largest(sums / seen, (truth.shape[0], truth.shape[1]))
        return counted(torch.from_numpy(truth).to(model.device), guess, self._classes)

    def _read(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """[C, h, w] the image, resized; [H, W] its map, as it is."""
        shelf = self._stream.shelf
        shelf.check_rows(np.array([number]))
        width, height = self._size(number)
        whole = crops.Cut((0, 0, width, height), (width, height))
        stored, data = shelf.read(number), shelf.read_map(number)
        try:
            image = np.empty((1, self._data.channels, height, width), np.uint8)
            decode.views(stored, [whole], [image], self._filter)
            truth = np.asarray(decode.map_of(data)).astype(np.int64)
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise shelf.undecodable(number, error) from error
        return image[0], truth

    def _cut(self, pixels: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
        """[C, H, W]: a window; beyond an image that is smaller, the mean colour."""
        out = np.broadcast_to(self._mean, self._shape).copy()
        part = pixels[:, top : top + self._data.height, left : left + self._data.width]
        out[:, : part.shape[1], : part.shape[2]] = part
        return out

    def _batch(self, windows: list[NDArray[np.uint8]], device: torch.device) -> Batch:
        """A micro-batch of windows: always full, as ranks must not differ; filled up with the mean colour."""
        micro = self._stream.share.micro_batch
        full = np.broadcast_to(self._mean, (micro, *self._shape)).copy()
        for place, window in enumerate(windows):
            full[place] = window
        nothing = torch.full((micro,), -1)
        return Batch(torch.from_numpy(full), nothing, nothing, torch.zeros(micro, dtype=torch.int64)).to(device)


def largest(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, h, w] -> [H, W] int64: the class of the highest score, enlarged bilinearly; the first of equal ones.

    A few classes at a time: of a photo of 12 megapixels 150 classes would take 7 GB.
    """
    best = torch.full(size, -torch.inf, device=scores.device)
    found = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for first in range(0, len(scores), CLASSES):
        some = F.interpolate(scores[None, first : first + CLASSES], size, mode="bilinear", align_corners=False)[0]
        high, which = some.max(dim=0)
        better = high > best
        best, found = torch.where(better, high, best), torch.where(better, which + first, found)
    return found


def counted(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """[C, C] int64: pixels by true class and by prediction, without those of no class."""
    kept = truth != IGNORE
    return torch.bincount(truth[kept] * classes + guess[kept], minlength=classes**2).reshape(classes, classes)


def measures(confusion: Tensor) -> dict[str, float]:
    """mIoU, mean and pixel accuracy in float64; a class that is in no map and that nobody says does not count."""
    both, truth = confusion.diagonal().double(), confusion.sum(dim=1).double()
    union = truth + confusion.sum(dim=0).double() - both
    return {
        "miou": _mean(both[union > 0] / union[union > 0]),
        "mean_accuracy": _mean(both[truth > 0] / truth[truth > 0]),
        "pixel_accuracy": float(both.sum() / truth.sum()) if bool(truth.any()) else 0.0,
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
