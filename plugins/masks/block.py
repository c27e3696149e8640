"""A mask of a few large rectangles."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin

ONE = 1 << 20  # the image's side in integers, which all devices add and compare alike


@plugin("block")
class BlockMask(MaskSampler):
    """Hide whole regions, not scattered patches (after BEiT, Bao et al. 2022, section 2.3).

    ``blocks`` rectangles fall on the grid; the more of them cover a patch, the sooner it is
    hidden. The grid wraps round, so that no patch is hidden more often than another.

    Options:
        blocks: rectangles an image.
        min_side, max_side: of a rectangle, as shares of the image's height and width.
    """

    def __init__(self, blocks: int = 4, min_side: float = 0.3, max_side: float = 0.7) -> None:
        if blocks < 1:
            raise ValueError(f"need at least one block, got {blocks}")
        if not 0 < min_side <= max_side <= 1:
            raise ValueError(f"need 0 < min_side <= max_side <= 1, got {min_side} and {max_side}")
        self.blocks, self.least, self.most = blocks, round(min_side * ONE), round(max_side * ONE)

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        side = self.least + rng.integers(self.most - self.least + 1, self.blocks, 1, 2)
        start = rng.integers(ONE, self.blocks, 1, 2)  # [B, blocks, 1, 2]: top, left; side: height, width
        rows = (2 * torch.arange(grid.rows, device=rng.device) + 1) * ONE // (2 * grid.rows)
        cols = (2 * torch.arange(grid.cols, device=rng.device) + 1) * ONE // (2 * grid.cols)
        offset = (torch.cartesian_prod(rows, cols) - start) % ONE  # [B, blocks, N, 2]
        covered = (offset < side).all(dim=-1)  # [B, blocks, N]
        return covered.sum(dim=1) + rng.uniform(grid.size)  # noise below 1 only breaks ties
