"""The samples of a WebDataset tar: members whose names differ only after the first dot, one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mae_pipe.api import DataError

from .members import Member, Tar

IMAGES = ("jpg", "jpeg", "png", "webp", "jpe", "jfif", "npy")
OTHERS = ("gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")  # images that a build converts
ENCODINGS = {"png": "png", "webp": "webp", "npy": "npy"}  # by ending; else "jpeg"
TEXT = 1 << 20  # bytes of the longest label
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


@dataclass(slots=True)
class Group:
    """The members of one sample, by what follows the first dot of their names, in lower case."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)

    def image(self, wanted: str = "") -> str:
        """The ending of the image; "" where there is none. Raises ``ValueError`` where it is not clear which."""
        if wanted:
            return wanted if wanted in self.parts else ""
        found = [ending for ending in self.parts if ending in IMAGES or ending in OTHERS]
        if len(found) > 1:
            raise ValueError(f"several images, {' and '.join(found)}")
        return found[0] if found else ""


def groups(tar: Tar) -> Iterator[Group]:
    """Every sample of a tar; raises ``DataError`` for a key that comes twice."""
    seen: set[str] = set()
    now: Group | None = None
    for member in tar.members():
        found = _NAME.fullmatch(member.name.removeprefix("./"))
        if not found or found[1].startswith("__"):  # not of a sample, as webdataset has it
            continue
        key, ending = found[1], found[2].lower()
        if now is None or key != now.key:
            if now is not None:
                yield now
            if key in seen:
                raise DataError(f"{tar.name} holds the sample {key!r} twice; pack it again with one sample of each key")
            seen.add(key)
            now = Group(key)
        if ending in now.parts:
            raise DataError(f"{tar.name} holds {member.name!r} twice; pack it again with one file of each name")
        now.parts[ending] = member
    if now is not None:
        yield now


@dataclass(frozen=True)
class Labelling:
    """Where labels are: "" (.cls, else "label" or "labels" in .json), "cls", "txt", "json:FIELD", "folder", "none"."""

    wanted: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"|none|cls|txt|folder|json:.+", self.wanted):
            raise ValueError(f"label is {self.wanted!r}; expected cls, txt, json:FIELD, folder or none")

    def of(self, tar: Tar, group: Group) -> object:
        """As it is written there; None where there is none."""
        kind, _, name = self.wanted.partition(":")
        where = f"{tar.name}: {group.key}"
        if kind == "folder":
            return group.key.partition("/")[0] if "/" in group.key else None
        if kind not in ("none", "json"):
            ending = kind or "cls"
            if ending in group.parts:
                return _text(tar, group.parts[ending], where).strip()
        if kind not in ("", "json") or "json" not in group.parts:
            return None
        try:
            said = json.loads(_text(tar, group.parts["json"], where))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}.json is damaged: {error}; pack it again, or give --set label=none") from None
        if not isinstance(said, dict):
            return None
        value = said.get(name or "label", None if kind else said.get("labels"))
        return None if isinstance(value, dict) and not kind else value


def _text(tar: Tar, member: Member, where: str) -> str:
    if member.size > TEXT:
        raise DataError(f"{where}: {member.name!r} has {member.size:,} bytes, too many for a label")
    try:
        return tar.file.read(member.offset, member.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {member.name!r} is no UTF-8 text ({error})") from None
