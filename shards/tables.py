"""A beton's images and maps, found by ffcv's own tables."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mae_pipe.api import Placed, PluginError, ShardReader

from .file import ShardFile

INSTALL = (
    "install it with: apt-get install libopencv-dev libturbojpeg0-dev pkg-config build-essential, "
    "then: pip install 'mae-pipe[ffcv]'"
)


def ffcv(module: str) -> Any:
    """A module of ffcv; several seconds the first time."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(f"ffcv.{module}")
    except ImportError as error:
        raise PluginError(f"ffcv cannot be imported ({error}); {INSTALL}") from error


class Tables(ShardReader):
    """Trusts no table: what it names must be an allocation of the size that the index says."""

    def __init__(self, path: Path) -> None:
        reader = ffcv("reader")
        self._file = ShardFile(path)
        self._places: dict[str, list[tuple[int, int]]] = {}  # by field: start and size of each sample's bytes
        try:
            beton = reader.Reader(str(path))
            for field in ("image", "map"):
                if field in beton.field_names:
                    self._places[field] = _places(beton, beton.field_names.index(field))
            if "image" not in self._places:
                raise ValueError("its tables contradict each other")
        except Exception as error:  # ffcv trusts what it reads, so damage shows as anything
            raise self._file.damaged(f"{type(error).__name__}: {error}") from error

    def read(self, number: int, placed: Placed) -> bytes:
        return self._read("image", number, placed)

    def read_map(self, number: int, placed: Placed) -> bytes:
        return self._read("map", number, placed)

    def _read(self, field: str, number: int, placed: Placed) -> bytes:
        places = self._places.get(field, [])
        if number >= len(places) or places[number][1] != placed.size:
            raise self._file.damaged(f"its {field} {number} is not the one of the index")
        return self._file.read(places[number][0], placed.size)

    def close(self) -> None:
        self._file.close()


def _places(beton: Any, field: int) -> list[tuple[int, int]]:
    column = beton.metadata[beton.metadata.dtype.names[field]]
    pointers = column["data_ptr" if "data_ptr" in column.dtype.names else "ptr"]
    table = beton.alloc_table
    order = np.argsort(table["ptr"])
    found = order[np.searchsorted(table["ptr"][order], pointers)]
    if not np.array_equal(table["ptr"][found], pointers):
        raise LookupError("its tables contradict each other")
    return list(zip(pointers.tolist(), table["size"][found].tolist(), strict=True))
