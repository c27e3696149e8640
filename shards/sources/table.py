"""A table of image files: lines of path, label and split, as CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, plugin, read_file, stamp_of

from .labels import label_of

PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath", "name")  # of a column of paths
LABELS = ("label", "class", "class_name", "target", "category")
SPLITS = ("split", "set", "subset")
LIKES = {".csv": ",", ".tsv": "\t"}
LINE = 1 << 20  # letters of the longest line


@plugin("table")
class Table(ImageSource):
    """A .csv, .tsv or .jsonl file with a line an image: its path, and if there are any its label and split.

    Paths are relative to the table's folder and stay within it.

    Options:
        image: the column of paths; "": the first of path, file, filename, file_name, image, image_path, filepath, name.
        label: the column of labels, names or numbers; "": the first of label, class, class_name, target, category.
        split: the column of splits; "": the first of split, set, subset.
        absolute: whether paths may be absolute or lead out of the table's folder.
    """

    def __init__(
        self, path: Path, *, image: str = "", label: str = "", split: str = "", absolute: bool = False
    ) -> None:
        super().__init__(path)
        self._columns = {"image": image, "label": label, "split": split}
        self._absolute = absolute
        self._folder = path.parent

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() in (*LIKES, ".jsonl") and path.is_file()

    def items(self, asked: Asked) -> Iterator[Item]:
        seen: set[str] = set()
        for line, row in self._rows():
            path = str(row.get("image") or "").removeprefix("./")
            if not path:
                raise DataError(f"{self.path}: line {line} has no path of an image")
            self._check(path, line)
            if path in seen:
                raise DataError(f"{self.path} lists {path!r} twice, the second time in line {line}; keep one line")
            seen.add(path)
            label = label_of(row.get("label"), f"{self.path}: line {line}") if asked.labels else None
            split = str(row.get("split") or "train")
            there = (self._folder / path).is_file()
            yield Item(path.lstrip("/"), split, label, place=path, refused="" if there else "not there, or no file")

    def read(self, place: str) -> bytes:
        return read_file(self._folder / place)

    def stamp(self, place: str) -> str:
        return stamp_of(self._folder / place)

    def origin(self, place: str) -> Origin:
        return Origin(self._folder / place)

    def _check(self, path: str, line: int) -> None:
        parts = PurePath(path)
        if not self._absolute and (parts.is_absolute() or ".." in parts.parts):
            raise DataError(
                f"{self.path}: line {line} lists {path!r}, outside the table's folder; move the table, "
                f"or give --set absolute=true"
            )
        if "\0" in path:
            raise DataError(f"{self.path}: line {line} lists {path!r}, which is no path")

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, its image, label and split)."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                if self.path.suffix.lower() == ".jsonl":
                    yield from self._of_json(file)
                else:
                    yield from self._of_csv(csv.reader(file, delimiter=LIKES[self.path.suffix.lower()], strict=True))
        except (UnicodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{self.path} cannot be read as a table: {error}; expected UTF-8 text") from error
        except KeyError as error:
            raise DataError(f"{self.path} is no table that is known; give a .csv, .tsv or .jsonl") from error

    def _of_csv(self, rows: Iterator[list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        header: list[str] | None = None
        places: dict[str, int] = {}
        for line, row in enumerate(rows, 1):
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                named = self._named(header)
                if named is None:
                    raise DataError(
                        f"{self.path} has the columns {', '.join(header)[:200]}, none of which is one of "
                        f"{', '.join(PATHS)}; give the table a first line of names, or --set image=COLUMN"
                    )
                places = {what: header.index(name) for what, name in named.items()}
                continue
            if len(row) != len(header):
                raise DataError(f"{self.path}: line {line} has {len(row)} columns, the first line has {len(header)}")
            yield line, {what: row[place].strip() for what, place in places.items()}

    def _of_json(self, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            if len(text) > LINE:
                raise DataError(f"{self.path}: line {line} has {len(text):,} letters, more than {LINE:,}")
            row = json.loads(text)
            named = self._named(list(row)) if isinstance(row, dict) else None
            if named is None:
                raise DataError(
                    f"{self.path}: line {line} is no object with one of {', '.join(PATHS)}; or give --set image=KEY"
                )
            yield line, {what: row[name] for what, name in named.items()}

    def _named(self, columns: list[str]) -> dict[str, str] | None:
        """Which columns are the image, label and split; None where no column is of paths."""
        found = {}
        lower = {name.lower(): name for name in reversed(columns)}
        for what, known in (("image", PATHS), ("label", LABELS), ("split", SPLITS)):
            asked = self._columns[what]
            if asked and asked not in columns:
                raise DataError(f"{self.path} has no column {asked!r}; it has {', '.join(columns)[:200]}")
            name = asked or next((lower[name] for name in known if name in lower), "")
            if name:
                found[what] = name
        return found if "image" in found else None
