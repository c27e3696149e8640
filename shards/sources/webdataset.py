"""WebDataset tars that somebody made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, plugin

from ..members import Tar
from ..opened import Opened
from ..samples import Labelling, groups
from .labels import label_of
from .manifest import classes, said
from .names import split_of, why_not
from .tar import is_of_folders


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
        self._tars = Opened(path)

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
        paths = self._tars.paths(self._files, ".tar")
        if not paths:
            raise DataError(f"{self.path} holds no .tar files; give the folder that holds them")
        self.classes = classes(self.path, said(self.path), asked.labels and self._label.wanted != "none")
        for name, path in paths.items():
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
        return self._tars.read(*_parts(place))

    def stamp(self, place: str) -> str:
        return f"{place} {self._tars.stamp(_parts(place)[0])}"

    def origin(self, place: str) -> Origin:
        name, offset, size = _parts(place)
        return Origin(self._tars.path(name), offset, size)

    def close(self) -> None:
        self._tars.close()


def _parts(place: str) -> tuple[str, int, int]:
    name, offset, size = place.rsplit(":", 2)
    return name, int(offset), int(size)
