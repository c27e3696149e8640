"""Looks ahead in a plan of batches, and has the shards that it comes to fetched in time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data.batch import Batch
from mae_pipe.data.cache import SIZE
from mae_pipe.data.far import Far
from mae_pipe.data.order import Order
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.windows import Windows
from mae_pipe.errors import DataError
from mae_pipe.wording import size_of

DISTANCE = 2000  # batches ahead, at most
LOOK = 0.05  # seconds between looks at how far the reader is


class Scout:
    """Walks a plan ahead of its reader: a shard is fetched before its first image is needed, and let go after its last.

    Args:
        needs: of each batch, the numbers of the shards that it needs.
        room: bytes of shards that may be ahead of the reader; those of the batch that he waits for come all the same.
    """

    def __init__(self, shelf: Shelf, depot: Far, needs: Iterator[NDArray[np.integer]], room: int) -> None:
        self._shelf, self._depot, self._needs, self._room = shelf, depot, needs, room
        self._last: dict[int, int] = {}  # shard -> the latest batch that is known to need it
        self._reader, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._walk_quietly, daemon=True, name="scout")

    def passed(self, batches: int) -> None:
        """The reader has had so many batches."""
        self._reader = batches

    def __enter__(self) -> Scout:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for number in self._last:
            self._shelf.let_go(number)

    def _walk_quietly(self) -> None:
        with contextlib.suppress(Exception):  # the reader comes to it as well, and is told
            self._walk()

    def _walk(self) -> None:
        taken = 0
        for batch, shards in enumerate(self._needs):
            for number in shards.tolist():
                if number not in self._last:
                    size = self._depot.bytes_of(number)
                    while taken and taken + size > self._room and batch > self._reader:
                        taken -= self._let_go()
                        if taken + size > self._room and self._stop.wait(LOOK):
                            return
                    self._depot.ahead(number)
                    taken += size
                self._last[number] = batch
            while batch - self._reader > DISTANCE:
                if self._stop.wait(LOOK):
                    return
            if self._stop.is_set():
                return

    def _let_go(self) -> int:
        """Of shards that only batches before the reader's needed; their bytes."""
        done = [number for number, batch in self._last.items() if batch < self._reader]
        for number in done:
            del self._last[number]
            self._shelf.let_go(number)
        return sum(self._depot.bytes_of(number) for number in done)


def scouted(
    batches: Iterator[Batch],
    shelf: Shelf,
    plan: Iterator[tuple[NDArray[np.int64], Any]],
    order: Order | Windows,
    end: threading.Event,
) -> Iterator[Batch]:
    """``batches``, of which ``plan`` is the plan, with their shards fetched ahead; ``end`` is set before they end."""
    depot = shelf.depot
    assert isinstance(depot, Far)
    needs = (np.unique(shelf.index.shard[rows[rows >= 0]]) for rows, _ in plan)
    with Scout(shelf, depot, needs, _room(depot, order)) as scout:
        try:
            for count, batch in enumerate(batches):
                scout.passed(count + 1)
                yield batch
        finally:
            end.set()
            depot.abandon()  # before what waits for it
            batches.close()  # type: ignore[attr-defined]


def check_room(shelf: Shelf, order: Order | Windows | None) -> None:
    """Refuse an order whose shards the cache cannot hold: each would be fetched many times over."""
    depot = shelf.depot
    if not isinstance(depot, Far) or order is None:
        return
    bytes_ = sum(shard.bytes for shard in shelf.split.shards)
    share = order.together * order.lanes / len(order.blocks) if isinstance(order, Windows) else 1.0
    needed, room = int(bytes_ * min(share, 1.0)), _room(depot, order)
    if needed > room:
        what = f"a window of {round(share * order.images):,} images" if share < 1 else "an order of all images at once"
        raise DataError(
            f"the shards of {depot.place} are read {size_of(needed)} at a time, for {what}, and twice that must fit "
            f"into the cache {depot.cache.folder}, which may take {size_of(depot.cache.size)}; set {SIZE}="
            f"{-(-2 * needed // 10**9)}GB, or " + ("a smaller data.window" if share < 1 else 'data.order="window"')
        )


def _room(depot: Far, order: Order | Windows) -> int:
    """Bytes of shards that one process may have ahead."""
    alone = isinstance(order, Order) or order.lanes == 1  # all processes of a machine need the same shards
    return depot.room // (1 if alone else int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
