"""Checks a folder of shards against its manifest, and names what is damaged."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mae_pipe.catalog import Catalog
from mae_pipe.data import consistency
from mae_pipe.data.depot import Depot, depot_of
from mae_pipe.data.fetch import Unreachable
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest, Shard, Split
from mae_pipe.data.parts import sha256_of
from mae_pipe.data.sample import ShardFormat, ShardReader
from mae_pipe.errors import DataError, MaePipeError, PluginError
from mae_pipe.wording import counted

Progress = Callable[[int, int], None]  # bytes checked, bytes in all
NAMED = 5  # damaged samples that a sentence names
_KEY = re.compile(r"[A-Za-z0-9_/-]+")


def verify(folder: Path, *, catalog: Catalog | None = None, progress: Progress | None = None) -> list[str]:
    """A sentence for each damage of ``folder``; empty where every hash, count, key and checksum is right.

    Without the format's library only files are checked, not the samples in them.
    """
    manifest = Manifest.load(folder)
    try:
        format: ShardFormat | None = (catalog or Catalog()).build("shards", manifest.format, {})
    except PluginError:
        format = None
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    depots = _depots(folder, manifest)
    done = 0
    found: list[str] = []
    for name, split in manifest.splits.items():
        index, damage = _index(folder, name, split, manifest)
        found += damage
        start = 0
        for number, shard in enumerate(split.shards):
            rows = range(start, start + shard.images)
            if index is not None and not (index.shard[rows.start : rows.stop] == number).all():
                found.append(f"{split.index.name} does not say which images {shard.name} holds")
                index = None
            depot = depots.get(name)
            try:
                path = depot.path(number) if depot else manifest.home(folder) / shard.name
                found += _shard(path, shard, index, rows, format)
            except Unreachable as error:
                found.append(str(error))
            if depot:
                depot.release(number)
            start = rows.stop
            done += shard.bytes
            if progress:
                progress(done, total)
        found += _marks(folder, split, index)
    return found


def _depots(folder: Path, manifest: Manifest) -> dict[str, Depot]:
    """Where each split's shards are fetched from; none where they are in a folder."""
    return {name: depot_of(folder, name, manifest) for name in manifest.splits} if manifest.elsewhere else {}


def _marks(folder: Path, split: Split, index: SampleIndex | None) -> list[str]:
    """What is wrong with the file of marks, where there is one."""
    if split.marks is None:
        return []
    path = folder / split.marks.name
    if not path.is_file():
        return [f"{split.marks.name} is missing"]
    if path.stat().st_size != split.marks.bytes or sha256_of(path) != split.marks.sha256:
        return [f"{split.marks.name} has other bytes than it was built with"]
    if index is not None and len(index) and (index.marks_end is None or int(index.marks_end[-1]) != split.marks.bytes):
        return [f"{split.index.name} does not say which marks each image has"]
    return []


def _index(folder: Path, name: str, split: Split, manifest: Manifest) -> tuple[SampleIndex | None, list[str]]:
    """The sample index of a split, where it can be believed, and what is wrong with it or the counts."""
    found = []
    if sum(shard.images for shard in split.shards) != split.images or split.index.images != split.images:
        found.append(f"manifest.json: the image counts of {name!r} contradict each other")
    try:
        index = SampleIndex.load(folder, split.index)
    except DataError as error:
        return None, [*found, str(error)]
    if what := consistency.wrong(index, split, manifest, whole=True):
        return None, [*found, f"{split.index.name} {what}"]
    if what := consistency.strange_label(index, manifest):
        found.append(f"{split.index.name} {what}")
    keys = Counter(index.key(row) for row in range(len(index)))
    bad = [key for key, count in keys.items() if count > 1 or not _KEY.fullmatch(key)]
    if bad:
        found.append(f"{split.index.name} has keys that are doubled or not allowed: {_named(bad)}")
    return index, found


def _shard(path: Path, shard: Shard, index: SampleIndex | None, rows: range, format: ShardFormat | None) -> list[str]:
    """What is wrong with one shard file."""
    if not path.is_file():
        return [f"{shard.name} is missing: {counted(shard.images, 'image')}"]
    size = path.stat().st_size
    whole = size == shard.bytes and sha256_of(path) == shard.sha256
    broken = None if index is None or format is None else _broken(path, index, rows, format)
    if whole and not broken:
        return []
    if whole:
        what = "is whole, but its index is not right"
    elif size != shard.bytes:
        what = f"has {size:,} bytes instead of {shard.bytes:,}"
    else:
        what = "has other bytes than it was built with"
    if broken is None:
        return [f"{shard.name} {what}"]
    if not broken:
        return [f"{shard.name} {what}, outside its images"]
    are = "is" if len(broken) == 1 else "are"
    return [
        f"{shard.name} {what}; {len(broken)} of its {counted(shard.images, 'image')} {are} damaged: {_named(broken)}"
    ]


def _broken(path: Path, index: SampleIndex, rows: range, format: ShardFormat) -> list[str] | None:
    """The keys of the samples whose bytes are not those of the index; None where the format cannot be read here."""
    try:
        reader = format.open(path)
    except PluginError:
        return None
    except MaePipeError:
        return [index.key(row) for row in rows]
    try:
        return [index.key(row) for row in rows if not _intact(reader, row - rows.start, index, row)]
    finally:
        reader.close()


def _intact(reader: ShardReader, number: int, index: SampleIndex, row: int) -> bool:
    placed = index.placed(row)
    try:
        read = [(reader.read(number, placed), placed)]
        if placed.map:
            read.append((reader.read_map(number, placed.map), placed.map))
    except MaePipeError:
        return False
    return all(len(data) == place.size and zlib.crc32(data) == place.crc32 for data, place in read)


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
