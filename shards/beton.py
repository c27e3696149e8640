"""FFCV: beton files, written and read by the ffcv library itself.

JPEG files are stored untouched (ffcv's own writer would encode them again), everything else as raw
pixels, so both formats of mae-pipe hold the same pictures. Fields: ``image`` and ``label`` (-1: none).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import queue
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Value
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.api import Placed, PluginError, Sample, ShardFormat, ShardReader, plugin

from .file import ShardFile

PAGE = 2 << 20  # bytes; ffcv's smallest
USUAL_PAGE = 8 << 20  # ffcv's default
INSTALL = (
    "install it with: apt-get install libopencv-dev libturbojpeg0-dev pkg-config build-essential, "
    "then: pip install 'mae-pipe[ffcv]'"
)


@plugin("ffcv")
class Beton(ShardFormat):
    """FFCV beton files: JPEG bytes as they are, other images as raw pixels; read by ffcv's own Loader."""

    suffix = ".beton"
    max_side = 65535  # ffcv keeps sides in 16 bits
    imports = ("ffcv.writer",)

    def __init__(self) -> None:
        if importlib.util.find_spec("ffcv") is None:
            raise PluginError(f"ffcv is not installed; {INSTALL}")

    def write(self, path: Path, samples: Iterable[Sample]) -> list[Placed]:
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            records = [_spooled(spool, sample) for sample in samples]  # ffcv wants the count and the largest first
            starts = _written(path, _Spool(spool, records))
        return [
            Placed(start, record.size, record.crc32, "jpeg" if record.jpeg else "raw")
            for start, record in zip(starts, records, strict=True)
        ]

    def open(self, path: Path) -> ShardReader:
        return _Tables(path)


@dataclass(frozen=True, slots=True)
class _Record:
    """A sample in the spool file."""

    offset: int
    size: int
    crc32: int
    jpeg: bool
    width: int
    height: int
    label: int


@dataclass(frozen=True, slots=True)
class _Picture:
    """What ffcv's writer is handed for the field ``image``."""

    data: NDArray[np.uint8]
    record: _Record


def _spooled(spool: BinaryIO, sample: Sample) -> _Record:
    if sample.encoding == "jpeg":
        data = sample.image
    else:
        with Image.open(io.BytesIO(sample.image), formats=("PNG", "WEBP")) as picture:
            data = picture.convert("RGB").tobytes()
    offset = spool.tell()
    spool.write(data)
    label = -1 if sample.label is None else sample.label
    jpeg = sample.encoding == "jpeg"
    return _Record(offset, len(data), zlib.crc32(data), jpeg, sample.width, sample.height, label)


class _Spool:
    """The spooled samples as ffcv wants a data set: by number."""

    def __init__(self, file: BinaryIO, records: list[_Record]) -> None:
        self._file, self.records = file, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[_Picture, int]:
        record = self.records[number]
        self._file.seek(record.offset)
        data = np.frombuffer(self._file.read(record.size), np.uint8)
        return _Picture(data, record), record.label


def _written(path: Path, samples: _Spool) -> list[int]:
    """Write a beton file; returns where each sample's bytes begin."""
    fields, allocator, writer = (_ffcv(name) for name in ("fields.rgb_image", "memory_allocator", "writer"))
    modes = {True: int(fields.IMAGE_MODES["jpg"]), False: int(fields.IMAGE_MODES["raw"])}
    starts: list[int] = []

    def encode(destination: Any, picture: _Picture, malloc: Any) -> None:
        record = picture.record
        pointer, storage = malloc(record.size)
        storage[:] = picture.data
        destination["mode"] = modes[record.jpeg]
        destination["width"], destination["height"] = record.width, record.height
        destination["data_ptr"] = pointer
        starts.append(int(pointer))

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

    # The class stays ffcv's, and with it the type in the file, so that ffcv's own Loader reads it.
    image = fields.RGBImageField(write_mode="jpg")
    image.encode = encode
    columns = {"image": image, "label": _ffcv("fields.basics").IntField()}
    InProcess(str(path), columns, _page_size(samples.records), num_workers=1).from_indexed_dataset(samples)
    return starts


def _page_size(records: list[_Record]) -> int:
    """A power of two that the largest sample fits in, without filling small files with zeros."""
    largest, total = max(record.size for record in records), sum(record.size for record in records)
    page = PAGE
    while page < largest or (page < USUAL_PAGE and page < total // 16):
        page *= 2
    return page


def _ffcv(module: str) -> Any:
    """A module of ffcv; several seconds the first time."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(f"ffcv.{module}")
    except ImportError as error:
        raise PluginError(f"ffcv cannot be imported ({error}); {INSTALL}") from error


class _Tables(ShardReader):
    """A beton's images, found by ffcv's own tables."""

    def __init__(self, path: Path) -> None:
        reader = _ffcv("reader")
        self._file = ShardFile(path)
        try:
            beton = reader.Reader(str(path))
            pointers = beton.metadata[beton.metadata.dtype.names[beton.field_names.index("image")]]["data_ptr"]
            order = np.argsort(beton.alloc_table["ptr"])
            found = order[np.searchsorted(beton.alloc_table["ptr"][order], pointers)]
            if not np.array_equal(beton.alloc_table["ptr"][found], pointers):
                raise ValueError("its tables contradict each other")
        except Exception as error:  # ffcv trusts what it reads, so damage shows as anything
            raise self._file.damaged(f"{type(error).__name__}: {error}") from error
        self._starts: list[int] = pointers.tolist()
        self._sizes: list[int] = beton.alloc_table["size"][found].tolist()

    def read(self, number: int, placed: Placed) -> bytes:
        if number >= len(self._starts) or self._sizes[number] != placed.size:
            raise self._file.damaged(f"its image {number} is not the one of the index")
        return self._file.read(self._starts[number], placed.size)

    def close(self) -> None:
        self._file.close()
