"""The stored images and maps of one split, by number."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_pipe.catalog import Catalog
from mae_pipe.data import consistency, descriptors
from mae_pipe.data.depot import depot_of
from mae_pipe.data.fetch import Unreachable
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Labels, Manifest
from mae_pipe.data.marks import Marks
from mae_pipe.data.region import crc32
from mae_pipe.data.sample import Placed, ShardFormat, ShardReader, Stored
from mae_pipe.errors import DataError
from mae_pipe.wording import counted

COPIES = 3  # of a shard that are tried


class Shelf:
    """The images of one split by number: opens shards as needed, checks every read."""

    def __init__(self, folder: Path, split: str, catalog: Catalog) -> None:
        self.folder, self.plugins = folder, catalog.files
        self.manifest = Manifest.load(folder)
        self.name, self.split = split, self.manifest.split(split)
        self.index = SampleIndex.load(folder, self.split.index)
        consistency.check(folder, self.manifest, self.split, self.index)
        self._format: ShardFormat = catalog.build("shards", self.manifest.format, {})
        self._first = np.searchsorted(self.index.shard, np.arange(len(self.split.shards)))  # row of each shard's first
        self._marks = Marks(folder, self.split.marks, self.index) if self.split.marks else None
        self._readers: dict[int, ShardReader] = {}
        self._lock, self._most = threading.Lock(), descriptors.allowed()
        self.depot = depot_of(folder, split, self.manifest)

    def check_channels(self, wanted: int) -> None:
        """Refuse a recipe that is for images of another kind."""
        channels = self.manifest.channels
        if wanted != channels:
            measured = self.split.statistics
            mean, std = ([round(value, 4) for value in values] for values in (measured.mean, measured.std))
            raise DataError(
                f"the images of {self.folder} have {counted(channels, 'channel')}, but data.mean and "
                f"data.std have {counted(wanted, 'number')}; set data.mean={mean} and data.std={std}, "
                f"which are those of {self.name!r}"
            )

    def check_labels(self, labels: Labels) -> None:
        """Refuse labels that the shards do not hold."""
        if labels == "multi" and (self.manifest.labelling != "multi" or self.index.labels_end is None):
            raise DataError(
                f"the images of {self.name!r} in {self.folder} have no lists of classes; "
                f"build shards that have with: mae-pipe shard IMAGES {self.folder} --labels FILE.csv"
            )
        if labels == "map" and (not self.split.maps or self.index.map_size is None):
            raise DataError(
                f"the images of {self.name!r} in {self.folder} have no maps of classes; "
                f"build shards that have with: mae-pipe shard IMAGES {self.folder} --maps FOLDER"
            )

    def spread(self, count: int) -> NDArray[np.int64]:
        """Rows of ``count`` images spread evenly over the split, always the same ones; at most all of them.

        Where shards have to be fetched, those of one shard.
        """
        among = self.split.shards[0].images if self.depot.far and self.split.shards else len(self.index)
        return np.unique(np.linspace(0, among - 1, count).round().astype(np.int64))

    def check_rows(self, numbers: NDArray[np.int64]) -> None:
        """Whether index rows that are about to be used can be believed."""
        consistency.check_rows(self.folder, self.manifest, self.split, self.index, numbers)

    def read(self, number: int) -> Stored:
        """The stored image of one index row that ``check_rows`` has seen, its bytes checked against the index."""
        placed = self.index.placed(number)
        data = self._checked(placed, number, "image")
        return Stored(data, placed.encoding, int(self.index.width[number]), int(self.index.height[number]))

    def marks(self, number: int) -> bytes | None:
        """Where the rows of blocks of a stored JPEG begin, for ``region.view``; None where that is not known."""
        return self._marks.of(number) if self._marks else None

    def read_map(self, number: int) -> bytes | memoryview:
        """The stored map of one index row, its bytes checked against the index."""
        placed = self.index.placed(number).map
        if placed is None:
            raise ValueError(f"{self.folder} holds no maps")
        return self._checked(placed, number, "map")

    def _checked(self, placed: Placed, number: int, what: str) -> bytes | memoryview:
        """The bytes of an image or a map; a shard that was fetched, and is damaged here, is fetched again."""
        shard = int(self.index.shard[number])
        for copy in itertools.count(1):
            reader = None
            try:
                reader = self._reader(shard)
                inside = number - int(self._first[shard])
                data = reader.read(inside, placed) if what == "image" else reader.read_map(inside, placed)
                self._check(data, placed, number, what)
                return data
            except Unreachable:
                raise
            except DataError:
                if copy == COPIES or not self._renewed(shard, reader):
                    raise
        raise AssertionError("never here")

    def _renewed(self, shard: int, reader: ShardReader | None) -> bool:
        """Whether another copy of a shard can be read than ``reader`` did."""
        with self._lock:
            if self._readers.get(shard) is not reader:  # another thread has seen to it
                return True
            self._readers.pop(shard, None)
            return self.depot.renew(shard)

    def undecodable(self, number: int, error: Exception) -> DataError:
        """What to raise where the bytes of an index row are right, and are no such image as the index says."""
        shard = self.split.shards[int(self.index.shard[number])]
        why = " ".join(f"{error or type(error).__name__}".split())[:200]
        return DataError(
            f"{self.depot.place}/{shard.name}: the image {self.index.key(number)!r} cannot be decoded ({why}); "
            f"build the shards again without it"
        )

    def _check(self, data: bytes | memoryview, placed: Placed, number: int, what: str) -> None:
        if len(data) != placed.size or crc32(data) != placed.crc32:
            shard = self.split.shards[int(self.index.shard[number])]
            raise DataError(
                f"{self.depot.place}/{shard.name}: the {what} {self.index.key(number)!r} is damaged; "
                f"run: mae-pipe verify {self.folder}"
            )

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.get(shard)
        if reader is not None:
            return reader
        path = self.depot.path(shard)  # it may take long, and others go on meanwhile
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                while self._readers and self._is_full(shard):  # a thread that reads one still holds it open
                    oldest = next(iter(self._readers))
                    del self._readers[oldest]
                    self.depot.release(oldest)
                reader = self._readers[shard] = self._format.open(path)
        return reader

    def _is_full(self, shard: int) -> bool:
        """Whether another one must be closed before a shard is opened; of fetched ones, so that the cache has room."""
        if len(self._readers) >= self._most:
            return True
        bytes_ = sum(self.split.shards[number].bytes for number in (*self._readers, shard)) if self.depot.far else 0
        return bytes_ > self.depot.room

    def let_go(self, shard: int) -> None:
        """Of a shard that is not needed for now."""
        with self._lock:
            self._readers.pop(shard, None)
        self.depot.release(shard)

    def close(self) -> None:
        """Let go of every shard file."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self.depot.close()
        if self._marks:
            self._marks.close()
