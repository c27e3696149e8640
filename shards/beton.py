"""FFCV: beton files, written and read by the ffcv library itself.

JPEG files are stored untouched (ffcv's own writer would encode them again), everything else as raw
pixels, so both formats of mae-pipe hold the same pictures. Fields: ``image`` and ``label`` (-1: none);
``labels`` (JSON) where an image may have several classes, ``map`` (the bytes of a PNG) where it has one.
Images that are not of 3 channels, which ffcv's field for images cannot hold, are the bytes of their files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import queue
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Value
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.api import Placed, PluginError, Sample, ShardFormat, ShardReader, plugin

from .tables import INSTALL, Tables, ffcv

PAGE = 2 << 20  # bytes; ffcv's smallest
USUAL_PAGE = 8 << 20  # ffcv's default


@plugin("ffcv")
class Beton(ShardFormat):
    """FFCV beton files: JPEG bytes as they are, other images as raw pixels; read by ffcv's own Loader."""

    suffix = ".beton"
    raw = True
    max_side = 65535  # ffcv keeps sides in 16 bits
    imports = ("ffcv.writer",)

    def ready(self) -> None:
        if importlib.util.find_spec("ffcv") is None:
            raise PluginError(f"ffcv is not installed; {INSTALL}")

    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            records = [_spooled(spool, sample) for sample in samples]  # ffcv wants the count and the largest first
            images, maps = _written(path, _Spool(spool, records))
        return [
            Placed(start, record.image.size, record.image.crc32, record.encoding, map_)
            for start, record, map_ in zip(images, records, _map_places(maps, records), strict=True)
        ]

    def open(self, path: Path) -> ShardReader:
        return Tables(path)


class _Span(NamedTuple):
    """Bytes in the spool file."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class _Record:
    """A sample in the spool file."""

    image: _Span
    encoding: Literal["jpeg", "png", "webp", "raw", "npy", "yuv420"]  # as the beton holds it
    as_file: bool  # whether the image is the bytes of its file, not a picture of ffcv's
    width: int
    height: int
    label: int
    labels: tuple[int, ...] | None
    map: _Span | None


@dataclass(frozen=True, slots=True)
class _Picture:
    """What ffcv's writer is handed for the field ``image``."""

    data: NDArray[np.uint8]
    record: _Record


def _spooled(spool: BinaryIO, sample: Sample) -> _Record:
    as_file = sample.channels != 3
    if as_file or sample.encoding in ("jpeg", "raw"):
        data, encoding = sample.image, sample.encoding
    else:
        with Image.open(io.BytesIO(sample.image), formats=("PNG", "WEBP")) as picture:
            data, encoding = picture.convert("RGB").tobytes(), "raw"
    return _Record(
        _span(spool, data),
        encoding,
        as_file,
        sample.width,
        sample.height,
        -1 if sample.label is None else sample.label,
        sample.labels,
        None if sample.map is None else _span(spool, sample.map),
    )


def _span(spool: BinaryIO, data: bytes) -> _Span:
    offset = spool.tell()
    spool.write(data)
    return _Span(offset, len(data), zlib.crc32(data))


def _map_places(starts: list[int], records: list[_Record]) -> list[Placed | None]:
    if not starts:
        return [None] * len(records)
    spans = [record.map for record in records if record.map]
    return [Placed(at, span.size, span.crc32, "png") for at, span in zip(starts, spans, strict=True)]


class _Spool:
    """The spooled samples as ffcv wants a data set: by number, a value for each field."""

    def __init__(self, file: BinaryIO, records: list[_Record]) -> None:
        self._file, self.records = file, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        record = self.records[number]
        values: list[Any] = [_Picture(self._bytes(record.image), record), record.label]
        if record.labels is not None:
            values.append({"labels": list(record.labels)})
        if record.map is not None:
            values.append(self._bytes(record.map))
        return tuple(values)

    def _bytes(self, span: _Span) -> NDArray[np.uint8]:
        self._file.seek(span.offset)
        return np.frombuffer(self._file.read(span.size), np.uint8)


def _written(path: Path, samples: _Spool) -> tuple[list[int], list[int]]:
    """Write a beton file; returns where each sample's image begins, and its map if it has one."""
    allocator, writer = ffcv("memory_allocator"), ffcv("writer")

    class InProcess(writer.DatasetWriter):  # type: ignore[misc, name-defined]
        """Runs ffcv's one worker in this process: a worker of its own that fails is waited for for ever."""

        def _write_common(self, num_samples: int, queue_content: Any, work_fn: Any, extra_worker_args: Any) -> None:
            self.num_samples = num_samples
            self.prepare()
            try:
                todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
                made: queue.SimpleQueue[Any] = queue.SimpleQueue()
                for chunk in (*queue_content, None):
                    todo.put(chunk)
                pages = allocator.MemoryAllocator(self.fname, self.data_region_start, self.page_size)
                shared = (todo, self.metadata_sm, self.metadata_type, self.fields, pages, Value("Q", 0), made)
                work_fn(*shared, *extra_worker_args)
                self.finalize(made.get())
            finally:
                self.metadata_sm.unlink()
                with contextlib.suppress(BufferError):  # after an error its frames still hold the memory
                    self.metadata_sm.close()

    images: list[int] = []
    maps: list[int] = []
    first = samples.records[0]
    fields = ffcv("fields")
    columns = {"image": _file_field(images) if first.as_file else _image_field(images), "label": fields.IntField()}
    if first.labels is not None:
        columns["labels"] = fields.JSONField()
    if first.map is not None:
        columns["map"] = _file_field(maps)
    InProcess(str(path), columns, _page_size(samples.records), num_workers=1).from_indexed_dataset(samples)
    return images, maps


# The classes stay ffcv's, and with them the types in the file, so that ffcv's own Loader reads it.


def _image_field(starts: list[int]) -> Any:
    """ffcv's field for pictures; ``starts`` gets where each one's bytes begin."""
    module = ffcv("fields.rgb_image")
    modes = {"jpeg": int(module.IMAGE_MODES["jpg"]), "raw": int(module.IMAGE_MODES["raw"])}

    def encode(destination: Any, picture: _Picture, malloc: Any) -> None:
        record = picture.record
        pointer, storage = malloc(record.image.size)
        storage[:] = picture.data
        destination["mode"] = modes[record.encoding]
        destination["width"], destination["height"] = record.width, record.height
        destination["data_ptr"] = pointer
        starts.append(int(pointer))

    field = module.RGBImageField(write_mode="jpg")
    field.encode = encode
    return field


def _file_field(starts: list[int]) -> Any:
    """ffcv's field for bytes; ``starts`` gets where each one's begin."""

    def encode(destination: Any, value: _Picture | NDArray[np.uint8], malloc: Any) -> None:
        data = value.data if isinstance(value, _Picture) else value
        pointer, storage = malloc(data.size)
        storage[:] = data
        destination["ptr"], destination["size"] = pointer, data.size
        starts.append(int(pointer))

    field = ffcv("fields.bytes").BytesField()
    field.encode = encode
    return field


def _page_size(records: list[_Record]) -> int:
    """A power of two that the largest allocation fits in, without filling small files with zeros."""
    sizes = [span.size for record in records for span in (record.image, record.map) if span]
    largest, total = max(sizes), sum(sizes)
    page = PAGE
    while page < largest or (page < USUAL_PAGE and page < total // 16):
        page *= 2
    return page
