"""WebDataset: tar files that any tool reads."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mae_pipe.api import Placed, Sample, ShardFormat, ShardReader, plugin

from .file import ShardFile

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
        return _Members(path)


def _member(out: BinaryIO, name: str, data: bytes) -> int:
    """Append one file; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    out.write(member.tobuf(tarfile.PAX_FORMAT))
    offset = out.tell()
    out.write(data)
    out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


class _Members(ShardReader):
    """The places of the index are all that it needs."""

    def __init__(self, path: Path) -> None:
        self._file = ShardFile(path)

    def read(self, number: int, placed: Placed) -> bytes:
        return self._file.read(placed.offset, placed.size)

    def close(self) -> None:
        self._file.close()
