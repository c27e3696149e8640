"""What a folder of shards holds: ``manifest.json`` and, for each split, a sample index.

The manifest is small and for people; the index has a row a sample and is a safetensors
file that is mapped, not parsed. Both are named by sha256, so that damage is seen.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mae_pipe.data.sample import ENCODINGS, Placed
from mae_pipe.errors import DataError, closest

NAME = "manifest.json"
VERSION = 2  # 1: images of 3 channels, classes by folders, no maps

Labels = Literal["class", "multi", "map"]  # one class an image, several, or one a pixel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Part):
    """One shard file; ``name`` is relative to the manifest's folder."""

    name: str
    images: int
    bytes: int
    sha256: str


class Refused(_Part):
    """A source file that is in no shard, and why."""

    path: str
    reason: str


class Statistics(_Part):
    """Of a split's stored images; mean and std per channel (red, green, blue; or as they lie there) in [0, 1]."""

    mean: list[float]
    std: list[float]
    mean_width: float
    mean_height: float


class Split(_Part):
    """One split ("train", "val", ...)."""

    images: int
    shards: list[Shard]
    index: Shard  # the sample index's file
    statistics: Statistics
    labelled: bool
    converted: dict[str, int]  # what was done to how many, such as {"cmyk": 22}
    refused: list[Refused]
    maps: bool = False  # whether every image has a class a pixel


class Manifest(_Part):
    """A folder of shards."""

    version: int
    format: str  # a plugin of kind "shards"
    created_by: str
    options: dict[str, Any]  # by split: those of its build that change bytes
    classes: list[str]  # names by label; empty where images have no labels
    splits: dict[str, Split]
    channels: int = 3
    labelling: Literal["class", "multi"] = "class"  # one class an image, or any number of them
    map_classes: list[str] = []  # names by value in maps; empty where there are none

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        path = folder / NAME
        new = path.with_suffix(".json.tmp")
        new.write_text(json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``."""
        path = folder / NAME
        if not path.is_file():
            raise DataError(f"{folder} holds no {NAME}; build shards with: mae-pipe shard IMAGES {folder}")
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{path} is not a manifest: {where}: {first['msg']}; build the shards again") from error
        if manifest.version > VERSION:
            raise DataError(
                f"{path} has version {manifest.version}, this mae-pipe reads up to {VERSION}; upgrade mae-pipe"
            )
        for part in [p for s in manifest.splits.values() for p in (*s.shards, s.index)]:
            if Path(part.name).is_absolute() or ".." in Path(part.name).parts:
                raise DataError(f"{path} names {part.name!r}, outside its folder; do not use these shards")
        return manifest

    def split(self, name: str) -> Split:
        """A split by name."""
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"the shards have no split {name!r}{closest(name, self.splits)}; they have {known}")
        return self.splits[name]

    def classes_of(self, labels: Labels) -> list[str]:
        """The names of the classes that such labels are numbers of."""
        return self.map_classes if labels == "map" else self.classes


@dataclass(frozen=True)
class SampleIndex:
    """A row a sample, in the order of the shards: [n] arrays.

    Those that may be None are there where images have several classes, or maps.
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
