"""A mask that keeps a regular lattice."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("grid")
class GridMask(MaskSampler):
    """Keep one patch of every 2 x 2 at ratio 0.75 (MAE, He et al. 2022, table 1f).

    At other ratios patches are kept in the order of a 4 x 4 Bayer matrix: one of every
    4 x 4 at 0.9375, a chessboard at 0.5, and what is between is filled up at random.
    The lattice is the same for all images, as in the paper, unless it is shifted.

    Options:
        shift: move the lattice at random, for each image; where 4 divides the grid's sides, no patch is
            then hidden more often than another.
    """

    def __init__(self, shift: bool = False) -> None:
        self.shift = shift

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        row = torch.arange(grid.rows, device=rng.device)[:, None]
        col = torch.arange(grid.cols, device=rng.device)
        if self.shift:
            row, col = row + rng.integers(4, 1, 1), col + rng.integers(4, 1, 1)  # [B, rows, 1], [B, 1, cols]
        rank = 4 * _bayer(row % 2, col % 2) + _bayer(row // 2 % 2, col // 2 % 2)  # [..., rows, cols], 0 to 15
        return rank.flatten(-2) + rng.uniform(grid.size)  # noise below 1 only breaks ties


def _bayer(row: Tensor, col: Tensor) -> Tensor:
    """Which patch of a 2 x 2 cell is kept first: 0 2 over 3 1, so that half of them are a chessboard."""
    return 2 * (row ^ col) + row
