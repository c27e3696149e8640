"""WebDataset: tar files that any tool reads."""

from __future__ import annotations

import contextlib
import mmap
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mae_pipe.api import DataError, Placed, Sample, ShardFormat, ShardReader, plugin

ENDINGS = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@plugin("webdataset")
class Tar(ShardFormat):
    """WebDataset tar files: KEY.jpg (or png, webp) and KEY.cls; read by webdataset, timm and tar.

    POSIX tar with time, owner and group 0; names beyond 100 letters take a PAX header.
    """

    suffix = ".tar"

    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        places = []
        with path.open("wb") as out:
            for sample in samples:
                offset = _member(out, f"{sample.key}.{ENDINGS[sample.encoding]}", sample.image)
                places.append(Placed(offset, len(sample.image), zlib.crc32(sample.image), sample.encoding))
                if sample.label is not None:
                    _member(out, f"{sample.key}.cls", str(sample.label).encode())
            out.write(bytes(2 * tarfile.BLOCKSIZE))
            out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
        return places

    def open(self, path: Path) -> ShardReader:
        return _Mapped(path)


def _member(out: BinaryIO, name: str, data: bytes) -> int:
    """Append one file; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    out.write(member.tobuf(tarfile.PAX_FORMAT))
    offset = out.tell()
    out.write(data)
    out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


class _Mapped(ShardReader):
    """A mapped file: a read is a view of it, without a copy or a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise DataError(
                f"the shard {path} cannot be opened ({error}); copy it again, or run: mae-pipe verify {path.parent}"
            ) from error
        self._view = memoryview(self._map)

    def read(self, number: int, placed: Placed) -> memoryview:
        end = placed.offset + placed.size
        if end > len(self._view):
            raise DataError(
                f"the shard {self._path} is cut short: {len(self._view)} bytes, the index expects at least {end}; "
                f"copy it again, or run: mae-pipe verify {self._path.parent}"
            )
        return self._view[placed.offset : end]

    def close(self) -> None:
        self._view.release()
        with contextlib.suppress(BufferError):  # somebody still looks at a read image: the file closes with it
            self._map.close()
