"""The header of a beton, FFCV's file, checked before anything trusts it; ffcv itself is not needed.

On disk: the header, a description of 1041 bytes for each field, a record for each sample, the data in pages, and
a table of all pieces of data to the end of the file (``allocations.py``). All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .file import ShardFile

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
BYTES = np.dtype([("pointer", "<u8"), ("size", "<u8")])
KINDS: dict[int, tuple[str, np.dtype[Any]]] = {  # by ffcv's number: what a field is, and its part of a record
    0: ("float", np.dtype("<f8")),
    1: ("int", np.dtype("<i8")),
    2: ("image", np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])),
    3: ("bytes", BYTES),
    4: ("array", np.dtype("<u8")),
    5: ("json", BYTES),
    6: ("tensor", np.dtype("<u8")),
}
IN_PLACE = ("float", "int")  # kinds that have all they are in the record
CHUNK = 1 << 20  # rows that are read at a time


@dataclass(frozen=True)
class Header:
    """What a beton holds, and where.

    Attributes:
        kinds: of its fields, by name.
        record: a sample's numbers; a field each.
        data: byte at which the records end and the data may begin.
        table: byte at which the data ends and the table begins.
        allocations: rows of the table.
    """

    samples: int
    kinds: dict[str, str]
    record: np.dtype[Any]
    records: int
    data: int
    table: int
    allocations: int

    @classmethod
    def of(cls, file: ShardFile, size: int) -> Header:
        """Read the header of a file of ``size`` bytes; raises ``ValueError`` that says what is wrong with it."""
        if size < HEADER.itemsize:
            raise ValueError(f"it has {size} bytes, fewer than a header")
        said = {name: int(np.frombuffer(file.read(0, HEADER.itemsize), HEADER)[0][name]) for name in HEADER.names or ()}
        if said["version"] != VERSION:
            raise ValueError(f"it says version {said['version']}, not {VERSION}: it is no beton, or damaged")
        records = HEADER.itemsize + said["fields"] * FIELD.itemsize
        if not said["fields"] or records > size:
            raise ValueError(f"it claims {said['fields']} fields in {size:,} bytes")
        kinds, record = _fields(file.read(HEADER.itemsize, records - HEADER.itemsize))
        if not said["samples"]:
            raise ValueError("it holds no samples")
        samples, table, data = said["samples"], said["table"], records + said["samples"] * record.itemsize
        if not table:
            raise ValueError("it has no table: its writer was stopped before the end")
        if data > size:
            raise ValueError(f"it is cut, or claims more samples than it has: {samples:,} in {size:,} bytes")
        if not data <= table <= size:
            raise ValueError(f"it is cut: its table should begin at byte {table:,} of {size:,}")
        rows, rest = divmod(size - table, ALLOCATION.itemsize)
        pointing = sum(kind not in IN_PLACE for kind in kinds.values())
        if rest or rows > samples * pointing:
            raise ValueError(f"it is cut or damaged: its table has {size - table:,} bytes for {samples:,} samples")
        if said["page"] & (said["page"] - 1) or not said["page"]:
            raise ValueError(f"its pages have {said['page']:,} bytes, which is no power of two")
        return cls(samples, kinds, record, records, data, table, rows)

    def column(self, file: ShardFile, field: str) -> NDArray[Any]:
        """[samples]: the field's part of every record."""
        parts = [part[field].copy() for part in _rows(file, self.records, self.record, self.samples)]
        return np.concatenate(parts) if parts else np.zeros(0, self.record[field])

    def table_rows(self, file: ShardFile) -> Iterator[NDArray[Any]]:
        """The table's rows, some at a time."""
        return _rows(file, self.table, ALLOCATION, self.allocations)


def _fields(described: bytes) -> tuple[dict[str, str], np.dtype[Any]]:
    """The kinds of all fields by name, and the type of a record."""
    kinds: dict[str, str] = {}
    columns: list[tuple[str, np.dtype[Any]]] = []
    for about in np.frombuffer(described, FIELD):
        letters = bytes(about["name"]).partition(b"\0")[0]
        if not letters or not all(32 <= letter < 127 for letter in letters):
            raise ValueError(f"a field has the name {letters!r}")
        name, number = letters.decode("ascii"), int(about["type"])
        if name in kinds:
            raise ValueError(f"two fields have the name {name!r}")
        if number not in KINDS:
            own = "a type of its maker's own" if number == 255 else f"the unknown type {number}"
            raise ValueError(f"the field {name!r} has {own}, so that its records cannot be read")
        kinds[name], column = KINDS[number]
        columns.append((name, column))
    return kinds, np.dtype(columns, align=True)


def _rows(file: ShardFile, at: int, dtype: np.dtype[Any], count: int) -> Iterator[NDArray[Any]]:
    for start in range(0, count, CHUNK):
        many = min(CHUNK, count - start)
        yield np.frombuffer(file.read(at + start * dtype.itemsize, many * dtype.itemsize), dtype)
