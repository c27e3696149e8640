"""A zip file of class folders, read where it lies."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, Refusal, plugin

from .names import why_not

BYTES = 512 << 20  # a larger image is not read


@plugin("zip")
class Zip(ImageSource):
    """A .zip file laid out as a folder would be: CLASS/x.jpg, x.jpg, train/CLASS/x.jpg; nothing is unpacked.

    One folder that holds everything is looked through: photos/CLASS/x.jpg is CLASS/x.jpg.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: zipfile.ZipFile | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() == ".zip" and path.is_file()

    def items(self, asked: Asked) -> Iterator[Item]:
        names = [entry.filename for entry in self._opened().infolist() if not entry.is_dir()]
        doubled = len(names) - len(set(names))
        if doubled:
            first = next(name for name in sorted(set(names)) if names.count(name) > 1)
            raise DataError(f"{self.path} holds {first!r} twice; pack it again with one file of each name")
        safe = {name: _why_unsafe(name) or _hidden(name) for name in names}
        images = [name for name in names if not safe[name] and not why_not(name, arrays=asked.arrays)]
        top = _top(images)
        splits = set() if asked.whole else self._splits(images, top)
        classes = _classes(images, top, splits) if asked.labels else set()
        for name in sorted(names, key=lambda name: name.split("/")):
            reason = safe[name] or why_not(name, arrays=asked.arrays)
            inner = name.removeprefix(top)
            split, prefix = "train", ""
            if splits:
                split = inner.partition("/")[0]
                prefix = top + split + "/"
                if split not in splits or "/" not in inner:
                    yield Item(name, sorted(splits)[0], refused=reason or "beside the split folders, so of no split")
                    continue
            below = name.removeprefix(prefix or top)
            first, inside, _ = below.partition("/")
            label = first if inside and (split if splits else "", first) in classes else None
            if not reason and label is None and any(its == (split if splits else "") for its, _ in classes):
                reason = "beside the class folders, so of no class"
            yield Item(below, split, label, prefix=prefix or top, refused=reason)

    def read(self, place: str) -> bytes:
        entry = self._opened().getinfo(place)
        if entry.file_size > BYTES:
            raise Refusal(f"{entry.file_size:,} bytes, more than {BYTES:,}")
        if entry.flag_bits & 1:
            raise Refusal("encrypted")
        try:
            with self._opened().open(entry) as file:
                data = file.read(entry.file_size + 1)  # no more than it said, whatever it unpacks to
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
            raise Refusal(f"damaged in the zip: {error}") from None
        except Exception as error:  # the decompressors have errors of their own
            raise Refusal(f"damaged in the zip: {error}") from None
        if len(data) != entry.file_size:
            raise Refusal(f"damaged in the zip: {len(data):,} bytes instead of {entry.file_size:,}")
        return data

    def stamp(self, place: str) -> str:
        entry = self._opened().getinfo(place)
        return f"{entry.file_size} {entry.CRC} {entry.header_offset}"

    def origin(self, place: str) -> Origin | None:
        entry = self._opened().getinfo(place)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            return None
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)  # its lengths of name and extra may differ from those of the directory
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        return Origin(self.path, entry.header_offset + 30 + name + extra, entry.file_size)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _opened(self) -> zipfile.ZipFile:
        if self._file is None:
            try:
                self._file = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise DataError(f"{self.path} cannot be read as a zip ({error}); copy or pack it again") from error
        return self._file

    def _splits(self, images: list[str], top: str) -> set[str]:
        """The split folders; none where the folders are classes."""
        names = {first for name in images for first, below, _ in [name.removeprefix(top).partition("/")] if below}
        found = [name for name in self.SPLITS if name in names]
        if found and len(found) < len(names) and "train" in found:
            others = ", ".join(sorted(names - set(found))[:3])
            raise DataError(
                f"{self.path} has {', '.join(found)} beside other folders ({others}), so it is not clear whether they "
                f"are splits or classes; pack it without the others, or give --split NAME to take all as classes"
            )
        return names if len(found) == len(names) else set()


def _top(images: list[str]) -> str:
    """The folder that all images lie in below which there are folders; "" where there is none, "photos/" say."""
    tops = {name.partition("/")[0] for name in images}
    if len(tops) != 1 or not all(name.count("/") > 1 for name in images):
        return ""
    top = tops.pop()
    return "" if top in ImageSource.SPLITS else f"{top}/"


def _classes(images: list[str], top: str, splits: set[str]) -> set[tuple[str, str]]:
    """(split, folder) of every class; the split is "" where there are none."""
    found = set()
    for name in images:
        parts = name.removeprefix(top).split("/")
        split = parts.pop(0) if splits else ""
        if len(parts) > 1:
            found.add((split, parts[0]))
    return found


def _why_unsafe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        return "a path that leads out of the zip"
    return ""


def _hidden(name: str) -> str:
    parts = name.split("/")
    return "a hidden file" if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX" else ""
