"""The finished parts of a build -> the index of each split, and the manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_pipe import __version__
from mae_pipe.data import beside, inplace, parts, record
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.listing import Listing
from mae_pipe.data.manifest import NAME, VERSION, Manifest, Shard, Split, Statistics
from mae_pipe.data.marks import SUFFIX
from mae_pipe.data.place import numbers
from mae_pipe.data.plan import Plan
from mae_pipe.data.scan import Source
from mae_pipe.errors import DataError


def merge(
    found: Source, plan: Plan, others: Manifest | None, made: dict[str, Listing], base: str | None = None
) -> Manifest:
    """The finished parts as splits: their indexes, then the manifest, which makes the shards valid.

    Args:
        others: of the splits that these join.
        made: the parts' names, in order, and the listing of each one's files.
        base: see ``Manifest.base``.
    """
    options, out = json.loads(plan.options), plan.out
    if others and others.base != base:
        raise DataError(f"{out} is the index of shards at {others.base}, not at {base}; give another folder")
    splits, top = {}, -1
    for listing in found.splits:
        whole = _Merged(plan, listing)
        for name, its in made.items():
            if its is listing:
                whole.add(record.load(out, name), record.marks_path(out, name))
        splits[listing.split], top = whole.split(), max(top, whole.top)
    if not any(split.images for split in splits.values()):
        first = next(split.refused[0] for split in splits.values() if split.refused)
        raise DataError(f"none of the images can be used; the first is {first.path}: {first.reason}")
    before: dict[str, Any] = others.model_dump() if others else {"classes": [], "map_classes": [], "labelling": "class"}
    mapped = list(plan.map_names) if plan.map_names else numbers(max(top + 1, len(before["map_classes"])))
    manifest = Manifest(
        version=VERSION,
        format=plan.format,
        created_by=f"mae-pipe {__version__}",
        options={**(others.options if others else {}), **dict.fromkeys(splits, options)},
        classes=found.classes or before["classes"],
        splits={**(others.splits if others else {}), **splits},
        channels=plan.wishes.channels,
        labelling=plan.labelling if found.classes or plan.table else before["labelling"],
        map_classes=mapped if plan.maps else before["map_classes"],
        base=base,
    )
    beside.save(out, manifest)
    manifest.save(out)
    parts.flush(out / NAME)
    parts.flush(out)
    return manifest


class _Merged:
    """The parts of one split, put together."""

    def __init__(self, plan: Plan, listing: Listing) -> None:
        self._plan, self._listing = plan, listing
        self._shards: list[Shard] = []
        self._rows: list[SampleIndex] = []
        self._marks: list[Path] = []
        self._read, self._far = 0, (0.0, 0)
        self._refused, self._converted = list(listing.refused), Counter[str]()
        channels = plan.wishes.channels
        self._pixels, self._values, self._squares = 0, np.zeros(channels, object), np.zeros(channels, object)
        self._sides = np.zeros(2, object)  # exact integers, as all of these
        self.top = -1  # the highest class in a map

    def add(self, part: record.Part, marks: Path) -> None:
        """The next part of the split, and the file of its marks."""
        self._refused += part.refused
        self._converted.update(part.converted)
        self._read += part.read
        self._far = self._far[0] + part.far[0], self._far[1] + part.far[1]
        self.top = max(self.top, part.top)
        if part.file is None:
            return
        if self._plan.in_place and self._shards and self._shards[-1].name == part.file.name:
            self._shards[-1] = inplace.joined(self._shards[-1], part.file)
        else:
            self._shards.append(part.file)
        self._rows.append(replace(part.rows, shard=np.full(len(part.rows), len(self._shards) - 1, np.uint32)))
        self._marks.append(marks)
        self._pixels += part.sums.pixels
        self._values, self._squares = self._values + part.sums.values, self._squares + part.sums.squares
        self._sides = self._sides + part.sides

    def split(self) -> Split:
        """Write the index, and say what the split holds."""
        images = sum(shard.images for shard in self._shards)
        index = self._plan.out / f"{self._listing.split}.index.safetensors"
        draft = index.with_name(index.name + ".tmp")
        SampleIndex.joined(self._rows).save(draft)
        parts.settle(draft, index)
        mean = [float(value) / max(self._pixels, 1) / 255 for value in self._values]
        power = [float(square) / max(self._pixels, 1) / 255**2 for square in self._squares]
        return Split(
            images=images,
            shards=[inplace.hashed(shard, self._plan) for shard in self._shards],
            index=Shard(name=index.name, images=images, bytes=index.stat().st_size, sha256=parts.sha256_of(index)),
            statistics=Statistics(
                mean=mean,
                std=[max(p - m * m, 0.0) ** 0.5 for p, m in zip(power, mean, strict=True)],
                mean_width=self._sides[0] / max(images, 1),
                mean_height=self._sides[1] / max(images, 1),
            ),
            labelled=self._listing.labelled or self._plan.table is not None,
            converted=dict(sorted(self._converted.items())),
            source_bytes=self._read,
            compared=self._far[1],
            squared_error=self._far[0] / max(self._far[1], 1),
            refused=sorted(self._refused, key=lambda entry: entry.path),
            maps=self._plan.maps is not None,
            marks=self._joined_marks(images) if self._plan.marks else None,
        )

    def _joined_marks(self, images: int) -> Shard:
        """Write the file of marks: those of the parts, one after the other."""
        path = self._plan.out / f"{self._listing.split}{SUFFIX}"
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as out:
            for part in self._marks:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out)
        parts.settle(draft, path)
        return Shard(name=path.name, images=images, bytes=path.stat().st_size, sha256=parts.sha256_of(path))
