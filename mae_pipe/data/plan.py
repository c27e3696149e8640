"""What a build is to make, of which files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mae_pipe.data.admit import Wishes
from mae_pipe.data.listing import printable
from mae_pipe.data.sources import ImageSource, stamp_of


@dataclass(frozen=True)
class Plan:
    """What all parts of a build share.

    Attributes:
        options: JSON of all that changes bytes.
        table: the name of the table that lists every image's classes, if there is one.
        maps: the folder of maps, if there is one.
        map_names: of the classes that maps may have; None: as many as they number.
        ignored: classes of maps that become 255 (``maps.renumbered``).
        marks: whether it is noted where rows of blocks of JPEGs begin.
        raw: the share of images that are stored as raw pixels, drawn by a hash of their keys.
        source: the plugin of kind ``source`` that reads ``root``, with ``source_options``, JSON.
        in_place: whether the source's own files are the shards.
    """

    out: Path
    format: str
    plugin_files: tuple[Path, ...]
    wishes: Wishes
    options: str
    table: str | None = None
    maps: Path | None = None
    map_names: tuple[str, ...] | None = None
    marks: bool = False
    source: str = "folder"
    root: Path = Path()
    source_options: str = "{}"
    in_place: bool = False
    raw: float = 0.0
    ignored: tuple[int, ...] = ()

    def where(self, name: str) -> Path:
        """A shard file."""
        return (self.root if self.in_place else self.out) / name

    @property
    def labelling(self) -> Literal["class", "multi"]:
        """Whether an image has one class, or any number of them."""
        return "multi" if self.table is not None else "class"


class File(NamedTuple):
    """A source file, which its source finds at ``place``; ``label`` -1 and ``labels`` None: not known."""

    path: str
    key: str
    label: int
    labels: tuple[int, ...] | None = None
    place: str = ""


@dataclass(frozen=True)
class Run:
    """The source files of one part."""

    name: str  # of the shard file, without its suffix
    prefix: str
    files: list[File]
    shard: str = ""  # the source's file that holds all of them, where that is a shard
    first: bool = True  # of the parts of that file

    def map_of(self, file: File) -> str:
        """Where a folder of maps has the file's map."""
        return str(Path(self.prefix + file.path).with_suffix(".png"))


def fingerprint(plan: Plan, run: Run, source: ImageSource) -> str:
    """Of all that decides a part's bytes: the options, and each file's name, size and time."""
    digest = hashlib.sha256(plan.options.encode())
    for file in run.files:
        seen = source.stamp(file.place)
        labels = "" if file.labels is None else f" {file.labels}"
        map_ = f" {stamp_of(plan.maps / run.map_of(file))}" if plan.maps else ""
        named = f"{len(file.path)} {printable(file.path)} {file.key} {file.label} {seen}{labels}{map_}\n"
        digest.update(named.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
