"""Training straight from images that are in no shards: they are listed and checked once, in the user's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from mae_pipe.catalog import Catalog
from mae_pipe.data.address import Address, is_url
from mae_pipe.data.cache import home
from mae_pipe.data.manifest import NAME, Manifest
from mae_pipe.data.place import INDEX
from mae_pipe.data.scan import Source, scan
from mae_pipe.data.sources import open_source, recognised
from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import DataError, RunError
from mae_pipe.remote import mirrored
from mae_pipe.sharding import build
from mae_pipe.wording import counted

READ_FROM = "read_from"  # what a run's record calls the images that its index is of
MANY = 50_000  # images, from which on shards are worth their room
NAMED = 3  # changed files that are named


def shards_of(given: Path | str, catalog: Catalog, console: Console | None = None) -> Path:
    """``given`` where it holds shards, or else a folder of the cache with an index of the images there.

    A URL of shards becomes a folder of the cache too (``remote``). The order, the crops and the labels are those of the
    shards that ``mae-pipe shard`` would build. Every process of a job may call it at once.
    """

    def say(text: str) -> None:
        (console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)

    if isinstance(given, str):
        if is_url(given):
            return mirrored(given)
        given = Path(given)
    if not given.exists() or (given / NAME).exists():
        return given
    left = next(given.glob(f"*{INDEX}"), None) if given.is_dir() else None
    if left is not None:  # its tars would be taken for somebody's, and missing ones for none
        raise DataError(f"{given} holds {left.name} but no {NAME}, so it is not all of these shards; copy them again")
    name = recognised(given, catalog)
    source = open_source(given, name, catalog, {})
    try:
        found = scan(source)
    except DataError as error:
        raise DataError(f"{given} holds no {NAME}, and its images cannot be used as they lie: {error}") from error
    finally:
        source.close()
    listing = _listing(found)
    source.close()
    place = home() / "folders" / hashlib.sha256(os.fsencode(given.resolve())).hexdigest()[:16]
    key = hashlib.sha256(listing).hexdigest()[:16]
    out, before = place / key, place / "listing"
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):  # the first process of a job builds, the others wait for it
        if (out / NAME).exists():
            Manifest.load(out)
            return out
        count = sum(len(split) for split in found.splits)
        if before.exists():
            say(f"{given} has changed since it was indexed: {_changes(before.read_bytes(), listing)}")
        say(f"indexing the {counted(count, 'image')} of {given} once, in {out}")
        if count >= MANY:
            say(f"so many files are read faster from shards: mae-pipe shard {given} SHARDS")
        build(given, out, format="files", catalog=catalog, source_name=name)
        write_whole(before, listing)
    return out


def shards_of_run(about: Mapping[str, Any], catalog: Catalog, console: Console | None = None) -> Path:
    """The shards that a run's ``about`` names; an index that the cache no longer holds is made again."""
    if "shards" not in about:
        raise RunError("the run was imported and has no shards of its own; give some with --shards")
    shards = Path(about["shards"])
    gone = READ_FROM in about and not (shards / NAME).exists()
    return shards_of(about[READ_FROM], catalog, console) if gone else shards


def origin_of(given: Path | str) -> str:
    """How a run's record names images that are not in shards of this machine; of a URL, without its keys."""
    return str(Address.of(given)) if isinstance(given, str) and is_url(given) else str(Path(given).resolve())


def _listing(found: Source) -> bytes:
    """A line for every image: what changes when it does."""
    lines = []
    for split in found.splits:
        for number in range(len(split)):
            place = split.place(number)
            words = (
                split.split,
                str(split.labels[number]),
                found.reader.stamp(place),
                split.prefix + split.paths[number],
            )
            lines.append(os.fsencode("\t".join(words).replace("\n", " ")))
    return b"\n".join([*lines, "\t".join(found.classes).encode()])


def _changes(before: bytes, now: bytes) -> str:
    """How many images came, went and changed, and which are the first."""
    old, new = ({line.rpartition(b"\t")[2]: line for line in text.split(b"\n")[:-1]} for text in (before, now))
    came, went = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    other = sorted(path for path in old.keys() & new.keys() if old[path] != new[path])
    said = []
    for what, paths in (("new", came), ("gone", went), ("changed", other)):
        if paths:
            named = [os.fsdecode(path) for path in paths[:NAMED]] + ["..."] * (len(paths) > NAMED)
            said.append(f"{len(paths):,} {what} ({', '.join(named)})")
    return ", ".join(said) or "its classes"
