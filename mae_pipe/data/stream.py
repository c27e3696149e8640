"""Shards -> batches: the one stream that every task reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_pipe import recipe, seeding
from mae_pipe.catalog import Catalog
from mae_pipe.data import crops, decode, jitter
from mae_pipe.data.manifest import Labels, SampleIndex
from mae_pipe.data.order import Order, Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError

Numbers = NDArray[np.int64]
AHEAD = 3  # batches under way while the newest is used
IGNORE = 255  # in a map: of no class


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch.

    Attributes:
        pixels: [B, C, H, W] uint8.
        labels: [B] int64 classes, -1 where an image has none; or [B, classes] float32 of 0 and 1, where images
            have several; or [B, H, W] int64 classes of pixels, cropped as the image, ``IGNORE`` where none.
        numbers: [B] int64, rows of the sample index; -1 marks padding (evaluation only).
        positions: [B] int64, places in the stream; they key every random number.
    """

    pixels: Tensor
    labels: Tensor
    numbers: Tensor
    positions: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; asynchronous from pinned memory."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class Stream:
    """The batches of one split for one rank, as a function of where to start.

    Args:
        shelf: the images.
        data: crop, flip, jitter and size; ``data.workers`` threads decode.
        seed: of the run.
        share: which part of a global micro-batch is this rank's.
        training: augmented, in a random order; else the centre view.
        rows: only these index rows, as few-label training wants; default all.
        labels: which of a ``Batch``'s labels are wanted.
    """

    def __init__(
        self,
        shelf: Shelf,
        data: recipe.Data,
        *,
        seed: int,
        share: Share,
        training: bool = True,
        rows: Numbers | None = None,
        labels: Labels = "class",
    ) -> None:
        self.shelf, self.data, self.share, self.labels = shelf, data, share, labels
        self.rows = np.arange(len(shelf.index)) if rows is None else rows
        if not len(self.rows):
            raise DataError(f"{shelf.folder} has no images to read; look at its manifest.json for what was refused")
        shelf.check_channels(data.channels)
        shelf.check_labels(labels)
        self.crop = data.crop if training else "none"
        self.flip = data.flip if self.crop != "none" else 0.0
        self.jitter = data.jitter if self.crop != "none" else (0.0, 0.0, 0.0, 0.0)
        self.classes = len(shelf.manifest.classes_of(labels))
        self._filter = decode.FILTERS[data.interpolation]
        self._order = Order(len(self.rows), seed)
        self._crop_key, self._flip_key, self._jitter_key = (
            seeding.key(seed, name) for name in ("crop", "flip", "jitter")
        )
        self._pin = torch.cuda.is_available()

    @property
    def images(self) -> int:
        """Images in one epoch of the whole job."""
        return len(self.rows)

    @property
    def index(self) -> SampleIndex:
        return self.shelf.index

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Endless micro-batches, as if the job had consumed ``start`` images."""

        def plan() -> Iterator[tuple[Numbers, Numbers]]:
            at = start
            while True:
                positions = self.share.positions(at)
                yield self.rows[self._order.at(positions)], positions
                at += self.share.advance

        return self._run(plan())

    def once(self) -> Iterator[Batch]:
        """Every image exactly once over all ranks, in the order of the shards.

        All ranks give the same number of batches; places beyond the end have number -1.
        """

        def plan() -> Iterator[tuple[Numbers, Numbers]]:
            for at in range(0, self.images, self.share.advance):
                positions = self.share.positions(at)
                inside = positions < self.images
                yield np.where(inside, self.rows[np.where(inside, positions, 0)], -1), positions

        return self._run(plan())

    def close(self) -> None:
        """Let go of every shard file."""
        self.shelf.close()

    def _run(self, plan: Iterator[tuple[Numbers, Numbers]]) -> Iterator[Batch]:
        """Fill batches in order, ``AHEAD`` of them under way in ``data.workers`` threads."""
        if self.data.workers == 0:
            for numbers, positions in plan:
                batch, fill = self._prepare(numbers, positions)
                fill(range(len(numbers)))
                yield batch
            return
        with ThreadPoolExecutor(self.data.workers, thread_name_prefix="decode") as threads:
            under_way: deque[tuple[Batch, list[Future[None]]]] = deque()

            def begin() -> bool:
                step = next(plan, None)
                if step is None:
                    return False
                batch, fill = self._prepare(*step)
                chunks = np.array_split(np.arange(len(step[0])), min(self.data.workers, len(step[0])))
                under_way.append((batch, [threads.submit(fill, chunk.tolist()) for chunk in chunks]))
                return True

            try:
                while len(under_way) < AHEAD and begin():
                    pass
                while under_way:
                    batch, parts = under_way.popleft()
                    for part in parts:
                        part.result()
                    begin()
                    yield batch
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, numbers: Numbers, positions: Numbers) -> tuple[Batch, Callable[[Iterable[int]], None]]:
        """An empty batch, and the function that fills given places of it."""
        shape = len(numbers), self.data.channels, *self.data.sides
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        labels = self._labels(numbers)
        batch = Batch(pixels, labels, torch.from_numpy(numbers.astype(np.int64)), torch.from_numpy(positions))
        cuts = self._cuts(numbers, positions)
        order, factors = jitter.draw(self._jitter_key, positions, self.jitter)
        jittered = any(self.jitter)
        view, maps = pixels.numpy(), labels.numpy() if self.labels == "map" else None

        def fill(places: Iterable[int]) -> None:
            for place in places:
                number = int(numbers[place])
                if number < 0:
                    view[place] = 0
                    continue
                image = decode.picture(self.shelf.read(number), self.data.channels)
                seen = decode.view(image, cuts[place], self.data.sides, self._filter)
                if jittered:
                    seen = jitter.jittered(seen, order[place], factors[place], self.jitter)
                view[place] = seen.transpose(2, 0, 1)
                if maps is not None:
                    map_ = decode.map_of(self.shelf.read_map(number))
                    maps[place] = decode.view(map_, cuts[place], self.data.sides, decode.FILTERS["nearest"])[..., 0]

        return batch, fill

    def _labels(self, numbers: Numbers) -> Tensor:
        """Those of ``Batch``; maps are filled in later."""
        index = self.index
        if self.labels == "class":
            return torch.from_numpy(np.where(numbers < 0, -1, index.label[numbers]).astype(np.int64))
        if self.labels == "map":
            return torch.full((len(numbers), *self.data.sides), IGNORE, dtype=torch.int64, pin_memory=self._pin)
        several = torch.zeros(len(numbers), self.classes)
        for place, number in enumerate(numbers.tolist()):
            if number >= 0:
                several[place, index.labels(number).astype(np.int64)] = 1.0
        return several

    def _cuts(self, numbers: Numbers, positions: Numbers) -> list[crops.Cut]:
        """How each image of a batch is cropped and mirrored."""
        data, widths, heights = self.data, self.index.width[numbers], self.index.height[numbers]
        mirrored = crops.flips(self._flip_key, positions, self.flip).tolist()
        if self.crop == "random":
            boxes = crops.random_boxes(
                self._crop_key, positions, widths, heights, data.crop_scale, data.crop_ratio
            ).tolist()
            return [crops.Cut((*box,), None, flip) for box, flip in zip(boxes, mirrored, strict=True)]
        sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
        if self.crop == "fixed":
            draws = seeding.uniforms(self._crop_key, positions, 2).tolist()
            cuts = [
                crops.fixed(w, h, data.sides, data.crop_share, (across, down))
                for (w, h), (across, down) in zip(sizes, draws, strict=True)
            ]
        else:
            cuts = [crops.centre(w, h, data.sides, data.centre_share) for w, h in sizes]
        return [cut._replace(mirrored=flip) for cut, flip in zip(cuts, mirrored, strict=True)]


def open_stream(
    shards: Path,
    split: str,
    data: recipe.Data,
    *,
    seed: int,
    share: Share,
    catalog: Catalog,
    training: bool = True,
    rows: Numbers | None = None,
    labels: Labels = "class",
) -> Stream:
    """The stream of one split of a folder of shards (``Stream`` explains the rest)."""
    shelf = Shelf(shards, split, catalog)
    return Stream(shelf, data, seed=seed, share=share, training=training, rows=rows, labels=labels)
