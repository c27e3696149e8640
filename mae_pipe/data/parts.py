"""One shard of a build: a run of source files -> a shard file and the record of what is in it.

A part is a function of its files and the options alone. It is made under another name, forced to
the disk and renamed, so a shard file that has its name is whole, and a build that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mae_pipe.catalog import Catalog
from mae_pipe.data.admit import BYTES, Sums, Wishes, admit
from mae_pipe.data.listing import printable
from mae_pipe.data.manifest import Refused, SampleIndex, Shard
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import ENCODINGS, Placed, Sample, ShardFormat
from mae_pipe.errors import MaePipeError, PluginError

FOLDER = ".parts"


class Stopped(Exception):
    """The build was told to end; whoever told it knows why."""


class Tally(Protocol):
    """Where a part reports how far it is; ``add`` raises ``Stopped`` to end it."""

    def add(self, done: int, refused: int) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What all parts of a build share."""

    out: Path
    format: str
    plugin_files: tuple[Path, ...]
    wishes: Wishes
    options: str  # JSON: all that changes bytes


@dataclass(frozen=True)
class Run:
    """The source files of one part: ``files`` are (path in ``folder``, key, label or -1)."""

    name: str  # of the shard file, without its suffix
    folder: Path
    prefix: str
    files: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Part:
    """The record of a finished part; ``file`` is None where every image was refused."""

    file: Shard | None
    sums: Sums
    sides: tuple[int, int]  # sums of widths and heights
    converted: dict[str, int]
    refused: list[Refused]
    rows: SampleIndex  # with shard 0 throughout


def record_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.safetensors"


def make(plan: Plan, run: Run, tally: Tally) -> None:
    """Make one part, unless it is there already from the same files and options."""
    fingerprint = _fingerprint(plan, run)
    kept = _finished(plan, run, fingerprint)
    if kept:
        tally.add(len(run.files), len(kept.refused))
        return
    format: ShardFormat = Catalog(plan.plugin_files).build("shards", plan.format, {})
    path = plan.out / f"{run.name}{format.suffix}"
    new = path.with_name(path.name + ".tmp")
    record = record_path(plan.out, run.name)
    try:
        made = _Making(plan, run, format.max_side, tally)
        places = _written(format, new, made, plan.format)
        file = None
        if places:
            file = Shard(name=path.name, images=len(places), bytes=new.stat().st_size, sha256=sha256_of(new))
            settle(new, path)
        else:
            path.unlink(missing_ok=True)
        draft = record.with_name(record.name + ".tmp")
        _save(draft, made, places, file, fingerprint)
        settle(draft, record)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


class _Making:
    """Iterates over a run's admitted samples, and keeps account of them."""

    def __init__(self, plan: Plan, run: Run, limit: int | None, tally: Tally) -> None:
        self._run, self._tally = run, tally
        self._wishes = Wishes(plan.wishes.quality, plan.wishes.max_side, plan.wishes.short_side, limit)
        self.keys: list[str] = []
        self.shapes: list[tuple[int, int, int]] = []  # width, height, label
        self.converted: Counter[str] = Counter()
        self.refused: list[tuple[str, str]] = []
        self.pixels, self.values, self.squares = 0, [0, 0, 0], [0, 0, 0]

    def __iter__(self) -> Iterator[Sample]:
        for path, key, label in self._run.files:
            try:
                image = admit(_read(self._run.folder / path), self._wishes)
            except Refusal as refusal:
                self.refused.append((printable(self._run.prefix + path), str(refusal)))
                self._tally.add(1, 1)
                continue
            self.keys.append(key)
            self.shapes.append((image.width, image.height, label))
            self.converted.update(image.converted)
            self.pixels += image.sums.pixels
            for channel in range(3):
                self.values[channel] += image.sums.values[channel]
                self.squares[channel] += image.sums.squares[channel]
            yield Sample(key, image.image, image.encoding, image.width, image.height, None if label < 0 else label)
            self._tally.add(1, 0)


