"""What a step of training or evaluation is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = 255  # in a map: of no class


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch.

    Attributes:
        pixels: [B, C, H, W] uint8; [B, V, C, H, W] where several views of an image and of one size were asked for.
        labels: [B] int64 classes, -1 where an image has none; or [B, classes] float32 of 0 and 1, where images
            have several; or [B, H, W] int64 classes of pixels, cropped as the image, ``IGNORE`` where none.
        numbers: [B] int64, rows of the sample index; -1 marks padding (evaluation only).
        positions: [B] int64, places in the stream; they key every random number.
        others: further views, those of one size that follow one another together: each [B, V, C, h, w] uint8.
    """

    pixels: Tensor
    labels: Tensor
    numbers: Tensor
    positions: Tensor
    others: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device, once it is there; ``device.placed`` need not wait."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` of every tensor, such as a slice of its images."""
        pixels, labels, numbers, positions, *others = map(change, self.tensors)
        return Batch(pixels, labels, numbers, positions, tuple(others))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.pixels, self.labels, self.numbers, self.positions, *self.others
