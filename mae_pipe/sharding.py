"""A folder of images -> a folder of shards."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from mae_pipe.catalog import Catalog
from mae_pipe.data import inplace, record, region
from mae_pipe.data import labels as tables
from mae_pipe.data.admit import Wishes
from mae_pipe.data.crew import make_all
from mae_pipe.data.listing import Listing
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.maps import IGNORE
from mae_pipe.data.merge import merge
from mae_pipe.data.parts import reader
from mae_pipe.data.place import check_places, claimed, clear, disk_error
from mae_pipe.data.plan import File, Plan, Run
from mae_pipe.data.sample import ShardFormat
from mae_pipe.data.scan import scan
from mae_pipe.data.sources import FALLBACK, ImageSource, recognised
from mae_pipe.errors import DataError
from mae_pipe.seeding import key, permutation

PER_SHARD = 2000
RULES = 3  # of this build; another number makes every part again

Progress = Callable[[int, int, int], None]  # images done, refused among them, images in all


def build(
    source: Path,
    out: Path,
    *,
    format: str = "webdataset",
    catalog: Catalog,
    workers: int | None = None,
    per_shard: int | None = None,
    quality: int | None = None,
    max_side: int | None = None,
    short_side: int | None = None,
    splits: Sequence[str] = (),
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    labels: Path | None = None,
    maps: Path | None = None,
    class_names: Path | None = None,
    ignore_classes: Sequence[int] = (),
    planes: bool = False,
    raw: float = 0.0,
    marks: bool = True,
    shuffle: bool = False,
    source_name: str | None = None,
    source_options: Mapping[str, Any] = MappingProxyType({}),
    in_place: bool = False,
    base: str | None = None,
    glance: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build shards of every image below ``source``; an interrupted build goes on where it was.

    The same input and options give the same bytes, whatever ``workers`` is.

    Args:
        format: a plugin of kind ``shards``.
        workers: processes; default: one a core.
        per_shard: source files a shard; default 2000.
        quality, max_side, short_side: see ``admit.Wishes``.
        splits: see ``scan.scan``.
        channels: of the images; files of another number are refused. Default 3, and then .npy files are no images.
        value_range: see ``admit.Wishes.values``.
        labels: a table of every image's classes (``labels.read``); folders are then no classes.
        maps: a folder with a map for every image: the same path below it, ending in .png (``maps.admit_map``).
        class_names: a file of the names of the maps' classes, or without maps of the table's, in their order.
        ignore_classes: of maps: they become 255, and the others move down to fill their places.
        planes: store images without compression, as planes of YCbCr 4:2:0 (``planar.py``).
        raw: store this share of the images as raw pixels: FFCV's raw and proportion modes.
        marks: note where the rows of blocks of JPEGs begin (``marks.py``), if this machine can.
        shuffle: spread images over the shards at random, always in the same way; default: in the order of the source.
        source_name: a plugin of kind ``source``; default: the one that recognises ``source``.
        source_options: of that plugin.
        in_place: the source's own files are the shards, and what is built is their index.
        base: where those files will be read, a folder or a URL; default: where they are.
        glance: look at the headers of most images only.
        overwrite: replace what earlier builds left in ``out``; without it, new splits may join them.
    """
    writer: ShardFormat = catalog.build("shards", format, {})  # a format that is not there should not cost a scan
    if not in_place:
        writer.ready()
        check_places(source, out)
    per_shard = per_shard or PER_SHARD
    source_name = source_name or recognised(source, catalog)
    _check(source, source_name, quality, channels, value_range, labels, maps, class_names, ignore_classes)
    if planes and not writer.planes:
        raise DataError(f"--planes is not for {format} shards; leave --format out, or --planes")
    if planes and (quality or channels not in (None, 3)):
        raise DataError("--planes stores 3 channels without compression; leave out --quality and --channels")
    names = tuple(tables.class_names(class_names)) if class_names else None
    if raw and (not writer.raw or planes or quality or channels not in (None, 3)):
        raise DataError(
            f"--raw is for --format ffcv and 3 channels, without --planes and --quality; "
            f"for {format} shards give --planes, or leave --raw out"
        )
    marks = marks and not planes and region.can_mark()
    options = {
        "format": format,
        "rules": RULES,
        "per_shard": per_shard,
        "quality": quality,
        "max_side": max_side,
        "short_side": short_side,
        "splits": list(splits),
        "pillow": PIL.__version__,
        **({} if channels is None else {"channels": channels}),
        **({} if value_range is None else {"value_range": list(value_range)}),
        **({} if labels is None else {"labels": _hash(labels)}),
        **({} if maps is None else {"maps": True}),
        **({} if class_names is None else {"class_names": _hash(class_names)}),
        **({"ignored": sorted(set(ignore_classes))} if ignore_classes else {}),
        **({"marks": True} if marks else {}),
        **({"planes": True} if planes else {}),
        **({"raw": raw} if raw else {}),
        **({"shuffle": True} if shuffle else {}),
        **({} if source_name == FALLBACK else {"source": source_name}),
        **({"source_options": dict(source_options)} if source_options else {}),
        **({"in_place": True, "decoded": "headers" if glance else "all"} if in_place else {}),
    }
    plan = Plan(
        out,
        format,
        catalog.files,
        Wishes(quality, max_side, short_side, channels=channels or 3, values=value_range, planes=planes, glance=glance),
        json.dumps(options, sort_keys=True),
        labels.name if labels else None,
        maps,
        names if maps else None,
        marks,
        source_name,
        source,
        json.dumps(dict(source_options), sort_keys=True),
        in_place,
        raw=raw,
        ignored=tuple(sorted(set(ignore_classes))),
    )
    reader.cache_clear()
    if shuffle and reader(plan).sequential:
        raise DataError(
            f"--shuffle reads images at random places, which takes too long in a {source_name} source; shard it "
            "without, and then those shards with --shuffle"
        )
    found = scan(
        reader(plan),
        splits,
        arrays=bool(channels or value_range),
        classes=labels is None,
        names=None if maps else names,
    )
    lists: list[tables.Lists | None] = [None] * len(found.splits)
    if found.lists:
        plan, lists[:] = replace(plan, table=source.name), found.lists
    if labels:
        found.classes, lists[:] = tables.read(labels, found.splits, None if maps else names)
    total = sum(len(listing) for listing in found.splits)
    counted = [0]

    def report(done: int, refused: int) -> None:
        counted[0] = done
        if progress:
            progress(done, refused, total)

    try:
        with claimed(out, plan, found, overwrite) as others:
            slices = [
                piece
                for listing, several in zip(found.splits, lists, strict=True)
                for piece in _slices(listing, several, None if in_place else per_shard, found.reader, shuffle)
            ]
            crew = min(workers or len(os.sched_getaffinity(0)), len(slices))
            make_all(plan, (piece.run() for piece in slices), crew, () if in_place else writer.imports, report)
            clear(out, {piece.name for piece in slices})
            if in_place:
                base = base or inplace.base_of(source, out)
            manifest = merge(found, plan, others, {piece.name: piece.listing for piece in slices}, base)
        shutil.rmtree(out / record.FOLDER)
    except OSError as error:
        raise disk_error(out, error, found, counted[0], total) from error
    finally:
        found.reader.close()
        reader.cache_clear()
    return manifest


