"""Shards -> batches: the one stream that every task reads."""

from __future__ import annotations

import threading
import zlib
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
from mae_pipe.data import crops, decode
from mae_pipe.data.manifest import Manifest, SampleIndex
from mae_pipe.data.order import Order, Share
from mae_pipe.data.sample import ShardFormat, ShardReader, Stored
from mae_pipe.errors import DataError

Numbers = NDArray[np.int64]
AHEAD = 3  # batches under way while the newest is used


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch.

    Attributes:
        pixels: [B, 3, S, S] uint8.
        labels: [B] int64; -1 where an image has none.
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


class Shelf:
    """The images of one split by number: opens shards as needed, checks every read."""

    def __init__(self, folder: Path, split: str, catalog: Catalog) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self.split = self.manifest.split(split)
        self.index = SampleIndex.load(folder, self.split.index)
        self._format: ShardFormat = catalog.build("shards", self.manifest.format, {})
        self._first = np.searchsorted(self.index.shard, np.arange(len(self.split.shards)))  # row of each shard's first
        self._readers: dict[int, ShardReader] = {}
        self._lock = threading.Lock()
        missing = [shard.name for shard in self.split.shards if not (folder / shard.name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.split.shards)} shards of {split!r} are missing in {folder}, first "
                f"{missing[0]}; copy them again, or build them with: mae-pipe shard"
            )

    def read(self, number: int) -> Stored:
        """The stored image of one index row, its bytes checked against the index."""
        shard = int(self.index.shard[number])
        placed = self.index.placed(number)
        data = self._reader(shard).read(number - int(self._first[shard]), placed)
        if len(data) != placed.size or zlib.crc32(data) != placed.crc32:
            raise DataError(
                f"{self.folder / self.split.shards[shard].name}: the image {self.index.key(number)!r} is damaged; "
                f"run: mae-pipe verify {self.folder}"
            )
        return Stored(data, placed.encoding, int(self.index.width[number]), int(self.index.height[number]))

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                reader = self._readers.get(shard)
                if reader is None:
                    path = self.folder / self.split.shards[shard].name
                    if not path.is_file() or path.stat().st_size != self.split.shards[shard].bytes:
                        raise DataError(
                            f"{path} is missing or cut short; copy it again, or run: mae-pipe verify {self.folder}"
                        )
                    reader = self._readers[shard] = self._format.open(path)
        return reader

    def close(self) -> None:
        """Let go of every shard file."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


class Stream:
    """The batches of one split for one rank, as a function of where to start.

    Args:
        shelf: the images.
        data: crop, flip and size; ``data.workers`` threads decode.
        seed: of the run.
        share: which part of a global micro-batch is this rank's.
        training: random crops in a random order; else the centre view.
        rows: only these index rows, as few-label training wants; default all.
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
    ) -> None:
        self.shelf, self.data, self.share = shelf, data, share
        self.rows = np.arange(len(shelf.index)) if rows is None else rows
        if not len(self.rows):
            raise DataError(f"{shelf.folder} has no images to read; look at its manifest.json for what was refused")
        self.random = training and data.crop == "random"
        self.flip = data.flip if training else 0.0
        self._order = Order(len(self.rows), seed)
        self._crop_key, self._flip_key = seeding.key(seed, "crop"), seeding.key(seed, "flip")
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
        index, size = self.index, self.data.size
        pixels = torch.empty((len(numbers), 3, size, size), dtype=torch.uint8, pin_memory=self._pin)
        labels = torch.from_numpy(np.where(numbers < 0, -1, index.label[numbers]).astype(np.int64))
        batch = Batch(pixels, labels, torch.from_numpy(numbers.astype(np.int64)), torch.from_numpy(positions))
        mirrored = crops.flips(self._flip_key, positions, self.flip)
        boxes = None
        if self.random:
            boxes = crops.random_boxes(
                self._crop_key,
                positions,
                index.width[numbers],
                index.height[numbers],
                self.data.crop_scale,
                self.data.crop_ratio,
            )
        view = pixels.numpy()

        def fill(places: Iterable[int]) -> None:
            for place in places:
                number = int(numbers[place])
                if number < 0:
                    view[place] = 0
                    continue
                view[place] = self._pixels(
                    number, None if boxes is None else boxes[place].tolist(), bool(mirrored[place])
                )

        return batch, fill

    def _pixels(self, number: int, box: list[int] | None, flip: bool) -> NDArray[np.uint8]:
        """[3, S, S] of one image."""
        image = decode.picture(self.shelf.read(number))
        if box is None:
            pixels = decode.centred(image, self.data.size, self.data.centre_share)
            pixels = pixels[:, ::-1] if flip else pixels
        else:
            pixels = decode.cropped(image, (box[0], box[1], box[2], box[3]), self.data.size, flip)
        return pixels.transpose(2, 0, 1)


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
) -> Stream:
    """The stream of one split of a folder of shards (``Stream`` explains the rest)."""
    return Stream(Shelf(shards, split, catalog), data, seed=seed, share=share, training=training, rows=rows)
