"""The pieces of data in a beton: the table at its end, and the fields' pointers to it, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .file import ShardFile
from .header import IN_PLACE, Header


@dataclass(frozen=True)
class Allocations:
    """All pieces that are not empty, by place: inside the data, none overlapping another. [n] arrays."""

    pointer: NDArray[np.uint64]
    size: NDArray[np.uint64]
    sample: NDArray[np.uint64]

    @classmethod
    def of(cls, file: ShardFile, header: Header) -> Allocations:
        """Read the table; raises ``ValueError`` that says what is wrong with it."""
        found: list[NDArray[Any]] = []
        for rows in header.table_rows(file):
            pointer, size = rows["pointer"], rows["size"]
            inside = (pointer >= header.data) & (pointer <= header.table) & (size <= header.table - pointer)
            inside &= rows["sample"] < header.samples
            if not inside.all():
                odd = int(inside.argmin())
                raise ValueError(
                    f"its table is damaged: it has {int(size[odd]):,} bytes of sample {int(rows['sample'][odd]):,} at "
                    f"byte {int(pointer[odd]):,}, where the data lies from {header.data:,} to {header.table:,}"
                )
            found.append(rows[size > 0])
        if not found:
            return cls(*np.zeros((3, 0), np.uint64))
        pointer, size, sample = (
            np.concatenate([rows[name] for rows in found]) for name in ("pointer", "size", "sample")
        )
        order = np.argsort(pointer, kind="stable")
        pointer, size, sample = pointer[order], size[order], sample[order]
        over = np.flatnonzero(pointer[:-1] + size[:-1] > pointer[1:])
        if len(over):
            raise ValueError(f"its table is damaged: two pieces of data overlap at byte {int(pointer[over[0] + 1]):,}")
        return cls(pointer, size, sample)

    def sizes(self, column: NDArray[Any], field: str) -> NDArray[np.uint64]:
        """[samples]: the bytes of a field's data, by its ``column`` of the records.

        Raises ``ValueError`` where a pointer is to no piece of its sample, or to one of another size.
        """
        names = column.dtype.names or ()
        pointers = column["pointer"] if names else column
        claimed = column["size"] if "size" in names else None
        samples = np.arange(len(column)) if claimed is None else np.flatnonzero(claimed)
        sizes, right = np.zeros(len(column), np.uint64), np.zeros(len(samples), bool)
        if len(self.pointer) and len(samples):
            wanted = pointers[samples]
            found = np.minimum(np.searchsorted(self.pointer, wanted), len(self.pointer) - 1)
            sizes[samples] = self.size[found]
            right = (self.pointer[found] == wanted) & (self.sample[found] == samples.astype(np.uint64))
            right &= claimed is None or self.size[found] == claimed[samples]
        if not right.all():
            raise ValueError(
                f"its tables contradict each other about {field!r} of sample {int(samples[right.argmin()]):,}"
            )
        return sizes


def check(file: ShardFile, header: Header) -> Allocations:
    """The table, once every pointer of every field is one of it."""
    table = Allocations.of(file, header)
    for field, kind in header.kinds.items():
        if kind not in IN_PLACE:
            table.sizes(header.column(file, field), field)
    return table