def _written(format: ShardFormat, path: Path, made: _Making, name: str) -> list[Placed]:
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
    _read_back(format, path, places, made.keys, name)
    return places


def _read_back(format: ShardFormat, path: Path, places: list[Placed], keys: list[str], name: str) -> None:
    """Whether what was written is there: a write cut short by a full disk is not always an error."""
    reader = format.open(path)
    try:
        for number, (placed, key) in enumerate(zip(places, keys, strict=True)):
            data = reader.read(number, placed)
            if len(data) != placed.size or zlib.crc32(data) != placed.crc32:
                raise PluginError(f"the shards plugin {name!r} does not read {key!r} as it wrote it to {path}")
    finally:
        reader.close()


def _read(path: Path) -> bytes:
    try:
        # Not blocking, as somebody may have put a pipe here since the folder was listed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Refusal("not a regular file")
            if found.st_size > BYTES:
                raise Refusal(f"{found.st_size:,} bytes, more than {BYTES:,}")
            return file.read()
    except OSError as error:
        raise Refusal(f"cannot be read: {error.strerror}") from None


def _fingerprint(plan: Plan, run: Run) -> str:
    """Of all that decides a part's bytes: the options, and each file's name, size and time."""
    digest = hashlib.sha256(plan.options.encode())
    for path, key, label in run.files:
        try:
            found = (run.folder / path).stat()
            seen = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            seen = "gone"
        digest.update(f"{len(path)} {printable(path)} {key} {label} {seen}\n".encode())
    return digest.hexdigest()


def _finished(plan: Plan, run: Run, fingerprint: str) -> Part | None:
    path = record_path(plan.out, run.name)
    try:
        part, seen = _load(path)
    except Exception:  # absent, torn or of another version: made again
        return None
    if seen != fingerprint:
        return None
    if part.file:
        file = plan.out / part.file.name
        if not file.is_file() or file.stat().st_size != part.file.bytes or sha256_of(file) != part.file.sha256:
            return None
    return part


def _save(path: Path, made: _Making, places: list[Placed], file: Shard | None, fingerprint: str) -> None:
    from safetensors.numpy import save

    shapes = np.array(made.shapes, np.int64).reshape(-1, 3)
    encoded = [key.encode() for key in made.keys]
    rows = {
        "shard": np.zeros(len(places), np.uint32),
        "offset": np.array([place.offset for place in places], np.uint64),
        "size": np.array([place.size for place in places], np.uint64),
        "crc32": np.array([place.crc32 for place in places], np.uint32),
        "encoding": np.array([ENCODINGS.index(place.encoding) for place in places], np.uint8),
        "width": shapes[:, 0].astype(np.uint32),
        "height": shapes[:, 1].astype(np.uint32),
        "label": shapes[:, 2].astype(np.int32),
        "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.uint64),
        "key_bytes": np.frombuffer(b"".join(encoded), np.uint8),
    }
    about = {
        "fingerprint": fingerprint,
        "file": file.model_dump() if file else None,
        "sums": [made.pixels, made.values, made.squares],
        "sides": shapes[:, :2].sum(0).tolist(),
        "converted": dict(made.converted),
        "refused": made.refused,
    }
    path.write_bytes(save({n: np.ascontiguousarray(value) for n, value in rows.items()}, {"part": json.dumps(about)}))


def _load(path: Path) -> tuple[Part, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        about: dict[str, Any] = json.loads(file.metadata()["part"])
        rows = SampleIndex(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    pixels, values, squares = about["sums"]
    part = Part(
        file=Shard(**about["file"]) if about["file"] else None,
        sums=Sums(pixels, tuple(values), tuple(squares)),
        sides=tuple(about["sides"]),
        converted=about["converted"],
        refused=[Refused(path=path, reason=reason) for path, reason in about["refused"]],
        rows=rows,
    )
    return part, about["fingerprint"]


def load(out: Path, name: str) -> Part:
    """The record of a part that ``make`` has finished."""
    return _load(record_path(out, name))[0]


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
