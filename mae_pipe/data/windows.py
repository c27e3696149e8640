"""The order of images that are fetched shard by shard: random, but reading a few shards at a time.

The blocks of an epoch (its shards) are shuffled and laid in a line. The line is cut into lanes, one for each part of
the global batch that a group of processes takes; a lane goes through its blocks a window of them after the other, and
within a window all images are shuffled. Everything follows from (seed, epoch, blocks, window, lanes): no rank and no
worker comes into it, and any place is computed at once.

A cut may fall into a block, of which two lanes then have a part. So every other lane goes backwards: both parts come at
the same end of the epoch, and the block is fetched once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data.shuffle import Shuffle
from mae_pipe.seeding import key, permutation

Numbers = NDArray[np.int64]


class Windows:
    """Which image stands at a position, as ``Order``.

    Args:
        blocks: images of each block, which are consecutive rows.
        seed: of the run.
        together: blocks in a window of one lane.
        lanes: 1: every process needs every block; else each lane's part of a global batch is for other processes.
        cycle: images in a global batch, which lanes share.
    """

    RULE = 3

    def __init__(self, blocks: Numbers, seed: int, *, together: int, lanes: int = 1, cycle: int = 1) -> None:
        self.blocks, self.seed, self.images = blocks.astype(np.int64), seed, int(blocks.sum())
        self.firsts = np.cumsum(self.blocks) - self.blocks  # row of each block's first image
        self.together = together
        self.starts = -(-np.arange(lanes + 1) * cycle // lanes)  # where each lane begins in a global batch
        self._epochs: dict[int, _Epoch] = {}
        self._shuffles: OrderedDict[tuple[int, int, int], Shuffle] = OrderedDict()

    @property
    def lanes(self) -> int:
        return len(self.starts) - 1

    def at(self, positions: Numbers) -> Numbers:
        """Image numbers at stream positions, any shape."""
        epochs = positions // self.images
        cycle = int(self.starts[-1])
        lanes = np.searchsorted(self.starts, positions % cycle, side="right") - 1
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            for lane in np.unique(lanes[epochs == epoch]).tolist():
                here = (epochs == epoch) & (lanes == lane)
                begun = self._count(lane, epoch * self.images)
                numbers[here] = self._in_lane(epoch, lane, self._count(lane, positions[here]) - begun)
        return numbers

    def _count(self, lane: int, positions: Numbers | int) -> Numbers:
        """How many of the positions before each are the lane's."""
        start, stop, cycle = (int(self.starts[n]) for n in (lane, lane + 1, -1))
        whole, rest = np.divmod(np.asarray(positions, np.int64), cycle)
        counts: Numbers = whole * (stop - start) + np.clip(rest - start, 0, stop - start)
        return counts

    def _in_lane(self, epoch: int, lane: int, places: Numbers) -> Numbers:
        """Rows at places of a lane, [n]."""
        line = self._epoch(epoch)
        edges = line.edges[lane]
        windows = np.searchsorted(edges, places, side="right") - 1
        shuffled = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here, start = windows == window, int(edges[window])
            shuffle = self._shuffle(epoch, lane, window, int(edges[window + 1]) - start)
            shuffled[here] = start + shuffle.at(places[here] - start)
        along = line.starts[lane + 1] - 1 - shuffled if lane % 2 else line.starts[lane] + shuffled
        at = np.searchsorted(line.ends, along, side="right")
        blocks = line.blocks[at]
        rows: Numbers = self.firsts[blocks] + along - (line.ends[at] - self.blocks[blocks])
        return rows

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            order = permutation(key(self.seed, f"blocks/{epoch}"), len(self.blocks))
            ends = np.cumsum(self.blocks[order])
            first, last = epoch * self.images, (epoch + 1) * self.images
            counts = [int(self._count(lane, last) - self._count(lane, first)) for lane in range(self.lanes)]
            starts = np.cumsum([0, *counts])
            edges = [self._edges(ends, lane, int(starts[lane]), int(starts[lane + 1])) for lane in range(self.lanes)]
            self._epochs[epoch] = _Epoch(order, ends, starts, edges)
        return self._epochs[epoch]

    def _edges(self, ends: Numbers, lane: int, start: int, stop: int) -> Numbers:
        """Where the windows of a lane begin, in its own direction, and where it ends."""
        cuts = ends[(ends > start) & (ends < stop)]
        inner = (stop - cuts)[::-1] if lane % 2 else cuts - start
        return np.concatenate([[0], inner[self.together - 1 :: self.together], [stop - start]]).astype(np.int64)

    def _shuffle(self, epoch: int, lane: int, window: int, size: int) -> Shuffle:
        name = (epoch, lane, window)
        if name in self._shuffles:
            self._shuffles.move_to_end(name)
        else:
            self._shuffles[name] = Shuffle(key(self.seed, f"window/{epoch}/{lane}/{window}"), size)
            while len(self._shuffles) > 2 * self.lanes + 2:
                self._shuffles.popitem(last=False)
        return self._shuffles[name]


@dataclass(frozen=True)
class _Epoch:
    """The line of one epoch.

    Attributes:
        blocks: in their order.
        ends: where each ends in the line.
        starts: where each lane begins in it, and where the last one ends.
        edges: of each lane's windows.
    """

    blocks: Numbers
    ends: Numbers
    starts: Numbers
    edges: list[Numbers]


def blocks_together(blocks: Numbers, images: int, lanes: int) -> int:
    """How many blocks a window of one lane has, so that those of all lanes have ``images`` on average."""
    return max(1, -(-images * len(blocks) // max(int(blocks.sum()) * lanes, 1)))
