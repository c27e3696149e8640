"""A random permutation that is computed where it is asked for.

A Feistel network (Luby and Rackoff 1988) with SplitMix64 as its round function is a bijection of all numbers of b bits
that looks random; numbers beyond the wanted range are sent through it again until they fall inside (cycle walking,
Black and Rogaway 2002), which makes it a bijection of that range. b is the fewest bits that hold it, so this happens
less than once a number on average.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mae_pipe.seeding import hashes, mix, permutation

WHOLE = 1 << 16  # up to so many places the permutation is made whole: a network of few bits is not random enough
ROUNDS = 8


class Shuffle:
    """A permutation of ``range(size)`` that depends on ``key`` alone.

    Args:
        key: 64 bits.
        size: up to 2**62.
    """

    def __init__(self, key: int, size: int) -> None:
        self.size = size
        self._whole = permutation(key, size) if size <= WHOLE else None
        if self._whole is not None:
            return
        bits = (size - 1).bit_length()
        self._low = np.uint64(bits // 2)  # bits of the lower half
        self._masks = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = hashes(key, np.arange(ROUNDS), 1)[:, 0]

    def at(self, places: NDArray[np.integer]) -> NDArray[np.int64]:
        """[...] int64: what stands at these places of [0, size)."""
        if self._whole is not None:
            found: NDArray[np.int64] = self._whole[places]
            return found
        values = self._network(places.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            again = self._network(values.flat[outside])
            values.flat[outside] = again
            outside = outside[again >= self.size]
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = values & self._masks[0], values >> self._low
        with np.errstate(over="ignore"):
            for number, each in enumerate(self._keys):
                if number % 2:
                    low = low ^ (mix(high + each) & self._masks[0])
                else:
                    high = high ^ (mix(low + each) & self._masks[1])
        return high << self._low | low
