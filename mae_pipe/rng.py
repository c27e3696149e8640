"""Random numbers for a batch: each image has its own, whatever batch it is in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_pipe.seeding import GOLDEN, MIX_1, MIX_2


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch wants."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(MIX_2)
    return x ^ _shift(x, 31)


def _uniform(bits: Tensor) -> Tensor:
    return _shift(bits, 40).float() * 2.0**-24


def _normal(one: Tensor, other: Tensor) -> Tensor:
    """Two uniform numbers -> a normal one (Box and Muller 1958)."""
    return torch.sqrt(-2 * torch.log1p(-one)) * torch.cos(2 * math.pi * other)


class Rng:
    """What a mask sampler draws from: B independent streams, one an image.

    The numbers of an image depend on (seed, purpose, position of the image in the
    stream) and on how many were drawn before; not on the batch, the rank or the device.

    Args:
        key: ``mae_pipe.seeding.key(seed, purpose)``.
        positions: [B] int64, on the device on which to draw.
    """

    def __init__(self, key: int, positions: Tensor) -> None:
        self._start = _mix(positions.to(torch.int64) * _signed(GOLDEN) + _signed(key))  # [B]
        self._drawn = 0

    @property
    def device(self) -> torch.device:
        return self._start.device

    def bits(self, *shape: int) -> Tensor:
        """[B, *shape] int64: 64 random bits each."""
        count = math.prod(shape)
        steps = torch.arange(self._drawn + 1, self._drawn + count + 1, device=self.device) * _signed(GOLDEN)
        self._drawn += count
        return _mix(self._start[:, None] + steps).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1)."""
        return _uniform(self.bits(*shape))

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] float32, standard normal."""
        return _normal(self.uniform(*shape), self.uniform(*shape))

    def normal_at(self, images: Tensor, places: Tensor, count: int) -> Tensor:
        """[n] float32: what ``normal(count)`` has at [images, places], and no more of it is computed."""
        pair = []
        for _ in range(2):
            pair.append(_uniform(_mix(self._start[images] + (self._drawn + 1 + places) * _signed(GOLDEN))))
            self._drawn += count
        return _normal(*pair)

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64 in [0, high)."""
        return _shift(self.bits(*shape), 1) % high
