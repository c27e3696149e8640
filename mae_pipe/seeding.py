"""Every random number of a run is one of (seed, purpose, position).

Nothing draws from a shared, moving generator: a number is computed from where it is
needed, by a counter-based hash (SplitMix64; Steele, Lea and Flood 2014). So a run can
start anywhere, and neither ranks, workers nor devices change what is drawn.
This file needs only numpy; ``rng.py`` is its twin on tensors, bit for bit.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the step of SplitMix64
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def key(seed: int, purpose: str) -> int:
    """A 64-bit key for one purpose ("order", "crop", "mask", ...) of a run's ``seed``."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit integers that looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


def hashes(key: int, positions: NDArray[np.integer], count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit integers for each of B positions: [B, count]."""
    with np.errstate(over="ignore"):
        start = mix(positions.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key))  # [B]
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)  # [count]
        return mix(start[:, None] + steps)


def uniforms(key: int, positions: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each of B positions: [B, count], 53 random bits each."""
    return (hashes(key, positions, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """A random order of ``range(size)`` that depends on ``key`` alone, not on a library's version."""
    return np.argsort(hashes(key, np.arange(size), 1)[:, 0], kind="stable")
