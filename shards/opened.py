"""Shard files that are a source's, opened as they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from mae_pipe.api import Refusal, stamp_of

from .file import ShardFile

BYTES = 512 << 20  # a larger image is not read
OPEN = 16  # files at a time


class Opened:
    """The files below a folder, or one file, by name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: OrderedDict[str, ShardFile] = OrderedDict()
        self._stamps: dict[str, str] = {}

    def paths(self, names: tuple[str, ...], ending: str) -> dict[str, Path]:
        """Those of ``names``, or else all that end in ``ending`` at the top, by name."""
        if names:
            return {name: self.path(name) for name in names}
        found = sorted(self._root.glob(f"*{ending}")) if self._root.is_dir() else [self._root]
        return {path.name: path for path in found}

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self._root / name if self._root.is_dir() else self._root

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of an image; raises ``Refusal`` where they are too many."""
        if size > BYTES:
            raise Refusal(f"{size:,} bytes, more than {BYTES:,}")
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = ShardFile(self.path(name))
            if len(self._files) > OPEN:
                self._files.popitem(last=False)[1].close()
        return file.read(offset, size)

    def stamp(self, name: str) -> str:
        """A file's size and time, looked up once."""
        if name not in self._stamps:
            self._stamps[name] = stamp_of(self.path(name))
        return self._stamps[name]

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
