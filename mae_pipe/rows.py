"""Rows of JSON at the end of a file; a disk that refuses them for a while costs none of them."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import DiskError


class Rows:
    """A file of one JSON object a line, each with its ``step``.

    What cannot be written waits in memory, which is said once; every later row tries again.

    Args:
        synced: a row is on the disk when ``add`` returns, so that it survives a power cut.
    """

    def __init__(self, path: Path, *, synced: bool = False) -> None:
        self.path, self.synced = path, synced
        self._waiting: list[dict[str, Any]] = []
        self._said = False

    def read(self) -> list[dict[str, Any]]:
        """All rows, without a line that a killed run tore, or that is none of ours."""
        found = []
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        for line in lines:
            try:
                if line.endswith(b"\n") and isinstance(json.loads(line)["step"], int):
                    found.append(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
        return found + self._waiting

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Forget the other rows; returns those that are left."""
        kept = [row for row in self.read() if wanted(row)]
        self._waiting = []
        if self.path.is_file() or kept:
            write_whole(self.path, _lines(kept))
        return kept

    def add(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """One row more; returns those that were written now."""
        self._waiting.append(row)
        tried = self._waiting
        try:
            self._write()
        except (DiskError, OSError) as error:
            if not self._said:
                self._tell(f"{self.path.name} is kept in memory until it can be written, and training goes on: {error}")
            self._said = True
            return []
        if self._said:
            self._tell(f"{self.path} can be written again, and lacks nothing")
        self._said = False
        return tried

    def close(self) -> None:
        """Try once more to write what waits, and say what will be missing."""
        try:
            self._write()
        except (DiskError, OSError) as error:
            first, last = self._waiting[0]["step"], self._waiting[-1]["step"]
            self._tell(f"{self.path} lacks {len(self._waiting)} rows, of steps {first} to {last}: {error}")
        self._waiting = []

    def _write(self) -> None:
        if not self._waiting:
            return
        content = _lines(self._waiting)
        with writing(self.path.parent), self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self.synced:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)  # half a row is none
                raise
        self._waiting = []

    def _tell(self, text: str) -> None:
        print(f"mae-pipe: {text}", file=sys.stderr, flush=True)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
