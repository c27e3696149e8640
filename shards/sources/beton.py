"""Betons: the files that FFCV's own writer made."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, Pixels, Refusal, plugin

from ..allocations import check
from ..file import ShardFile
from ..header import Header
from ..opened import Opened
from .labels import label_of
from .manifest import classes, said
from .names import split_of, why_not

JPG, RAW = 0, 1  # ffcv's modes of an image
FILE = -1  # an image file in a field of bytes
TEXT = 1 << 20  # bytes of the longest label
ROWS = 1 << 16  # that are looked at together


class _Place(NamedTuple):
    """Where an image lies and as what; width and height 0: not said."""

    name: str
    offset: int
    size: int
    mode: int
    width: int
    height: int


@plugin("beton")
class Betons(ImageSource):
    """A .beton file of FFCV's, or a folder of them; ffcv itself is not needed.

    Samples have no names: their keys are the file's name and their number. The split is what the file's name says
    (NAME-val.beton), else "train".

    Options:
        image: the field of the images; "": the one that there is, or "image".
        label: the field of the labels, numbers or JSON with "labels"; none; "": the one of numbers, or "label".
        files: the betons, by name below the folder; (): all that end in .beton, at its top.
    """

    def __init__(self, path: Path, *, image: str = "", label: str = "", files: tuple[str, ...] = ()) -> None:
        super().__init__(path)
        self._files, self._image, self._label = files, image, label
        self._betons = Opened(path)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not path.is_dir():
            return path.suffix == ".beton" and path.is_file()
        names = [entry for entry in path.iterdir() if not entry.name.startswith((".", "_"))]
        found = any(entry.suffix == ".beton" for entry in names)
        return found and not any(entry.is_dir() or not why_not(entry.name) for entry in names)

    def items(self, asked: Asked) -> Iterator[Item]:
        paths = self._betons.paths(self._files, ".beton")
        if not paths:
            raise DataError(f"{self.path} holds no .beton files; give the folder that holds them")
        labels = asked.labels and self._label != "none"
        self.classes = classes(self.path, said(self.path), labels)
        for name, path in paths.items():
            yield from self._of(name, path, labels)

    def _of(self, name: str, path: Path, labels: bool) -> Iterator[Item]:
        """The samples of one file."""
        file, split = ShardFile(path), split_of(path.name, self.SPLITS)
        try:
            header = Header.of(file, path.stat().st_size)
            table = check(file, header)
            field = self._image_field(path, header)
            images = header.column(file, field)
            sizes = table.sizes(images, field)
            del table
        except ValueError as error:
            raise DataError(f"{path} cannot be read as a beton: {error}; copy it again, or write it again") from None
        label = self._labels(path, file, header) if labels else None
        for start in range(0, len(images), ROWS):
            part = slice(start, start + ROWS)
            for number, image, size in zip(
                range(start, len(images)), images[part].tolist(), sizes[part].tolist(), strict=False
            ):
                mode, width, height, pointer = image if len(image) == 4 else (FILE, 0, 0, image[0])
                place = _Place(name, pointer, size, mode, width, height)
                what = label_of(label(number), f"{path}: sample {number:,}") if label else None
                yield Item(f"{path.stem}/{number:08d}", split, what, ":".join(map(str, place)), refused=_why_not(place))
        file.close()

    def read(self, place: str) -> bytes:
        at = _place(place)
        data = self._betons.read(at.name, at.offset, at.size)
        if at.mode == RAW:
            return Pixels(data, at.width, at.height)
        if at.mode == JPG:
            _check_header(data, at)
        return data

    def stamp(self, place: str) -> str:
        return f"{place} {self._betons.stamp(_place(place).name)}"

    def origin(self, place: str) -> Origin:
        at = _place(place)
        return Origin(self._betons.path(at.name), at.offset, at.size)

    def close(self) -> None:
        self._betons.close()

    def _image_field(self, path: Path, header: Header) -> str:
        for kind in ("image", "bytes"):
            known = [name for name, its in header.kinds.items() if its == kind]
            if self._image in known:
                return self._image
            if not self._image and (len(known) == 1 or "image" in known):
                return "image" if "image" in known else known[0]
        raise DataError(
            f"{path} has no field {self._image!r} of images"
            if self._image
            else f"{path} has no one field of images; it has {_named(header)}: say which with --set image=FIELD"
        )

    def _labels(self, path: Path, file: ShardFile, header: Header) -> Any:
        """What gives a sample's label by its number; None where there are no labels."""
        kinds, numbers = header.kinds, [name for name, kind in header.kinds.items() if kind == "int"]
        name = self._label
        if not name and kinds.get("labels") == "json":
            name = "labels"
        elif not name and len(numbers) > 1 and "label" not in numbers:
            raise DataError(
                f"{path} has the numbers {' and '.join(numbers)}; say which is the label with --set label=FIELD, "
                f"or --set label=none"
            )
        elif not name:
            name = "label" if "label" in numbers else "".join(numbers)
        if not name:
            return None
        if kinds.get(name) not in ("int", "json"):
            raise DataError(
                f"{path} has no field {name!r} of labels; it has {_named(header)}: say which with --set label=FIELD, "
                f"or --set label=none"
            )
        column = header.column(file, name)
        if kinds[name] == "json":
            return lambda number: _of_json(file, column[number], f"{path}: sample {number:,}")
        return lambda number: None if column[number] < 0 else int(column[number])


def _why_not(place: _Place) -> str:
    if place.mode not in (JPG, RAW, FILE):
        return f"stored in the mode {place.mode}, where {JPG} (JPEG) and {RAW} (raw pixels) are known"
    if place.mode == RAW and place.size != 3 * place.width * place.height:
        return f"raw pixels of {place.width} x {place.height} in {place.size:,} bytes"
    return ""


def _check_header(data: bytes, at: _Place) -> None:
    """Whether a JPEG has the size that its record says."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            size = image.size
    except Exception:  # what is wrong with it is said by whoever decodes it
        return
    if size != (at.width, at.height):
        raise Refusal(f"a JPEG of {size[0]} x {size[1]} pixels, where the beton says {at.width} x {at.height}")


def _of_json(file: ShardFile, entry: Any, where: str) -> object:
    """The list of classes in a JSON field."""
    pointer, size = int(entry["pointer"]), int(entry["size"])
    if size > TEXT:
        raise DataError(f"{where} has {size:,} bytes of JSON, too many for labels")
    try:
        value = json.loads(file.read(pointer, size).partition(b"\0")[0])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} has damaged JSON ({error}); copy it again, or give --set label=none") from None
    if not isinstance(value, dict) or not isinstance(value.get("labels"), list):
        raise DataError(f'{where} has no {{"labels": [...]}} in its JSON; give --set label=FIELD, or --set label=none')
    return value["labels"]


def _named(header: Header) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in header.kinds.items())[:300]


def _place(text: str) -> _Place:
    name, *numbers = text.rsplit(":", 5)
    return _Place(name, *map(int, numbers))
