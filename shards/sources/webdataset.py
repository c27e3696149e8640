"""WebDataset tars that somebody made."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, Refusal, plugin, stamp_of

from ..file import ShardFile
from ..members import Tar
from ..samples import Labelling, groups
from .labels import label_of
from .names import split_of, why_not
from .tar import is_of_folders

BYTES = 512 << 20
OPEN = 16  # tars at a time


@plugin("webdataset")
class WebDataset(ImageSource):
    """A tar, or a folder of tars: KEY.jpg (or png, webp, ...) with KEY.cls, KEY.json or KEY.txt beside it.

    The split is what a tar's name says (NAME-val-0001.tar), else "train".

    Options:
        image: the ending of the images, where a sample has several; "": the one that there is.
        label: where labels are: cls, txt, json:FIELD, folder (of the key) or none; "": .cls, else "label" in .json.
        files: the tars, by name below the folder; (): all that end in .tar, at its top.
    """

    def __init__(self, path: Path, *, image: str = "", label: str = "", files: tuple[str, ...] = ()) -> None:
        super().__init__(path)
        self._files = files
        self._image, self._label = image.lower(), Labelling(label)
        self._tars: OrderedDict[str, ShardFile] = OrderedDict()
        self._stamps: dict[str, str] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_file():
            plain = path.suffix == ".tar" and not path.name.startswith("ILSVRC2012_img_")
            return plain and not is_of_folders(path)
        if not path.is_dir():
            return False
        names = [entry for entry in path.iterdir() if not entry.name.startswith((".", "_"))]
        tars = [entry for entry in names if entry.suffix == ".tar" and not entry.name.startswith("ILSVRC2012_img_")]
        return bool(tars) and not any(entry.is_dir() or not why_not(entry.name) for entry in names)

    def items(self, asked: Asked) -> Iterator[Item]:
        paths = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
        if self._files:
            paths = [self.path / name for name in self._files]
        if not paths:
            raise DataError(f"{self.path} holds no .tar files; give the folder that holds them")
        about = self._about()
        if asked.labels and self._label.wanted != "none" and about.get("map_classes"):
            raise DataError(
                f"the shards {self.path} have maps of classes, which are not read from shards; "
                f"build the new ones from the images, or give --set label=none"
            )
        names = about.get("classes")
        self.classes = names if names and all(isinstance(name, str) for name in names) else None
        for path in paths:
            name = path.name if path == self.path else str(path.relative_to(self.path))
            tar, split = Tar.of(path), split_of(path.name, self.SPLITS)
            for group in groups(tar):
                try:
                    ending = group.image(self._image)
                except ValueError as error:
                    raise DataError(f"{path}: {group.key} has {error}; say which with --set image=ENDING") from None
                if not ending:
                    there = ", ".join(f".{ending}" for ending in group.parts)
                    yield Item(f"{name}/{group.key}", split, refused=f"no image beside {there}"[:200])
                    continue
                member = group.parts[ending]
                label = None
                if asked.labels:
                    label = label_of(self._label.of(tar, group), f"{path}: {group.key}")
                place = f"{name}:{member.offset}:{member.size}"
                reason = why_not(f"x.{ending.rpartition('.')[2]}", arrays=asked.arrays)
                yield Item(f"{group.key}.{ending.rpartition('.')[2]}", split, label, place, refused=reason)
            tar.file.close()

    def read(self, place: str) -> bytes:
        name, offset, size = _parts(place)
        if size > BYTES:
            raise Refusal(f"{size:,} bytes, more than {BYTES:,}")
        tar = self._tars.get(name)
        if tar is None:
            tar = self._tars[name] = ShardFile(self._file(name))
            if len(self._tars) > OPEN:
                self._tars.popitem(last=False)[1].close()
        return tar.read(offset, size)

    def stamp(self, place: str) -> str:
        name = _parts(place)[0]
        if name not in self._stamps:
            self._stamps[name] = stamp_of(self._file(name))
        return f"{place} {self._stamps[name]}"

    def origin(self, place: str) -> Origin:
        name, offset, size = _parts(place)
        return Origin(self._file(name), offset, size)

    def close(self) -> None:
        for tar in self._tars.values():
            tar.close()
        self._tars.clear()

    def _file(self, name: str) -> Path:
        return self.path / name if self.path.is_dir() else self.path

    def _about(self) -> dict[str, Any]:
        """What mae-pipe's own manifest says, where there is one."""
        path = self.path / "manifest.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}


def _parts(place: str) -> tuple[str, int, int]:
    name, offset, size = place.rsplit(":", 2)
    return name, int(offset), int(size)
