"""Where the rows of blocks of every stored JPEG begin: a decoder that knows can begin at any row.

A file of marks is one image's after the other's, 11 bytes a row of blocks (5: the place in bits; 2 for the DC sum
of each component; little-endian). The sample index has where each image's end, and their checksum.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Shard
from mae_pipe.data.region import crc32
from mae_pipe.errors import DataError

SUFFIX = ".marks"


class Marks:
    """The marks of one split, read as they are asked for by any number of threads."""

    def __init__(self, folder: Path, part: Shard, index: SampleIndex) -> None:
        self._path, self._index, self._bytes = folder / part.name, index, part.bytes
        advice = f"copy it again, or run: mae-pipe verify {folder}"
        if not self._path.is_file() or self._path.stat().st_size != part.bytes:
            raise DataError(f"{self._path} is missing or cut short; {advice}")
        if index.marks_end is None or index.marks_crc32 is None:
            raise DataError(f"{self._path} is there, but the index of its split knows nothing of it; {advice}")
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def of(self, row: int) -> bytes | None:
        """An image's marks; None where it has none."""
        ends, sums = self._index.marks_end, self._index.marks_crc32
        assert ends is not None
        assert sums is not None
        start, end = int(ends[row - 1]) if row else 0, int(ends[row])
        if start == end:
            return None
        data = os.pread(self._descriptor, end - start, start) if start < end <= self._bytes else b""
        if len(data) != end - start or crc32(data) != int(sums[row]):
            raise DataError(
                f"{self._path}: the marks of {self._index.key(row)!r} are damaged; "
                f"run: mae-pipe verify {self._path.parent}"
            )
        return data
