"""Images <-> patches, in the official order of numbers inside a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.contracts import Grid

Patch = int | tuple[int, int]  # pixels: a side, or rows and columns


def patchify(images: Tensor, patch: Patch) -> Tensor:
    """[B, C, H, W] -> [B, N, P*P*C]: patches row by row; inside one, (row, column, channel), channel fastest.

    The order of MAE's prediction (He et al. 2022, official code).
    """
    batch, channels, height, width = images.shape
    high, wide = sides(patch)
    rows, cols = height // high, width // wide
    cells = images.reshape(batch, channels, rows, high, cols, wide)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, high * wide * channels)


def unpatchify(patches: Tensor, patch: Patch, rows: int, cols: int) -> Tensor:
    """[B, N, P*P*C] -> [B, C, H, W]: the inverse of ``patchify``."""
    batch, _, width = patches.shape
    high, wide = sides(patch)
    channels = width // (high * wide)
    cells = patches.reshape(batch, rows, cols, high, wide, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * high, cols * wide)


def sides(patch: Patch) -> tuple[int, int]:
    """Rows and columns of pixels."""
    return (patch, patch) if isinstance(patch, int) else patch


def cells(images: Tensor, grid: Grid, numbers: Tensor | None) -> Tensor:
    """[B, C, H, W] -> [B, N, C, P, P], or [B, k, C, P, P] of the numbered patches, copied once."""
    batch, channels, height, width = images.shape
    if height % grid.rows or width % grid.cols:
        raise ValueError(f"images of {height} x {width} pixels do not split into {grid.rows} x {grid.cols} patches")
    found = images.reshape(batch, channels, grid.rows, height // grid.rows, grid.cols, width // grid.cols)
    found = found.permute(0, 2, 4, 1, 3, 5)  # [B, rows, cols, C, P, P], still a view
    if numbers is None:
        return found.flatten(1, 2)
    image = torch.arange(batch, device=images.device)[:, None]
    return found[image, numbers // grid.cols, numbers % grid.cols]
