"""The sample index of a split: where every sample lies, how large it is and what its labels are.

A safetensors file with a row a sample, in the order of the shards; the manifest holds its sha256: damage is seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data.manifest import Shard
from mae_pipe.data.sample import ENCODINGS, Placed
from mae_pipe.errors import DataError


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
        return self.key_bytes[start : int(self.key_ends[row])].tobytes().decode()

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

    @classmethod
    def load(cls, folder: Path, part: Shard) -> SampleIndex:
        """Read an index and check it against the manifest's hash."""
        from safetensors.numpy import load

        path = folder / part.name
        if not path.is_file():
            raise DataError(f"the sample index {path} is missing; run: mae-pipe verify {folder}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DataError(f"the sample index {path} is damaged; copy it again or build the shards again")
        return cls(**load(data))
