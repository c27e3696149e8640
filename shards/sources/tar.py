"""A tar of class folders, read where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, Refusal, plugin, stamp_of

from ..file import ShardFile
from ..members import Tar
from .layout import listed
from .names import why_not

BYTES = 512 << 20  # a larger image is not read
LOOKED_AT = 64  # members, to see what a tar holds


def is_of_folders(path: Path) -> bool:
    """Whether a tar's first members are images in folders, and nothing lies beside them as in WebDataset's."""
    if path.suffix != ".tar" or path.name.startswith("ILSVRC2012_img_") or not path.is_file():
        return False
    try:
        tar = Tar.of(path)
        names = [member.name.removeprefix("./") for member in islice(tar.members(), LOOKED_AT)]
        tar.file.close()
    except DataError:  # whoever reads it says what is wrong
        return False
    images = [name for name in names if not why_not(name)]
    keys = {name.rpartition(".")[0] for name in images}
    beside = any(name.rpartition(".")[0] in keys for name in names if name not in images)
    return bool(images) and not beside and all("/" in name for name in images)


@plugin("tar")
class FolderTar(ImageSource):
    """A .tar file laid out as a folder would be: CLASS/x.jpg, train/CLASS/x.jpg; nothing is unpacked.

    One folder that holds everything is looked through: photos/CLASS/x.jpg is CLASS/x.jpg.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: ShardFile | None = None
        self._stamp = ""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return is_of_folders(path)

    def items(self, asked: Asked) -> Iterator[Item]:
        tar = Tar.of(self.path)
        members = list(tar.members())
        tar.file.close()
        names = [member.name.removeprefix("./") for member in members]
        places = {name: f"{member.offset}:{member.size}" for name, member in zip(names, members, strict=True)}
        for item in listed(names, asked, self.path):
            name = item.prefix + item.path
            yield replace(item, place=places[name])

    def read(self, place: str) -> bytes:
        offset, size = map(int, place.split(":"))
        if size > BYTES:
            raise Refusal(f"{size:,} bytes, more than {BYTES:,}")
        if self._file is None:
            self._file = ShardFile(self.path)
        return self._file.read(offset, size)

    def stamp(self, place: str) -> str:
        self._stamp = self._stamp or stamp_of(self.path)
        return f"{place} {self._stamp}"

    def origin(self, place: str) -> Origin:
        offset, size = map(int, place.split(":"))
        return Origin(self.path, offset, size)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None
