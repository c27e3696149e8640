"""The folder that a build writes to: claimed by one build at a time, cleared of what is not its own."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mae_pipe.data.manifest import NAME, Manifest
from mae_pipe.data.parts import FOLDER
from mae_pipe.data.scan import Source
from mae_pipe.errors import DataError, DiskError

INFO = "_info.json"
_DRAFT = re.compile(r"\w+-\d{6}\.\w+\.tmp|\w+\.index\.safetensors\.tmp|manifest\.json\.tmp")


def check_places(source: Path, out: Path) -> None:
    """Refuse shards inside the images' folder, or the other way round."""
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise DataError(f"{out} lies inside {source}; give the shards a folder of their own")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder for the shards")


@contextlib.contextmanager
def claimed(out: Path, options: str, overwrite: bool) -> Iterator[None]:
    """Hold ``out`` for a build with these ``options``: new, unfinished with the same ones, or to be replaced."""
    out.mkdir(parents=True, exist_ok=True)
    work = out / FOLDER
    note = work / "build.json"
    if not work.is_dir() and not (out / NAME).exists():
        strangers = sorted(path.name for path in out.iterdir())
        if strangers:
            raise DataError(f"{out} is not empty (it holds {strangers[0]!r}) and holds no shards; give a new folder")
    elif not work.is_dir() and not overwrite:
        raise DataError(f"{out} already holds {_described(out)}; give another folder, or --overwrite to replace them")
    work.mkdir(exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"another build is writing to {out}; wait for it, or give another folder") from None
    try:
        before = note.read_text(encoding="utf-8") if note.exists() else None
        if before not in (None, options) and not overwrite:
            raise DataError(
                f"{out} holds an unfinished build with other options ({_difference(before, options)}); "
                f"repeat it with the same options, or give --overwrite to replace it"
            )
        if before != options or (out / NAME).exists():
            _empty(out)
        note.write_text(options, encoding="utf-8")
        yield
    finally:
        lock.release()


def clear(out: Path, names: set[str]) -> None:
    """Remove drafts, and the shards of earlier parts that are not among ``names``."""
    for record in (out / FOLDER).glob("*.safetensors"):
        if record.stem not in names:
            for path in out.glob(f"{record.stem}.*"):
                path.unlink()
            record.unlink()
    for path in out.iterdir():
        if _DRAFT.fullmatch(path.name):
            path.unlink()


def _empty(out: Path) -> None:
    """Remove what an earlier build left; files of others stay."""
    clear(out, set())
    if (out / NAME).exists():
        manifest = Manifest.load(out)
        (out / NAME).unlink()
        for split in manifest.splits.values():
            for part in (*split.shards, split.index):
                (out / part.name).unlink(missing_ok=True)
        (out / INFO).unlink(missing_ok=True)


def _described(out: Path) -> str:
    manifest = Manifest.load(out)
    images = sum(split.images for split in manifest.splits.values())
    return f"finished {manifest.format} shards of {images:,} images"


def _difference(before: str | None, now: str) -> str:
    old: dict[str, Any] = json.loads(before or "{}")
    new: dict[str, Any] = json.loads(now)
    return ", ".join(f"{key} was {old.get(key)!r}" for key in new if old.get(key) != new[key])


def disk_error(out: Path, error: OSError, found: Source, done: int, total: int) -> DiskError:
    """What an error of the disk means, and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"{error.filename or out} cannot be written: {error.strerror}; give a folder that can be")
    free = shutil.disk_usage(out).free
    stored = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    if stored and done:
        needed = f"about {size_of(int(stored / done * (total - done)))} more"
    else:
        needed = f"about {size_of(_source_bytes(found))}"
    return DiskError(
        f"the disk of {out} is full: {size_of(free)} are left and {needed} are needed; "
        f"make room and run the same command again: finished shards are kept"
    )


def _source_bytes(found: Source) -> int:
    total = 0
    for listing in found.splits:
        for number in range(len(listing)):
            with contextlib.suppress(OSError):
                total += (listing.folder / listing.paths[number]).stat().st_size
    return total


def size_of(count: int) -> str:
    """Bytes for people, such as 1.4 GB."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
