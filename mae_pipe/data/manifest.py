"""What a folder of shards holds: ``manifest.json``, small and for people; ``index.py`` has a row a sample."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mae_pipe.data.address import Address, is_url
from mae_pipe.errors import DataError, closest

NAME = "manifest.json"
VERSION = 3  # 1: images of 3 channels, classes by folders, no maps; 2: no marks

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]
Labels = Literal["class", "multi", "map"]  # one class an image, several, or one a pixel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Part):
    """One file; ``name`` is relative to the manifest's folder, a shard's to its ``base``."""

    name: Name
    images: Count
    bytes: Count
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

    images: Count
    shards: list[Shard]
    index: Shard  # the sample index's file
    statistics: Statistics
    labelled: bool
    converted: dict[str, Count]  # what was done to how many, such as {"cmyk": 22}
    refused: list[Refused]
    maps: bool = False  # whether every image has a class a pixel
    source_bytes: int = 0  # of the files that the images were read from
    compared: int = 0  # images whose stored form is not their file, and that were compared with it
    squared_error: float = 0.0  # of those, the mean over centre views of 224 pixels, in levels of 8 bits
    marks: Shard | None = None  # the file of marks (``marks.py``)

    @property
    def files(self) -> list[Shard]:
        """Every file of the split."""
        return [*self.shards, self.index, *([self.marks] if self.marks else [])]


class Manifest(_Part):
    """A folder of shards."""

    version: int
    format: Annotated[str, Field(max_length=200)]  # a plugin of kind "shards"
    created_by: str
    options: dict[str, Any]  # by split: those of its build that change bytes
    classes: list[str]  # names by label; empty where images have no labels
    splits: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,200}$")], Split]
    channels: Annotated[int, Field(ge=1, le=1 << 16)] = 3
    labelling: Literal["class", "multi"] = "class"  # one class an image, or any number of them
    map_classes: list[str] = []  # names by value in maps; empty where there are none
    base: Name | None = None  # where the shards lie: a folder, from the manifest's own on, or a URL; None: beside it

    @property
    def elsewhere(self) -> Address | None:
        """Where the shards lie, if not on this machine."""
        return Address.of(self.base) if self.base is not None and is_url(self.base) else None

    def home(self, folder: Path) -> Path:
        """The folder of the shards, for a manifest in ``folder``; only where they are not ``elsewhere``."""
        return folder / self.base if self.base is not None else folder

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        path = folder / NAME
        new = path.with_suffix(".json.tmp")
        new.write_text(json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, folder: Path, name: str = NAME) -> Manifest:
        """Read and check ``folder/manifest.json``."""
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} holds no {NAME}; build shards with: mae-pipe shard IMAGES {folder}")
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(".".join(map(str, first["loc"])).split())[:200] or "the file"
            raise DataError(
                f"{path} is not a manifest: {where}: {first['msg'][:200]}; build the shards again"
            ) from error
        if manifest.version > VERSION:
            raise DataError(
                f"{path} has version {manifest.version}, this mae-pipe reads up to {VERSION}; upgrade mae-pipe"
            )
        for part in [p for s in manifest.splits.values() for p in s.files]:
            if any(
                len(os.fsencode(piece)) > 255 for piece in (*Path(part.name).parts, *Path(manifest.base or "").parts)
            ):
                raise DataError(
                    f"{path} names {part.name[:200]!r}, which no file can be called; build the shards again"
                )
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
