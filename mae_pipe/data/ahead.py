"""Batches are filled ahead of their use, by threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mae_pipe.data.batch import Batch
from mae_pipe.data.far import reads_until
from mae_pipe.data.fill import Filler
from mae_pipe.data.form import Form
from mae_pipe.data.layout import Numbers

AHEAD = 3  # batches under way while the newest is used


def run(
    plan: Iterator[tuple[Numbers, Numbers]],
    filler: Filler,
    form: Form,
    workers: int,
    end: threading.Event | None = None,
) -> Iterator[Batch]:
    """Fill the batches of a plan (rows, positions) in its order, ``AHEAD`` of them under way in ``workers`` threads.

    Once ``end`` is set, they wait for no shard any more (``far.reads_until``).
    """

    def prepared(numbers: Numbers, positions: Numbers) -> tuple[Batch, Callable[[Iterable[int]], None]]:
        pixels, maps = form.memory(len(numbers))
        arrays = tuple(group.numpy() for group in pixels)
        fill = filler.prepare(numbers, positions, arrays, None if maps is None else maps.numpy())
        return form.batch(numbers, positions, pixels, maps), fill

    if workers == 0:
        for numbers, positions in plan:
            batch, fill = prepared(numbers, positions)
            fill(range(len(numbers)))
            yield batch
        return
    with ThreadPoolExecutor(workers, "decode", reads_until, (end,)) as threads:
        under_way: deque[tuple[Batch, list[Future[None]]]] = deque()

        def begin() -> bool:
            step = next(plan, None)
            if step is None:
                return False
            batch, fill = prepared(*step)
            chunks = np.array_split(np.arange(len(step[0])), min(workers, len(step[0])))
            under_way.append((batch, [threads.submit(fill, chunk.tolist()) for chunk in chunks]))
            return True

        try:
            while len(under_way) < AHEAD and begin():
                pass
            while under_way:
                batch, parts = under_way.popleft()
                for part in parts:
                    part.result()
                begin()
                yield batch
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
