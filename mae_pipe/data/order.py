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

from mae_pipe.data.shuffle import WHOLE, Shuffle
from mae_pipe.seeding import key


@dataclass(frozen=True)
class Share:
    """One process's part of every global micro-batch.

    Attributes:
        together: so many global micro-batches are shared out as one, each rank's parts of them in a row: then a rank
            stays in its part of a global batch, and so in its lanes (``windows.py``).
    """

    rank: int = 0
    world: int = 1
    micro_batch: int = 1
    together: int = 1

    def positions(self, start: int) -> NDArray[np.int64]:
        """[micro_batch]: this rank's positions in the global micro-batch that begins at ``start``."""
        which = start // self.advance % self.together
        first = start - which * self.advance + (self.rank * self.together + which) * self.micro_batch
        return np.arange(first, first + self.micro_batch)

    @property
    def advance(self) -> int:
        """Positions that one micro-batch of all ranks takes."""
        return self.world * self.micro_batch


class Order:
    """Which image stands at a position.

    An epoch's permutation is never made: each place is computed from (seed, epoch) alone, so the order of any number of
    images takes no memory, and any epoch begins at once. ``RULE`` is its version: another one is another order.

    Args:
        images: n, images in an epoch.
        seed: of the run.
    """

    RULE = 2  # of more than ``WHOLE`` images; 1: every epoch's whole permutation, by sorting hashes

    def __init__(self, images: int, seed: int) -> None:
        if images < 1:
            raise ValueError(f"an order needs at least one image, got {images}")
        self.images, self.seed = images, seed
        self._epochs: dict[int, Shuffle] = {}

    @classmethod
    def rule(cls, images: int) -> int:
        """The version of the order of so many images."""
        return cls.RULE if images > WHOLE else 1

    def epoch(self, number: int) -> NDArray[np.int64]:
        """[n] int64: the permutation of one epoch, whole."""
        return self._shuffle(number).at(np.arange(self.images))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Image numbers at stream positions, any shape."""
        epochs, places = np.divmod(positions, self.images)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            numbers[here] = self._shuffle(int(epoch)).at(places[here])
        return numbers

    def _shuffle(self, epoch: int) -> Shuffle:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = Shuffle(key(self.seed, f"order/{epoch}"), self.images)
        return self._epochs[epoch]
