"""Parquet files with the bytes of images in a column, as Hugging Face's data sets have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_pipe.api import Asked, DataError, ImageSource, Item, Refusal, plugin, stamp_of

from .labels import label_of
from .names import split_of

IMAGES = ("image", "img", "jpg", "png", "bytes", "image_bytes", "data")
LABELS = ("label", "labels", "cls", "class", "target", "fine_label")
GROUP = 8 << 30  # bytes of the largest row group's images that is unpacked
BYTES = 512 << 20


@plugin("parquet")
class Parquet(ImageSource):
    """A .parquet file, or a folder of them: images as bytes, or as {bytes, path}; labels as numbers or names.

    Needs pyarrow: pip install 'mae-pipe[parquet]'. Class names are those that Hugging Face's metadata has.
    The split is what a file's name says (train-00000-of-00005.parquet), else "train".

    Options:
        image: the column of images; "": the one that Hugging Face's metadata or its name says.
        label: the column of labels; "": the one that Hugging Face's metadata or its name says; "none": no labels.
    """

    sequential = True  # a group of rows is read at once

    def __init__(self, path: Path, *, image: str = "", label: str = "") -> None:
        super().__init__(path)
        self._image, self._label = image, label
        self._stamps: dict[str, str] = {}
        self._kept: tuple[str, int, Any] | None = None  # the row group that was read last
        self._open: tuple[str, Any, str] | None = None  # a file's name, the file, its column of images

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path.suffix == ".parquet" and path.is_file()) or bool(_below(path))

    def items(self, asked: Asked) -> Iterator[Item]:
        names = _below(self.path) or ([self.path.name] if self.path.is_file() else [])
        if not names:
            raise DataError(f"{self.path} holds no .parquet files; give the folder that holds them")
        for name in names:
            path, split = self._file(name), split_of(name.rpartition("/")[2], self.SPLITS)
            file = _opened(path)
            features = _features(file)
            image = _image_column(path, file, features, self._image)
            label = _label_column(path, file, features, self._label, image) if asked.labels else ""
            self._take_classes(path, features.get(label, {}))
            stem = name.removesuffix(".parquet")
            for group in range(file.num_row_groups):
                labels = _column(path, file, group, label).to_pylist() if label else None
                for row in range(file.metadata.row_group(group).num_rows):
                    said = None
                    if labels is not None and labels[row] != -1:  # -1: Hugging Face's word for "not known"
                        said = label_of(labels[row], f"{path}: row group {group}, row {row}")
                    yield Item(f"{stem}/{group:04d}-{row:06d}", split, said, f"{name}:{group}:{row}")
            file.close()

    def read(self, place: str) -> bytes:
        name, group, row = _parts(place)
        if self._kept is None or self._kept[:2] != (name, group):
            self._kept = None  # two row groups need not fit into memory
            self._kept = name, group, self._images(name, group)
        value = self._kept[2][row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not value:
            raise Refusal("no bytes in its row")
        if not isinstance(value, bytes):
            raise Refusal(f"its row holds {type(value).__name__}, not bytes")
        if len(value) > BYTES:
            raise Refusal(f"{len(value):,} bytes, more than {BYTES:,}")
        return value

    def stamp(self, place: str) -> str:
        name = _parts(place)[0]
        if name not in self._stamps:
            self._stamps[name] = stamp_of(self._file(name))
        return f"{place} {self._stamps[name]}"

    def close(self) -> None:
        if self._open:
            self._open[1].close()
        self._open = self._kept = None

    def _file(self, name: str) -> Path:
        return self.path if self.path.is_file() else self.path / name

    def _images(self, name: str, group: int) -> Any:
        path = self._file(name)
        if self._open is None or self._open[0] != name:
            self.close()
            file = _opened(path)
            self._open = name, file, _image_column(path, file, _features(file), self._image)
        _, file, image = self._open
        return _column(path, file, group, image)

    def _take_classes(self, path: Path, feature: dict[str, Any]) -> None:
        """The class names of Hugging Face's metadata; those of all files must be the same."""
        names = feature.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return
        if self.classes is not None and list(self.classes) != names:
            raise DataError(f"{path} has other class names than the files before it; shard them one by one")
        self.classes = names


def _below(path: Path) -> list[str]:
    """The names of the .parquet files of a folder, or of its folder ``data``."""
    if not path.is_dir():
        return []
    folder = path / "data" if not any(path.glob("*.parquet")) and (path / "data").is_dir() else path
    return sorted(str(file.relative_to(path)) for file in folder.glob("*.parquet") if not file.name.startswith("."))


def _opened(path: Path) -> Any:
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise DataError(
            f"{path} is read with pyarrow, which is not installed: pip install 'mae-pipe[parquet]'"
        ) from error
    try:
        return parquet.ParquetFile(path, memory_map=False)
    except (lib.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({_line(error)}); copy it again") from error


def _column(path: Path, file: Any, group: int, name: str) -> Any:
    """One column of a row group."""
    from pyarrow import lib

    described = file.metadata.row_group(group)
    columns = [described.column(number) for number in range(described.num_columns)]
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] == name)
    if size > GROUP:
        raise DataError(f"{path}: row group {group} unpacks to {size:,} bytes, more than {GROUP:,}; write smaller ones")
    try:
        return file.read_row_group(group, columns=[name], use_threads=False).column(name)
    except (lib.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: row group {group} is damaged ({_line(error)}); copy it again") from error


def _features(file: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of each column; {} where there is none."""
    try:
        said = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: said[name] for name in said if isinstance(said[name], dict)} if isinstance(said, dict) else {}


def _image_column(path: Path, file: Any, features: dict[str, dict[str, Any]], wanted: str) -> str:
    from pyarrow import types

    schema = file.schema_arrow
    if wanted and wanted not in schema.names:
        raise DataError(f"{path} has no column {wanted!r}; it has {', '.join(schema.names)[:200]}")

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        if types.is_struct(kind):
            kind = next((kind.field(n).type for n in range(kind.num_fields) if kind.field(n).name == "bytes"), kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fit = [name for name in schema.names if holds_bytes(name)]
    named = [name for name in fit if features.get(name, {}).get("_type") == "Image"]
    named = named or [name for known in IMAGES for name in fit if name.lower() == known]
    chosen = wanted or (named[0] if named else fit[0] if len(fit) == 1 else "")
    if chosen not in fit:
        raise DataError(
            f"{path} has {'no column of image bytes' if not fit else 'no one column of images'} among "
            f"{', '.join(schema.names)[:200]}; say which with --set image=COLUMN"
        )
    return chosen


def _label_column(path: Path, file: Any, features: dict[str, dict[str, Any]], wanted: str, image: str) -> str:
    names = file.schema_arrow.names
    if wanted == "none":
        return ""
    if wanted and wanted not in names:
        raise DataError(f"{path} has no column {wanted!r}; it has {', '.join(names)[:200]}")
    known = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    if not wanted and len(known) > 1:
        raise DataError(f"{path} has labels in {' and '.join(known)}; say which with --set label=COLUMN")
    return wanted or (known or [n for like in LABELS for n in names if n.lower() == like and n != image] or [""])[0]


def _parts(place: str) -> tuple[str, int, int]:
    name, group, row = place.rsplit(":", 2)
    return name, int(group), int(row)


def _line(error: BaseException) -> str:
    return str(error).split("\n")[0][:200]
