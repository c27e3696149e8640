"""Image files that stay where they are: a shard is a list of them.

What had to be converted, and what does not lie in a file as it is, is in the shard itself. On disk: the bytes of
those images, then the list as JSON (paths, byte, size of the file, its time), then the list's length and ``MAGIC``.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mae_pipe.api import DataError, Placed, Sample, ShardFormat, ShardReader, plugin

from .file import ShardFile

MAGIC = b"MAEFILES"
TAIL = len(MAGIC) + 8  # bytes: the length of the list, little-endian, and MAGIC
LIST = 1 << 30  # bytes of the longest list


@plugin("files")
class Files(ShardFormat):
    """Lists of image files that stay where they are: training straight from a folder, on this machine only.

    A file that has another size or time than when it was listed is an error that names it.
    """

    suffix = ".files"
    origins = True

    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        places, files = [], []
        with path.open("wb") as out:
            for sample in samples:
                origin, offset = sample.origin, out.tell()
                entry: list[Any] | None = None
                if origin is not None and sample.map is None:
                    found = origin.path.stat()
                    entry = [str(origin.path.absolute()), found.st_size, found.st_mtime_ns]
                    offset = origin.offset
                else:
                    out.write(sample.image)
                files.append(entry)
                map_ = None
                if sample.map is not None:
                    map_ = Placed(out.tell(), len(sample.map), zlib.crc32(sample.map), "png")
                    out.write(sample.map)
                places.append(Placed(offset, len(sample.image), zlib.crc32(sample.image), sample.encoding, map_))
            listed = json.dumps(files, separators=(",", ":")).encode("utf-8")
            out.write(listed + len(listed).to_bytes(8, "little") + MAGIC)
        return places

    def open(self, path: Path) -> ShardReader:
        return _Listed(path)


class _Listed(ShardReader):
    """Opens a file for every read: there may be more of them than a process may hold open."""

    def __init__(self, path: Path) -> None:
        self._shard = ShardFile(path)
        size = path.stat().st_size
        tail = self._shard.read(max(size - TAIL, 0), min(TAIL, size))
        length = int.from_bytes(tail[:8], "little")
        if not tail.endswith(MAGIC) or length > min(size - TAIL, LIST):
            raise self._shard.damaged("it is cut, or is no list of files")
        try:
            self._files: list[Any] = json.loads(self._shard.read(size - TAIL - length, length))
        except (ValueError, RecursionError) as error:
            raise self._shard.damaged(f"its list is damaged: {error}") from error

    def read(self, number: int, placed: Placed) -> bytes:
        try:
            path, size, time = self._files[number] or ("", 0, 0)
            if not (isinstance(path, str) and isinstance(size, int) and isinstance(time, int)) or "\0" in path:
                raise TypeError(path)
        except (IndexError, TypeError, ValueError, KeyError) as error:
            raise self._shard.damaged(f"it lists no image {number}") from error
        if not path:
            return self._shard.read(placed.offset, placed.size)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                found = os.fstat(descriptor)
                there = 0 <= placed.size <= found.st_size - placed.offset
                data = os.pread(descriptor, placed.size, placed.offset) if there else b""
            finally:
                os.close(descriptor)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise self._changed(path, f"cannot be read any more: {why}") from error
        if found.st_size != size or found.st_mtime_ns != time or len(data) != placed.size:
            when = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")
            raise self._changed(path, f"has changed since it was listed: {found.st_size:,} bytes of {when} UTC")
        return data

    def read_map(self, number: int, placed: Placed) -> bytes:
        return self._shard.read(placed.offset, placed.size)

    def close(self) -> None:
        self._shard.close()

    def _changed(self, path: str, why: str) -> DataError:
        return DataError(f"{path[:300]} {why}; give the same command again, and the folder is listed anew")
