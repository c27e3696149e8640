"""One open shard file, read at any place by any number of threads."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path

from mae_pipe.api import DataError


class ShardFile:
    """Reads by position, not through a memory map.

    A map of all shards would count as memory of the process page by page, and a file that is cut
    short while it is mapped kills the process instead of raising an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise DataError(
                    f"too many open files for one more shard, {path}; raise the limit: ulimit -n 65536"
                ) from error
            raise self.damaged(str(error)) from error
        self._size = os.fstat(self._descriptor).st_size  # so that no size in a damaged index is asked for
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        if not 0 <= size <= self._size - offset:
            raise self.damaged(f"it ends before byte {offset + size}, where its index expects an image")
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise self.damaged(str(error)) from error
        if len(data) != size:
            raise self.damaged(f"it ends before byte {offset + size}, where its index expects an image")
        return data

    def damaged(self, why: str) -> DataError:
        """What to raise for a file that is not what was written."""
        return DataError(
            f"the shard {self.path} cannot be read ({why}); copy it again, or run: mae-pipe verify {self.path.parent}"
        )
