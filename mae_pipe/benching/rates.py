"""How many images a second the stream of training makes, of several shards in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_pipe import recipe
from mae_pipe.data import ahead
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream

Rates = dict[int, list[float]]  # by the number of workers, a round each


@dataclass(frozen=True)
class Lane:
    """Images of a shelf; ``rows`` None: all of them."""

    shelf: Shelf
    rows: NDArray[np.int64] | None = None

    def warm(self) -> None:
        """Bring the images into the page cache."""
        rows = np.arange(len(self.shelf.index)) if self.rows is None else self.rows
        self.shelf.check_rows(rows)
        for row in rows.tolist():
            self.shelf.read(row)

    def stream(self, data: recipe.Data) -> Stream:
        """As a single process of a training would read it."""
        return Stream(self.shelf, data, seed=0, share=Share(micro_batch=data.micro_batch), rows=self.rows)


def rates(
    lanes: Mapping[str, Lane],
    data: recipe.Data,
    *,
    workers: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> dict[str, Rates]:
    """Rounds through all lanes and numbers of workers in turn, so that a busy minute of the machine meets all."""
    for lane in lanes.values():
        lane.warm()
    found: dict[str, Rates] = {name: {count: [] for count in workers} for name in lanes}
    for _ in range(rounds):
        for count in workers:
            for name, lane in lanes.items():
                progress(f"reading {name}")
                stream = lane.stream(data.model_copy(update={"workers": count}))
                found[name][count].append(_rate(stream, seconds))
    return found


def _rate(stream: Stream, seconds: float) -> float:
    """Images a second, once as many batches are under way as ever are."""
    batches = stream.batches()
    try:
        for _ in range(ahead.AHEAD + 1):
            next(batches)
        done, began = 0, time.perf_counter()
        while True:
            done += len(next(batches).numbers)
            took = time.perf_counter() - began
            if took >= seconds:
                return done / took
    finally:
        batches.close()  # type: ignore[attr-defined]
