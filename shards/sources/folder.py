"""A folder of image files.

``SRC/CLASS/.../x.jpg`` has labels (the classes are the sorted folder names, as torchvision's
ImageFolder numbers them), ``SRC/x.jpg`` has none, and ``SRC/{train,val,test}/...`` has splits.
Links are followed, as folders of links to ImageNet are common; one that leads back above itself is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, plugin, read_file, stamp_of

from .names import why_not


@plugin("folder")
class Folder(ImageSource):
    """Files in folders: CLASS/x.jpg with labels, x.jpg without, train/... and val/... as splits."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir()

    def items(self, asked: Asked) -> Iterator[Item]:
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder; give the folder that holds the images")
        folders = [] if asked.whole else self._split_folders()
        for number, name in enumerate(folders):
            if number == 0:
                yield from self._outside(folders)
            yield from self._split(name, self.path / name, f"{name}/", asked)
        if not folders:
            yield from self._split("train", self.path, "", asked)

    def read(self, place: str) -> bytes:
        return read_file(self.path / place)

    def stamp(self, place: str) -> str:
        return stamp_of(self.path / place)

    def origin(self, place: str) -> Origin:
        return Origin(self.path / place)

    def _split_folders(self) -> list[str]:
        """The split folders of a source, in their order; none where its folders are classes."""
        names = [entry.name for entry in _entries(self.path) if _is_folder(entry) and not entry.name.startswith(".")]
        found = [name for name in self.SPLITS if name in names]
        if found and len(found) < len(names) and "train" in found:
            others = ", ".join(sorted(set(names) - set(found))[:3])
            raise DataError(
                f"{self.path} has {', '.join(found)} beside other folders ({others}), so it is not clear whether they "
                f"are splits or classes; move the others away, or give --split NAME to take all folders as classes"
            )
        return found if len(found) == len(names) else []

    def _outside(self, folders: list[str]) -> Iterator[Item]:
        """Refuse, by name, what lies beside the split folders."""
        for entry in _entries(self.path):
            if entry.name not in folders:
                reason = "a hidden folder" if _is_folder(entry) else "beside the split folders, so of no split"
                yield Item(entry.name, folders[0], refused=reason)

    def _split(self, split: str, folder: Path, prefix: str, asked: Asked) -> Iterator[Item]:
        classes = _classes(folder, asked.arrays) if asked.labels else set()
        for path, reason in _files(folder, asked.arrays):
            first, below, _ = path.partition("/")
            label = first if below and first in classes else None
            beside = "beside the class folders, so of no class" if classes and label is None else ""
            yield Item(path, split, label, prefix=prefix, refused=reason or beside)


def _classes(folder: Path, arrays: bool) -> set[str]:
    return {
        entry.name
        for entry in _entries(folder)
        if _is_folder(entry) and not entry.name.startswith(".") and _holds_images(Path(entry.path), arrays)
    }


def _holds_images(folder: Path, arrays: bool) -> bool:
    return any(not reason for _, reason in _files(folder, arrays))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _files(folder: Path, arrays: bool) -> Iterator[tuple[str, str]]:
    """(path relative to ``folder``, "" or why it is not read) of everything below, sorted folder by folder."""
    stack = [(folder, "", frozenset({_identity(folder)}))]
    while stack:
        here, prefix, above = stack.pop()
        try:
            entries = _entries(here)
        except OSError as error:
            yield prefix.rstrip("/"), f"cannot be read: {error.strerror}"
            continue
        below = []
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith("."):
                yield path, "a hidden folder" if _is_folder(entry) else "a hidden file"
            elif _is_folder(entry):
                identity = _identity(Path(entry.path))
                if identity in above:
                    yield path, "a link to a folder above itself"
                else:
                    below.append((Path(entry.path), f"{path}/", above | {identity}))
            elif not _is_file(entry):
                yield path, "a broken link" if entry.is_symlink() else "not a regular file"
            else:
                yield path, why_not(entry.name, arrays=arrays)
        stack.extend(reversed(below))


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino
