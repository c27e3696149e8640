"""The folder of a reproduction: the scale, the images and the changes that all its runs have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mae_pipe import digits, launch
from mae_pipe.catalog import Catalog
from mae_pipe.data.manifest import NAME as MANIFEST
from mae_pipe.data.manifest import Manifest
from mae_pipe.direct import shards_of
from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import DataError, RunError
from mae_pipe.reproducing import published
from mae_pipe.reproducing.published import Scale

NOTE = "reproduce.json"


@dataclass(frozen=True)
class Reproduction:
    """What ``reproduce.json`` says.

    Attributes:
        data: fingerprint of the shards; "unknown" where there are none yet.
        changes: as they were given, ``pretrain.schedule.epochs=2``.
    """

    out: Path
    scale: Scale
    shards: Path
    data: str
    images: int
    changes: tuple[str, ...]

    @property
    def stems(self) -> Path:
        return self.out / "stems"


def begin(
    out: Path, scale: Scale, shards: Path | str | None, changes: tuple[str, ...], catalog: Catalog, console: Console
) -> Reproduction:
    """Make the folder, or find that it is of the same scale, images and changes.

    Raises:
        DataError: there are no images.
        RunError: it is of others.
    """
    note = out / NOTE
    if not note.is_file() and out.is_dir() and [path for path in out.iterdir() if not _begun(path)]:
        raise RunError(f"{out} is not empty and holds no reproduction; choose another --out")
    place = shards_of(shards, catalog, console) if shards is not None else _bundled(out, scale, catalog)
    data, images = fingerprint(place)
    wanted = {"scale": scale.name, "shards": str(place.resolve()), "data": data, "changes": list(changes)}
    if note.is_file():
        had = read(out)
        for name, value, before in (
            ("scale", scale.name, had.scale.name),
            ("images", data, had.data),
            ("--set", list(changes), list(had.changes)),
        ):
            if value != before:
                raise RunError(f"{out} was begun with {name} {before}, not {value}; give that, or choose another --out")
    elif launch.place().rank == 0:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_whole(note, (json.dumps(wanted, indent=1) + "\n").encode())
    return Reproduction(out, scale, place, data, images, changes)


def read(out: Path) -> Reproduction:
    """Of a folder that was begun.

    Raises:
        RunError: it was not.
    """
    try:
        had = json.loads((out / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{out} holds no reproduction; begin one with mae-pipe reproduce run TABLE --out {out}"
        ) from error
    scale = published.scale(had["scale"])
    return Reproduction(out, scale, Path(had["shards"]), had["data"], scale.images, tuple(had["changes"]))


def looked_at(
    scale: Scale, shards: Path | str | None, out: Path, changes: tuple[str, ...], catalog: Catalog
) -> Reproduction:
    """The same without making anything, for a dry run: shards may be missing."""
    place = out / "shards" if shards is None else shards_of(shards, catalog)
    there = (place / MANIFEST).is_file()
    data, images = fingerprint(place) if there else ("unknown", scale.images)
    return Reproduction(out, scale, place, data, images, changes)


def fingerprint(shards: Path) -> tuple[str, int]:
    """Of the images of shards, and how many there are to train on.

    Raises:
        DataError: there is no split to train on, or to measure on.
    """
    manifest = Manifest.load(shards)
    for split in ("train", "val"):
        if split not in manifest.splits:
            raise DataError(
                f"{shards} has no split {split!r}, which the recipes train or measure on; shard it with one"
            )
    content = (shards / MANIFEST).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16], manifest.split("train").images


def _begun(path: Path) -> bool:
    """Whether it is of a reproduction that was stopped before its note was written; clocks may be brought along."""
    left = ("digits", "shards", ".digits.tmp", f".{NOTE}.tmp")
    return path.name in left or path.name.endswith("-clock.json")


def _bundled(out: Path, scale: Scale, catalog: Catalog) -> Path:
    """Shards of the images that come with the package."""
    from mae_pipe.sharding import build

    if scale.bundled is None:
        raise DataError(f"the scale {scale.name!r} wants images: give --shards FOLDER")
    place = out / "shards"
    if not (place / MANIFEST).is_file():
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        build(digits.write(out / "digits"), place, catalog=catalog)
    return place
