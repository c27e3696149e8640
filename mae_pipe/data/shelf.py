"""The stored images and maps of one split, by number."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from mae_pipe.catalog import Catalog
from mae_pipe.data import descriptors
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Labels, Manifest
from mae_pipe.data.marks import Marks
from mae_pipe.data.region import crc32
from mae_pipe.data.sample import Placed, ShardFormat, ShardReader, Stored
from mae_pipe.errors import DataError
from mae_pipe.wording import counted


class Shelf:
    """The images of one split by number: opens shards as needed, checks every read."""

    def __init__(self, folder: Path, split: str, catalog: Catalog) -> None:
        self.folder, self.plugins = folder, catalog.files
        self.manifest = Manifest.load(folder)
        self.name, self.split = split, self.manifest.split(split)
        self.index = SampleIndex.load(folder, self.split.index)
        self._format: ShardFormat = catalog.build("shards", self.manifest.format, {})
        self._first = np.searchsorted(self.index.shard, np.arange(len(self.split.shards)))  # row of each shard's first
        self._marks = Marks(folder, self.split.marks, self.index) if self.split.marks else None
        self._readers: dict[int, ShardReader] = {}
        self._lock, self._most = threading.Lock(), descriptors.allowed()
        self._home = self.manifest.home(folder)
        missing = [shard.name for shard in self.split.shards if not (self._home / shard.name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.split.shards)} shards of {split!r} are missing in {self._home}, first "
                f"{missing[0]}; copy them again, or build them with: mae-pipe shard"
            )

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

    def read(self, number: int) -> Stored:
        """The stored image of one index row, its bytes checked against the index."""
        placed = self.index.placed(number)
        shard, reader = self._reader(number)
        data = reader.read(number - int(self._first[shard]), placed)
        self._check(data, placed, number, "image")
        return Stored(data, placed.encoding, int(self.index.width[number]), int(self.index.height[number]))

    def marks(self, number: int) -> bytes | None:
        """Where the rows of blocks of a stored JPEG begin, for ``region.view``; None where that is not known."""
        return self._marks.of(number) if self._marks else None

    def read_map(self, number: int) -> bytes | memoryview:
        """The stored map of one index row, its bytes checked against the index."""
        placed = self.index.placed(number).map
        if placed is None:
            raise ValueError(f"{self.folder} holds no maps")
        shard, reader = self._reader(number)
        data = reader.read_map(number - int(self._first[shard]), placed)
        self._check(data, placed, number, "map")
        return data

    def _check(self, data: bytes | memoryview, placed: Placed, number: int, what: str) -> None:
        if len(data) != placed.size or crc32(data) != placed.crc32:
            shard = self.split.shards[int(self.index.shard[number])]
            raise DataError(
                f"{self._home / shard.name}: the {what} {self.index.key(number)!r} is damaged; "
                f"run: mae-pipe verify {self.folder}"
            )

    def _reader(self, number: int) -> tuple[int, ShardReader]:
        """The number of the shard that holds a row, and its reader."""
        shard = int(self.index.shard[number])
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                reader = self._readers.get(shard)
                if reader is None:
                    path = self._home / self.split.shards[shard].name
                    if not path.is_file() or path.stat().st_size != self.split.shards[shard].bytes:
                        raise DataError(
                            f"{path} is missing or cut short; copy it again, or run: mae-pipe verify {self.folder}"
                        )
                    while len(self._readers) >= self._most:  # a thread that reads it still holds it open
                        del self._readers[next(iter(self._readers))]
                    reader = self._readers[shard] = self._format.open(path)
        return shard, reader

    def close(self) -> None:
        """Let go of every shard file."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._marks:
            self._marks.close()
