"""A beton's images and maps, read at the places that the index has; ffcv itself is not needed."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from mae_pipe.api import Placed, PluginError, ShardReader

from .allocations import check
from .file import ShardFile
from .header import Header

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
    """Checks header and tables when it opens a file, and that a place is in the data when it reads there."""

    def __init__(self, path: Path) -> None:
        self._file = ShardFile(path)
        try:
            self._header = Header.of(self._file, path.stat().st_size)
            check(self._file, self._header)
        except (ValueError, OSError) as error:
            raise self._file.damaged(str(error)) from error

    def read(self, number: int, placed: Placed) -> bytes:
        if not self._header.data <= placed.offset <= self._header.table - placed.size:
            raise self._file.damaged(f"its index expects an image at byte {placed.offset:,}, outside its data")
        return self._file.read(placed.offset, placed.size)

    def close(self) -> None:
        self._file.close()
