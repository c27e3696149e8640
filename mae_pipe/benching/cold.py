"""How fast the disk of shards gives images that are not in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mae_pipe.data.region import crc32
from mae_pipe.data.shelf import Shelf

FILES = 256  # shards that are read, at most
MOST = 50_000  # images that are read
LOOKED = 8  # images that are looked at, whether they lie where the index says
ASKED = 64  # places that are looked at, whether they are in memory
STAYED = 0.1  # of them; where more stay in memory, nothing is said of the disk


@dataclass(frozen=True)
class Cold:
    """What was read from the disk at random places, by so many threads.

    ``why`` says why nothing could be measured; the rates are 0 then.
    """

    images: float = 0.0  # a second
    bytes: float = 0.0  # a second
    threads: int = 0
    read: int = 0  # images
    why: str = ""


Place = tuple[int, int, int]  # a descriptor, where an image begins, its bytes


def cold(shelf: Shelf, *, threads: int, seconds: float) -> Cold:
    """Drop the shards from the page cache and read images at random places, for so many seconds or all once."""
    if shelf.depot.far:
        return Cold(why=f"the shards are fetched from {shelf.depot.place}")
    draws, index = np.random.default_rng(0), shelf.index
    with ExitStack() as open_files:
        files: dict[int, int] = {}
        for shard in draws.permutation(len(shelf.split.shards))[:FILES].tolist():
            files[shard] = os.open(shelf.depot.path(shard), os.O_RDONLY)
            open_files.callback(os.close, files[shard])
        rows = draws.permutation(np.flatnonzero(np.isin(index.shard, list(files))))[:MOST]
        places = [(files[int(index.shard[row])], int(index.offset[row]), int(index.size[row])) for row in rows]
        for row, (file, offset, size) in zip(rows[:LOOKED].tolist(), places, strict=False):
            if crc32(os.pread(file, size, offset)) != int(index.crc32[row]):
                return Cold(why="the images do not lie in the shards themselves")
        for file in files.values():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        why = _why_warm(places[:ASKED])
        if why:
            return Cold(why=why)
        for file in files.values():  # what the question brought in
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return _read(places, threads, seconds)


def _why_warm(places: list[Place]) -> str:
    """Why these places are not cold; "" where they are."""
    stayed = 0
    for file, offset, _ in places:
        try:
            stayed += os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            pass
        except OSError as error:
            return f"this file system does not tell what is in memory ({error.strerror})"
    return "the shards stay in memory" if stayed > STAYED * len(places) else ""


def _read(places: list[Place], threads: int, seconds: float) -> Cold:
    began = time.perf_counter()

    def some(mine: Iterator[Place]) -> tuple[int, int]:
        images = size = 0
        for file, offset, length in mine:
            size += len(os.pread(file, length, offset))
            images += 1
            if time.perf_counter() - began >= seconds:
                break
        return images, size

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(some, (iter(places[start::threads]) for start in range(threads))))
    took = time.perf_counter() - began
    images, size = (sum(column) for column in zip(*done, strict=True))
    return Cold(images / took, size / took, threads, images)
