"""A mask of every other square."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("checkerboard")
class CheckerboardMask(MaskSampler):
    """Hide the squares of one colour of a chessboard first, of the other only when those are used up.

    At ratio 0.5 it is the chessboard; below, a part of one colour is hidden at random, above, a part of
    the other too. Which colour comes first is drawn for each image, so on grids of an even number of
    squares no patch is hidden more often than another.

    Options:
        side: patches in a row and in a column of a square.
    """

    def __init__(self, side: int = 1) -> None:
        if side < 1:
            raise ValueError(f"side must be at least 1 patch, got {side}")
        self.side = side

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        row = torch.arange(grid.rows, device=rng.device)[:, None] // self.side
        col = torch.arange(grid.cols, device=rng.device) // self.side
        colour = ((row + col).flatten() + rng.integers(2, 1)) % 2  # [B, N]
        return colour + rng.uniform(grid.size)  # noise below 1 only breaks ties
