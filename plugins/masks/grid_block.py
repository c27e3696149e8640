"""A mask of square cells of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("grid-block")
class GridBlockMask(MaskSampler):
    """Hide cells of ``side`` x ``side`` patches whole, drawn at random (Pixio, 2025, with ``side = 4``).

    Where the share to hide is no number of whole cells, one cell is hidden in part. With ``shift``
    each image has the cells elsewhere, wrapped round; always so where they do not divide the grid. So
    no patch is hidden more often than another.

    Options:
        side: patches in a row and in a column of a cell.
        shift: move the cells at random, for each image.
    """

    def __init__(self, side: int = 4, shift: bool = False) -> None:
        if side < 1:
            raise ValueError(f"side must be at least 1 patch, got {side}")
        self.side, self.shift = side, shift

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        side = self.side
        row = torch.arange(grid.rows, device=rng.device).expand(len(images), -1)  # [B, rows]
        col = torch.arange(grid.cols, device=rng.device).expand(len(images), -1)  # [B, cols]
        if self.shift or grid.rows % side or grid.cols % side:
            row = (row + rng.integers(grid.rows, 1)) % grid.rows
            col = (col + rng.integers(grid.cols, 1)) % grid.cols
        across = -(-grid.cols // side)  # cells in a row of them
        cells = (row // side * across)[:, :, None] + (col // side)[:, None]  # [B, rows, cols]
        rank = rng.bits(across * -(-grid.rows // side)).argsort(dim=1)  # [B, cells]: a random order of them
        return rank.gather(1, cells.flatten(1)) + rng.uniform(grid.size)  # noise below 1 only breaks ties