def _check(
    source: Path,
    source_name: str,
    quality: int | None,
    channels: int | None,
    value_range: tuple[float, float] | None,
    labels: Path | None,
    maps: Path | None,
    class_names: Path | None,
    ignore_classes: Sequence[int],
) -> None:
    """Refuse options that contradict each other."""
    if quality and channels not in (None, 1, 3):
        raise DataError(f"--quality is of JPEGs, which do not hold {channels} channels; leave one of the two out")
    if value_range and not (all(map(math.isfinite, value_range)) and value_range[0] < value_range[1]):
        raise DataError(f"--value-range {value_range[0]:g} {value_range[1]:g} is not two rising numbers")
    if maps and not maps.is_dir():
        raise DataError(f"{maps} is not a folder; give the folder that holds the maps")
    if maps and source.resolve() in (maps.resolve(), *maps.resolve().parents):
        raise DataError(f"{maps} lies inside {source}, so its maps would be taken for images; move one of them away")
    if ignore_classes and not maps:
        raise DataError("--ignore-class is of maps; give --maps too, or leave it out")
    if not all(0 <= number < IGNORE for number in ignore_classes):
        raise DataError(f"--ignore-class {list(ignore_classes)} is not of 0 to {IGNORE - 1}; {IGNORE} never counts")
    if class_names and not (maps or labels) and source_name == FALLBACK:
        raise DataError("--class-names are the names of classes in maps or in a table; give --maps or --labels too")


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give the path of a text file") from error


@dataclass(frozen=True)
class _Slice:
    """The files of one part, by number; ``run`` spells them out."""

    listing: Listing
    lists: tables.Lists | None
    number: int
    start: int
    stop: int
    shard: str = ""
    first: bool = True
    order: NDArray[np.int64] | None = None  # in which the images of the listing are stored

    @property
    def name(self) -> str:
        return f"{self.listing.split}-{self.number:06d}"

    def run(self) -> Run:
        listing, lists = self.listing, self.lists
        numbers = range(self.start, self.stop) if self.order is None else self.order[self.start : self.stop].tolist()
        files = [
            File(listing.paths[n], listing.key(n), listing.labels[n], lists.of(n) if lists else None, listing.place(n))
            for n in numbers
        ]
        return Run(self.name, listing.prefix, files, self.shard, self.first)


def _slices(
    listing: Listing, lists: tables.Lists | None, per_shard: int | None, reader: ImageSource, shuffle: bool
) -> Iterator[_Slice]:
    """So many images each; None: those that one of the source's own files holds, in pieces of it."""
    if per_shard:
        order = permutation(key(0, f"shards/{listing.split}"), len(listing)) if shuffle else None
        for number, start in enumerate(range(0, len(listing), per_shard)):
            yield _Slice(listing, lists, number, start, min(start + per_shard, len(listing)), order=order)
        return
    places = ((reader.origin(listing.place(number)), number) for number in range(len(listing)))
    begin, numbers = 0, itertools.count()
    for path, group in itertools.groupby(places, lambda one: one[0].path if one[0] else None):
        end = begin + sum(1 for _ in group)
        if path is None:
            raise DataError(f"{reader.path} has images that do not lie there as they are; build shards of it instead")
        name = str(path.relative_to(reader.path))
        for start in range(begin, end, inplace.PIECE):
            yield _Slice(listing, lists, next(numbers), start, min(start + inplace.PIECE, end), name, start == begin)
        begin = end
