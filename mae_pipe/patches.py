"""Images <-> patches, in the official order of numbers inside a patch."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, N, P*P*C]: patches row by row; inside one, (row, column, channel), channel fastest.

    The order of MAE's prediction (He et al. 2022, official code).
    """
    batch, channels, height, width = images.shape
    rows, cols = height // patch, width // patch
    cells = images.reshape(batch, channels, rows, patch, cols, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, rows: int, cols: int) -> Tensor:
    """[B, N, P*P*C] -> [B, C, H, W]: the inverse of ``patchify``."""
    batch, _, width = patches.shape
    channels = width // (patch * patch)
    cells = patches.reshape(batch, rows, cols, patch, patch, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch, cols * patch)
