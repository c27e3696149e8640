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

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Forget the other rows, and what a killed run tore; returns those that are left."""
        raw = self.path.read_bytes() if self.path.is_file() else b""
        lines, rows = [], []
        for line in raw.splitlines(keepends=True):
            try:
                if line.endswith(b"\n") and wanted(row := json.loads(line)):
                    lines.append(line)
                    rows.append(row)
            except (ValueError, KeyError, TypeError):
                continue
        kept = b"".join(lines)
        if not raw.startswith(kept):
            write_whole(self.path, kept)
        elif raw != kept:  # the usual case, for which a full disk has room
            with writing(self.path.parent):
                os.truncate(self.path, len(kept))
        self._waiting = [row for row in self._waiting if wanted(row)]
        return rows + self._waiting

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
