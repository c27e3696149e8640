"""One shard of a build: a run of source files -> a shard file and the record of what is in it.

A part is a function of its files and the options alone. It is made under another name, forced to
the disk and renamed, so a shard file that has its name is whole, and a build that was killed goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mae_pipe.catalog import Catalog
from mae_pipe.data import fidelity, inplace, record
from mae_pipe.data.admit import Admitted, Sums, admit
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.listing import printable
from mae_pipe.data.manifest import Refused, Shard
from mae_pipe.data.maps import AdmittedMap, admit_map
from mae_pipe.data.plan import File, Plan, Run, fingerprint
from mae_pipe.data.record import Part
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.region import marks_of
from mae_pipe.data.sample import ENCODINGS, Placed, Sample, ShardFormat
from mae_pipe.data.sources import FALLBACK, ImageSource, open_source, read_file
from mae_pipe.errors import MaePipeError, PluginError


class Stopped(Exception):
    """The build was told to end; whoever told it knows why."""


class Tally(Protocol):
    """Where a part reports how far it is; ``add`` raises ``Stopped`` to end it."""

    def add(self, done: int, refused: int) -> None: ...


def make(plan: Plan, run: Run, tally: Tally) -> None:
    """Make one part, unless it is there already from the same files and options."""
    source = reader(plan)
    seen = fingerprint(plan, run, source)
    kept = _finished(plan, run, seen)
    if kept:
        tally.add(len(run.files), len(kept.refused))
        return
    format: ShardFormat = Catalog(plan.plugin_files).build("shards", plan.format, {})
    path = plan.out / f"{run.name}{format.suffix}"
    new = path.with_name(path.name + ".tmp")
    noted = record.record_path(plan.out, run.name)
    try:
        made = _Making(plan, run, source, format, tally)
        places = inplace.places(source, run, made) if plan.in_place else _written(format, new, made, plan)
        file = None
        if places and plan.in_place:
            file = inplace.shard_of(plan, run, len(places))
        elif places:
            file = Shard(name=path.name, images=len(places), bytes=new.stat().st_size, sha256=sha256_of(new))
            settle(new, path)
        else:
            path.unlink(missing_ok=True)
        if plan.marks:
            marks = record.marks_path(plan.out, run.name)
            draft = marks.with_name(marks.name + ".tmp")
            draft.write_bytes(b"".join(made.marks))
            settle(draft, marks)
        draft = noted.with_name(noted.name + ".tmp")
        record.save(draft, made.part(places, file, seen))
        settle(draft, noted)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


class _Making:
    """Iterates over a run's admitted samples, and keeps account of them."""

    def __init__(self, plan: Plan, run: Run, source: ImageSource, format: ShardFormat, tally: Tally) -> None:
        self._plan, self._run, self._source, self._tally = plan, run, source, tally
        pixels = plan.in_place or format.raw or format.origins
        self._wishes, self._origins = replace(plan.wishes, limit=format.max_side, pixels=pixels), format.origins
        self.keys: list[str] = []
        self.marks: list[bytes] = []  # of each image; empty where it has none
        self._shapes: list[tuple[int, int, int]] = []  # width, height, label
        self._labels: list[tuple[int, ...]] = []
        self._top, self._seen, self._read_bytes, self._far = -1, 0, 0, (0.0, 0)  # the last: sum of errors, images
        self._converted: Counter[str] = Counter()
        self._refused: list[Refused] = []
        channels = plan.wishes.channels
        self._pixels, self._values, self._squares = 0, [0] * channels, [0] * channels

    def __iter__(self) -> Iterator[Sample]:
        for file in self._run.files:
            try:
                image, map_ = self._admitted(file)
            except Refusal as refusal:
                path, reason = printable(self._run.prefix + file.path), printable(str(refusal))
                self._refused.append(Refused(path=path, reason=reason))
                self._tally.add(1, 1)
                continue
            self._count(file, image, map_)
            if self._plan.marks:
                self.marks.append(marks_of(image.image) or b"" if image.encoding == "jpeg" else b"")
            yield Sample(
                file.key,
                image.image,
                image.encoding,
                image.width,
                image.height,
                None if file.label < 0 else file.label,
                self._plan.wishes.channels,
                file.labels,
                map_.data if map_ else None,
                self._source.origin(file.place) if self._origins and not image.converted else None,
            )
            self._tally.add(1, 0)

    def _admitted(self, file: File) -> tuple[Admitted, AdmittedMap | None]:
        plan = self._plan
        if plan.table is not None and file.labels is None:
            raise Refusal(f"no line in {plan.table}" if plan.source == FALLBACK else "no list of classes")
        where = plan.maps / self._run.map_of(file) if plan.maps else None
        if where is not None and not where.exists():
            raise Refusal(f"no map: {printable(self._run.map_of(file))} is not there")
        number, self._seen = self._seen, self._seen + 1
        seldom = self._wishes.glance and number % inplace.SAMPLED == 0
        data = self._read(file)
        wishes = replace(self._wishes, glance=False) if seldom else self._wishes
        compare, raw = number % fidelity.SAMPLED == 0, _is_raw(file.key, plan.raw)
        image = admit(data, replace(wishes, compare=compare, raw=raw))
        self._read_bytes += len(data)
        if image.error is not None:
            self._far = self._far[0] + image.error, self._far[1] + 1
        if plan.in_place and image.converted:
            raise Refusal(f"to be converted: {', '.join(image.converted)}, which an index cannot do")
        if where is None:
            return image, None
        classes = None if plan.map_names is None else len(plan.map_names)
        return image, admit_map(read_file(where), image.whole, (image.width, image.height), classes, plan.ignored)

    def _read(self, file: File) -> bytes:
        try:
            return self._source.read(file.place)
        except (Refusal, MaePipeError, Stopped):
            raise
        except OSError as error:
            raise Refusal(f"cannot be read: {error.strerror or error}") from None
        except Exception as error:  # whatever a stranger's source does
            raise PluginError(
                f"the source plugin {self._plan.source!r} failed: {type(error).__name__}: {error}"
            ) from error

    def _count(self, file: File, image: Admitted, map_: AdmittedMap | None) -> None:
        self.keys.append(file.key)
        self._shapes.append((image.width, image.height, file.label))
        self._labels.append(file.labels or ())
        self._top = max(self._top, map_.top if map_ else -1)
        self._converted.update(image.converted)
        self._pixels += image.sums.pixels
        for channel in range(self._plan.wishes.channels):
            self._values[channel] += image.sums.values[channel]
            self._squares[channel] += image.sums.squares[channel]

    def part(self, places: list[Placed], file: Shard | None, seen: str) -> Part:
        """The record of what was made."""
        shapes = np.array(self._shapes, np.int64).reshape(-1, 3)
        return Part(
            file=file,
            sums=Sums(self._pixels, tuple(self._values), tuple(self._squares)),
            sides=(int(shapes[:, 0].sum()), int(shapes[:, 1].sum())),
            top=self._top,
            converted=dict(self._converted),
            read=self._read_bytes,
            far=self._far,
            refused=self._refused,
            rows=self._rows(places, shapes),
            fingerprint=seen,
        )

    def _rows(self, places: list[Placed], shapes: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> SampleIndex:
        encoded = [key.encode() for key in self.keys]
        rows = SampleIndex(
            shard=np.zeros(len(places), np.uint32),
            offset=np.array([place.offset for place in places], np.uint64),
            size=np.array([place.size for place in places], np.uint64),
            crc32=np.array([place.crc32 for place in places], np.uint32),
            encoding=np.array([ENCODINGS.index(place.encoding) for place in places], np.uint8),
            width=shapes[:, 0].astype(np.uint32),
            height=shapes[:, 1].astype(np.uint32),
            label=shapes[:, 2].astype(np.int32),
            key_ends=np.cumsum([len(key) for key in encoded], dtype=np.uint64),
            key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        )
        if self._plan.table is not None:
            rows = replace(
                rows,
                labels_end=np.cumsum([len(labels) for labels in self._labels], dtype=np.uint64),
                labels_flat=np.array([label for labels in self._labels for label in labels], np.uint32),
            )
        if self._plan.maps:
            maps = [place.map for place in places if place.map]
            rows = replace(
                rows,
                map_offset=np.array([place.offset for place in maps], np.uint64),
                map_size=np.array([place.size for place in maps], np.uint64),
                map_crc32=np.array([place.crc32 for place in maps], np.uint32),
            )
        if self._plan.marks:
            rows = replace(
                rows,
                marks_end=np.cumsum([len(marks) for marks in self.marks], dtype=np.uint64),
                marks_crc32=np.array([zlib.crc32(marks) for marks in self.marks], np.uint32),
            )
        return rows


def _written(format: ShardFormat, path: Path, made: _Making, plan: Plan) -> list[Placed]:
    name = plan.format
    samples = iter(made)
    first = next(samples, None)
    if first is None:
        return []

    def all_of_them() -> Iterator[Sample]:
        yield first
        yield from samples

    try:
        places = format.write(path, all_of_them())
    except (MaePipeError, OSError, Stopped):
        raise
    except Exception as error:  # whatever a stranger's format does
        raise PluginError(f"the shards plugin {name!r} failed: {type(error).__name__}: {error}") from error
    if len(places) != len(made.keys):
        raise PluginError(
            f"the shards plugin {name!r} returned {len(places)} places for {len(made.keys)} samples; "
            f"write() must store every sample and return a place for each"
        )
    if plan.maps and not all(place.map for place in places):
        raise PluginError(f"the shards plugin {name!r} stores no maps; use another --format, or leave out --maps")
    _read_back(format, path, places, made.keys, name)
    return places


def _read_back(format: ShardFormat, path: Path, places: list[Placed], keys: list[str], name: str) -> None:
    """Whether what was written is there: a write cut short by a full disk is not always an error."""
    reader = format.open(path)
    try:
        for number, (placed, key) in enumerate(zip(places, keys, strict=True)):
            read = [(reader.read(number, placed), placed)]
            if placed.map:
                read.append((reader.read_map(number, placed.map), placed.map))
            for data, place in read:
                if len(data) != place.size or zlib.crc32(data) != place.crc32:
                    raise PluginError(f"the shards plugin {name!r} does not read {key!r} as it wrote it to {path}")
    finally:
        reader.close()


@functools.lru_cache(1)
def reader(plan: Plan) -> ImageSource:
    """The source of a build, opened once in each process of it; a build begins and ends with ``cache_clear``."""
    return open_source(plan.root, plan.source, Catalog(plan.plugin_files), json.loads(plan.source_options))


def _finished(plan: Plan, run: Run, seen: str) -> Part | None:
    try:
        part = record.load(plan.out, run.name)
    except Exception:  # absent, torn or of another version: made again
        return None
    marked = not plan.marks or _has_marks(record.marks_path(plan.out, run.name), part.rows)
    if part.fingerprint != seen or not marked:
        return None
    return None if part.file and not _is_whole(plan.where(part.file.name), part.file) else part


def _is_whole(path: Path, file: Shard) -> bool:
    same = path.is_file() and path.stat().st_size == file.bytes
    return same and (not file.sha256 or sha256_of(path) == file.sha256)


def _has_marks(path: Path, rows: SampleIndex) -> bool:
    wanted = int(rows.marks_end[-1]) if rows.marks_end is not None and len(rows) else 0
    return path.is_file() and path.stat().st_size == wanted


def _is_raw(key: str, share: float) -> bool:
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"raw").digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(new: Path, path: Path) -> None:
    """Give a written file its name once it is on the disk, and the name too."""
    flush(new)
    new.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
