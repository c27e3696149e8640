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

from mae_pipe.data import beside
from mae_pipe.data.manifest import NAME, Manifest
from mae_pipe.data.plan import Plan
from mae_pipe.data.record import FOLDER
from mae_pipe.data.scan import Source
from mae_pipe.errors import DataError, DiskError
from mae_pipe.wording import size_of

INDEX = ".index.safetensors"  # after the name of a split
_DRAFT = re.compile(r"\w+-\d{6}\.\w+\.tmp|\w+\.marks\.tmp|\w+\.index\.safetensors\.tmp|manifest\.json\.tmp")


def check_places(source: Path, out: Path) -> None:
    """Refuse shards inside the images' folder, or the other way round."""
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise DataError(f"{out} lies inside {source}; give the shards a folder of their own")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder for the shards")


@contextlib.contextmanager
def claimed(out: Path, plan: Plan, found: Source, overwrite: bool) -> Iterator[Manifest | None]:
    """Hold ``out`` for a build: new, unfinished with the same options, to be replaced, or to get more splits.

    Yields the manifest that the new splits are to join, if any.
    """
    out.mkdir(parents=True, exist_ok=True)
    work = out / FOLDER
    note = work / "build.json"
    finished = (out / NAME).exists()
    if not work.is_dir() and not finished:
        strangers = sorted(path.name for path in out.iterdir())
        if strangers:
            raise DataError(f"{out} is not empty (it holds {strangers[0]!r}) and holds no shards; give a new folder")
    if finished and not note.exists() and not overwrite:
        _check_addition(out, plan, found)
    work.mkdir(exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"another build is writing to {out}; wait for it, or give another folder") from None
    try:
        before = note.read_text(encoding="utf-8") if note.exists() else None
        if overwrite and (finished or before != plan.options):
            _empty(out)
        elif before not in (None, plan.options):
            raise DataError(
                f"{out} holds an unfinished build with other options ({_difference(before, plan.options)}); "
                f"repeat it with the same options, or give --overwrite to replace it"
            )
        note.write_text(plan.options, encoding="utf-8")
        yield Manifest.load(out) if (out / NAME).exists() else None
    finally:
        lock.release()


def _check_addition(out: Path, plan: Plan, found: Source) -> None:
    """Whether new splits may join finished shards."""
    manifest = Manifest.load(out)
    names = {listing.split for listing in found.splits}
    held = f"{out} already holds finished {manifest.format} shards of {', '.join(manifest.splits)}"
    way_out = "give another folder, or --overwrite to replace all of it"
    if names & set(manifest.splits):
        raise DataError(f"{held}; {way_out}")
    if (manifest.base is not None) != plan.in_place:
        what = "shards that lie elsewhere" if manifest.base is not None else "its own shards"
        raise DataError(f"{held}, and it is the index of {what}; {way_out}")
    if manifest.format != plan.format:
        raise DataError(f"{held}, and one folder holds one format, not {plan.format} too; {way_out}")
    if manifest.channels != plan.wishes.channels:
        raise DataError(f"{held}, of {manifest.channels} channels, not of {plan.wishes.channels}; {way_out}")
    if found.classes and manifest.classes and manifest.labelling != plan.labelling:
        raise DataError(f"{held}, whose images have another kind of labels ({manifest.labelling!r}); {way_out}")
    numbered = manifest.map_classes == numbers(len(manifest.map_classes))
    if plan.maps and manifest.map_classes and list(plan.map_names or ()) != ([] if numbered else manifest.map_classes):
        raise DataError(f"{held}, whose maps have other class names; give the same --class-names, or {way_out}")
    if found.classes and manifest.classes and found.classes != manifest.classes:
        odd = sorted(set(found.classes) ^ set(manifest.classes))[:3]
        raise DataError(f"{held}, whose classes differ from these ({', '.join(odd)}, ...); {way_out}")


def numbers(count: int) -> list[str]:
    """The names of classes that have none."""
    return [str(number) for number in range(count)]


def clear(out: Path, names: set[str]) -> None:
    """Remove drafts, and the shards of earlier parts that are not among ``names``."""
    for record in (out / FOLDER).glob("*.safetensors"):
        if record.stem not in names:
            for path in out.glob(f"{record.stem}.*"):
                path.unlink()
            record.with_suffix(".marks").unlink(missing_ok=True)
            record.unlink()
    for path in out.iterdir():
        if _DRAFT.fullmatch(path.name):
            path.unlink()


def _empty(out: Path) -> None:
    """Remove what an earlier build left; files of others stay."""
    clear(out, set())
    if (out / NAME).exists():
        names = _built(out)
        splits = [path.name.removesuffix(INDEX) for path in out.glob(f"*{INDEX}")]
        (out / NAME).unlink()
        for name in (*names, *beside.names(splits)):
            (out / name).unlink(missing_ok=True)


def _built(out: Path) -> list[str]:
    """The names of the files of finished shards."""
    try:
        splits = Manifest.load(out).splits.values()
    except DataError:  # damaged, or of a later version: the sample indexes tell which splits there are
        indexes = [path.name for path in out.glob(f"*{INDEX}")]
        names = "|".join(re.escape(name.removesuffix(INDEX)) for name in indexes)
        mine = re.compile(rf"({names})-\d{{6}}\.\w+|({names})\.marks")
        return indexes + [path.name for path in out.iterdir() if mine.fullmatch(path.name)]
    return [part.name for split in splits for part in split.files]


def _difference(before: str | None, now: str) -> str:
    old: dict[str, Any] = json.loads(before or "{}")
    new: dict[str, Any] = json.loads(now)
    return ", ".join(f"{key} was {old.get(key)!r}" for key in {**new, **old} if old.get(key) != new.get(key))


def disk_error(out: Path, error: OSError, found: Source, done: int, total: int) -> DiskError:
    """What an error of the disk means, and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"cannot write to {error.filename or out}: {error.strerror}; choose another folder")
    place = next(path for path in (out, *out.absolute().parents) if path.is_dir())  # out itself may not have fitted
    free = shutil.disk_usage(place).free
    stored = sum(path.stat().st_size for path in out.iterdir() if path.is_file()) if place == out else 0
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
                origin = found.reader.origin(listing.place(number))
                if origin is None:  # an archive, which is about as large as what is in it
                    return found.reader.path.stat().st_size
                total += origin.path.stat().st_size if origin.size is None else origin.size
    return total
