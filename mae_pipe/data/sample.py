"""An image on its way into a shard, and out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Encoding = Literal["jpeg", "png", "webp", "raw", "npy", "yuv420"]
ENCODINGS: tuple[Encoding, ...] = ("jpeg", "png", "webp", "raw", "npy", "yuv420")


@dataclass(frozen=True, slots=True)
class Sample:
    """One checked image, ready to be stored.

    Attributes:
        key: unique in its split, made of ``[A-Za-z0-9_/-]``; no dots.
        image: the encoded file; "npy" where no image file holds as many channels: [H, W, C] uint8; "yuv420" where
            planes were asked for (``planar.py``), "raw" where raw pixels were: [H, W, 3] uint8.
        label: the class number, or None.
        labels: the class numbers, rising, where an image may have several; else None.
        map: a PNG file of the image's size whose values are class numbers, 255 where none; or None.
        origin: the file that holds exactly these bytes, where there is one and the format asks for ``origins``.
    """

    key: str
    image: bytes
    encoding: Encoding
    width: int
    height: int
    label: int | None = None
    channels: int = 3
    labels: tuple[int, ...] | None = None
    map: bytes | None = None
    origin: Origin | None = None


class Pixels(bytes):
    """An image that is in no file: [height, width, 3] uint8, row by row. What a source may read in place of a file."""

    width: int
    height: int

    def __new__(cls, data: bytes, width: int, height: int) -> Pixels:
        made = super().__new__(cls, data)
        made.width, made.height = width, height
        return made


@dataclass(frozen=True, slots=True)
class Origin:
    """A file that holds an image's bytes as they are."""

    path: Path
    offset: int = 0
    size: int | None = None  # None: to the end


@dataclass(frozen=True, slots=True)
class Placed:
    """Where and as what a shard file holds a sample; ``map`` is the place of its map, if it has one."""

    offset: int  # bytes from the start of the shard file
    size: int  # bytes
    crc32: int  # of those bytes
    encoding: Encoding  # "raw" is [height, width, 3] uint8, row by row
    map: Placed | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as read from a shard: encoded bytes, or raw pixels."""

    data: bytes | memoryview
    encoding: Encoding
    width: int
    height: int


class ShardReader(ABC):
    """One open shard file. Safe to read from several threads at once; lets go of the file when it is dropped."""

    @abstractmethod
    def read(self, number: int, placed: Placed) -> bytes | memoryview:
        """The bytes of the shard's ``number``-th sample, which the index says is at ``placed``."""

    def read_map(self, number: int, placed: Placed) -> bytes | memoryview:
        """The bytes of the ``number``-th sample's map, which is at ``placed``. Default: as images are read."""
        return self.read(number, placed)

    def close(self) -> None:
        """Let go of the file. Default: nothing."""


class ShardFormat(ABC):
    """A way to store samples in files. Kind ``shards``.

    A format knows one file; folders, manifests, hashes, parallel builds, order and
    decoding are the trunk's. ``suffix`` begins with a dot. An image with a side above
    ``max_side`` pixels is never handed to ``write``. ``imports`` names slow or large modules
    that ``write`` needs: the processes of a build share one import of them. All samples of a
    file have as many channels, and either all of them or none have ``labels``, or a ``map``.
    """

    suffix: str
    origins: bool = False  # whether it wants to know where samples come from
    planes: bool = False  # whether samples may be "yuv420"
    raw: bool = False  # whether samples may be "raw"
    max_side: int | None = None
    imports: tuple[str, ...] = ()

    def ready(self) -> None:
        """Raise ``PluginError`` where this machine lacks what ``write`` needs. Default: it lacks nothing."""
        return

    @abstractmethod
    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        """Write one shard file; the same samples give the same bytes. Returns a place for each, in order."""

    @abstractmethod
    def open(self, path: Path) -> ShardReader:
        """Open a shard file that ``write`` made."""
