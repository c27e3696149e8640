"""Shards -> batches: the one stream that every task reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch.

    Attributes:
        pixels: [B, 3, S, S] uint8.
        labels: [B] int64; -1 where an image has none.
        numbers: [B] int64, rows of the sample index; -1 marks padding (evaluation only).
        positions: [B] int64, places in the stream; they key every random number.
    """

    pixels: Tensor
    labels: Tensor
    numbers: Tensor
    positions: Tensor

    def to(self, device: object) -> Batch:
        """The batch on another device; asynchronous from pinned memory."""
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))  # type: ignore[call-overload]
