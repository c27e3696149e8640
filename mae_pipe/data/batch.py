"""What a step of training or evaluation is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = 255  # in a map: of no class


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch.

    Attributes:
        pixels: [B, C, H, W] uint8; [B, V, C, H, W] where several views of an image were asked for.
        labels: [B] int64 classes, -1 where an image has none; or [B, classes] float32 of 0 and 1, where images
            have several; or [B, H, W] int64 classes of pixels, cropped as the image, ``IGNORE`` where none.
        numbers: [B] int64, rows of the sample index; -1 marks padding (evaluation only).
        positions: [B] int64, places in the stream; they key every random number.
    """

    pixels: Tensor
    labels: Tensor
    numbers: Tensor
    positions: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device, once it is there; ``device.placed`` need not wait."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))
