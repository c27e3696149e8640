"""WebDataset: tar files that any tool reads."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mae_pipe.api import Placed, Sample, ShardFormat, ShardReader, plugin

from .file import ShardFile

ENDINGS = {"jpeg": "jpg", "png": "png", "webp": "webp", "npy": "npy", "yuv420": "yuv"}


@plugin("webdataset")
class Tar(ShardFormat):
    """WebDataset tar files: KEY.jpg (or png, webp, npy) and KEY.cls; read by webdataset, timm and tar.
    Planes of YCbCr 4:2:0, which only mae-pipe reads, are KEY.yuv.

    Images of several classes have KEY.json instead, {"labels": [numbers]}; maps are KEY.seg.png.
    POSIX tar with time, owner and group 0; names beyond 100 letters take a PAX header.
    """

    suffix = ".tar"
    planes = True

    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        places = []
        with path.open("wb") as out:
            for sample in samples:
                offset = _member(out, f"{sample.key}.{ENDINGS[sample.encoding]}", sample.image)
                if sample.label is not None:
                    _member(out, f"{sample.key}.cls", str(sample.label).encode())
                if sample.labels is not None:
                    _member(out, f"{sample.key}.json", json.dumps({"labels": sample.labels}).encode())
                map_ = None
                if sample.map is not None:
                    place = _member(out, f"{sample.key}.seg.png", sample.map)
                    map_ = Placed(place, len(sample.map), zlib.crc32(sample.map), "png")
                places.append(Placed(offset, len(sample.image), zlib.crc32(sample.image), sample.encoding, map_))
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
