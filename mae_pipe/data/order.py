"""The order of images: a function of (seed, position), the same for any number of ranks.

A stream is endless: position ``t`` is image ``t % n`` of epoch ``t // n``, in that epoch's
own permutation. Batches run on across the end of an epoch, so every image comes exactly
once an epoch and none is dropped or padded. A global micro-batch holds ``world * micro``
consecutive positions; rank r takes its ``r``-th run of ``micro``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_pipe.seeding import key, permutation


@dataclass(frozen=True)
class Share:
    """One process's part of every global micro-batch."""

    rank: int = 0
    world: int = 1
    micro_batch: int = 1

    def positions(self, start: int) -> NDArray[np.int64]:
        """[micro_batch]: this rank's positions in the global micro-batch that begins at ``start``."""
        first = start + self.rank * self.micro_batch
        return np.arange(first, first + self.micro_batch)

    @property
    def advance(self) -> int:
        """Positions that one micro-batch of all ranks takes."""
        return self.world * self.micro_batch


class Order:
    """Which image stands at a position.

    Args:
        images: n, images in an epoch.
        seed: of the run.
    """

    def __init__(self, images: int, seed: int) -> None:
        if images < 1:
            raise ValueError(f"an order needs at least one image, got {images}")
        self.images, self.seed = images, seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def epoch(self, number: int) -> NDArray[np.int64]:
        """[n] int64: the permutation of one epoch. The last two are kept."""
        if number not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = permutation(key(self.seed, f"order/{number}"), self.images)
        return self._epochs[number]

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Image numbers at stream positions, any shape."""
        epochs, places = np.divmod(positions, self.images)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            numbers[here] = self.epoch(int(epoch))[places[here]]
        return numbers
