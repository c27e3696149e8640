"""The sample index of a split: where every sample lies, how large it is and what its labels are.

A safetensors file with a row a sample, in the order of the shards; the manifest holds its sha256: damage is seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data.manifest import Shard
from mae_pipe.data.sample import ENCODINGS, Placed
from mae_pipe.errors import DataError

HEADER = 1 << 20  # bytes of the longest description of the columns
MAPPED = 32 << 20  # bytes; a larger index is mapped, not read
TYPES = {
    name: np.dtype(kind)
    for name, kind in (("U8", "u1"), ("U32", "<u4"), ("U64", "<u8"), ("I32", "<i4"), ("I64", "<i8"))
}

FLAT = ("key_bytes", "labels_flat")  # columns without a row a sample
TOGETHER = (  # columns of which all are there, or none
    {"labels_end", "labels_flat"},
    {"map_offset", "map_size", "map_crc32"},
    {"marks_end", "marks_crc32"},
)


@dataclass(frozen=True)
class SampleIndex:
    """A row a sample, in the order of the shards: [n] arrays.

    Those that may be None are there where images have several classes, maps, or marks (``marks.py``).
    """

    shard: NDArray[np.uint32]  # which of Split.shards
    offset: NDArray[np.uint64]
    size: NDArray[np.uint64]
    crc32: NDArray[np.uint32]
    encoding: NDArray[np.uint8]  # a place in ENCODINGS
    width: NDArray[np.uint32]
    height: NDArray[np.uint32]
    label: NDArray[np.int32]  # -1: none
    key_ends: NDArray[np.uint64]  # where each key ends in key_bytes
    key_bytes: NDArray[np.uint8]
    labels_end: NDArray[np.uint64] | None = None  # where each sample's classes end in labels_flat
    labels_flat: NDArray[np.uint32] | None = None  # class numbers, rising in each sample
    map_offset: NDArray[np.uint64] | None = None
    map_size: NDArray[np.uint64] | None = None
    map_crc32: NDArray[np.uint32] | None = None
    marks_end: NDArray[np.uint64] | None = None  # where each image's marks end in the file of marks
    marks_crc32: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, row: int) -> str:
        """The sample's key."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.key_bytes[start : int(self.key_ends[row])].tobytes().decode("utf-8", "backslashreplace")

    def labels(self, row: int) -> NDArray[np.uint32]:
        """The numbers of the sample's classes, where it may have several."""
        if self.labels_end is None or self.labels_flat is None:
            raise ValueError("this index holds one class an image")
        return self.labels_flat[int(self.labels_end[row - 1]) if row else 0 : int(self.labels_end[row])]

    def placed(self, row: int) -> Placed:
        """Where the sample lies in its shard."""
        encoding = ENCODINGS[int(self.encoding[row])]
        map_ = None
        if self.map_offset is not None and self.map_size is not None and self.map_crc32 is not None:
            map_ = Placed(int(self.map_offset[row]), int(self.map_size[row]), int(self.map_crc32[row]), "png")
        return Placed(int(self.offset[row]), int(self.size[row]), int(self.crc32[row]), encoding, map_)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Those that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def joined(cls, parts: list[SampleIndex]) -> SampleIndex:
        """The rows of several indexes, one after the other."""
        if not parts:
            needed = (f for f in fields(cls) if f.default is MISSING)
            return cls(**{f.name: np.zeros(0, f.type.partition("np.")[2].rstrip("]")) for f in needed})
        columns = {name: np.concatenate([part.columns()[name] for part in parts]) for name in parts[0].columns()}
        for ends, flat in (("key_ends", "key_bytes"), ("labels_end", "labels_flat")):
            if ends in columns:
                starts = np.cumsum([0] + [getattr(part, flat).size for part in parts[:-1]], dtype=np.uint64)
                columns[ends] = np.concatenate([getattr(p, ends) + s for p, s in zip(parts, starts, strict=True)])
        if "marks_end" in columns:
            sizes = [0] + [int(part.marks_end[-1]) if len(part) else 0 for part in parts[:-1]]  # type: ignore[index]
            starts = np.cumsum(sizes, dtype=np.uint64)
            columns["marks_end"] = np.concatenate([p.marks_end + s for p, s in zip(parts, starts, strict=True)])
        return cls(**columns)

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write the index; the same rows give the same bytes."""
        from safetensors.numpy import save

        columns = {name: np.ascontiguousarray(value) for name, value in self.columns().items()}
        path.write_bytes(save(columns, metadata))

    def fingerprint(self) -> str:
        """Of keys, sizes and labels: the same for the same images in another format, or in other shards."""
        digest = hashlib.sha256()
        for name in ("key_ends", "key_bytes", "width", "height", "label", "labels_end", "labels_flat"):
            column = getattr(self, name)
            if column is not None:
                digest.update(f"{name} {len(column)} ".encode() + np.ascontiguousarray(column).data)
        return digest.hexdigest()[:16]

    @classmethod
    def load(cls, folder: Path, part: Shard) -> SampleIndex:
        """Read an index and check it against the manifest's hash. A large one is mapped: rows are read when used."""
        path = folder / part.name
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
                columns = _columns(file) if whole else None
        except OSError as error:
            raise DataError(
                f"the sample index {path} is missing or cannot be read ({error.strerror}); "
                f"run: mae-pipe verify {folder}"
            ) from error
        if columns is None or not cls._complete(columns):
            raise DataError(f"the sample index {path} is damaged; copy it again or build the shards again")
        return cls(**columns)

    @classmethod
    def _complete(cls, columns: dict[str, NDArray[Any]]) -> bool:
        """Whether columns have the names, types and lengths of an index."""
        types = {f.name: np.dtype(f.type.partition("np.")[2].partition("]")[0]) for f in fields(cls)}
        needed = [{f.name for f in fields(cls) if f.default is MISSING}, *TOGETHER]
        there = all(
            group <= columns.keys() or (number and not group & columns.keys()) for number, group in enumerate(needed)
        )
        typed = all(types.get(name) == column.dtype and column.ndim == 1 for name, column in columns.items())
        return there and typed and len({len(column) for name, column in columns.items() if name not in FLAT}) == 1


def _columns(file: BinaryIO) -> dict[str, NDArray[Any]] | None:
    """The columns of a safetensors file, mapped where they are large; None where it is no such file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > MAPPED:
        data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with contextlib.suppress(OSError, AttributeError):
            data.madvise(mmap.MADV_RANDOM)  # type: ignore[union-attr]
    else:
        data = file.read()
    try:
        length = int.from_bytes(data[:8], "little")
        if length > min(size, HEADER):
            return None
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        columns = {}
        for name, about in header.items():
            start, stop = about["data_offsets"]
            dtype, (rows,) = TYPES[about["dtype"]], about["shape"]
            if not 0 <= start <= stop <= size - 8 - length or stop - start != rows * dtype.itemsize:
                return None
            columns[name] = np.frombuffer(data, dtype, rows, 8 + length + start) if rows else np.zeros(0, dtype)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return columns
