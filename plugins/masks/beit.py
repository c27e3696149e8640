"""BEiT's mask: rectangles, one after the other, until as much is hidden as is wanted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin

FAILURES = 10  # rectangles in a row that do not fit, after which the original stops
ATTEMPTS = 40  # in all; of 4000 masks of 75 out of 14 x 14 patches none needed more than 36


@plugin("beit")
class BeitMask(MaskSampler):
    """Hide rectangles one after the other, never more patches than are wanted (BEiT, Bao et al. 2022).

    Algorithm 1 with the official code's choices: an area between ``least`` patches and what is still wanted, a
    random shape and place, and a new try where it does not fit or would hide too much. The original gives up after ten
    tries in a row and then hides fewer patches than wanted, a third of the time; here the rest is scattered, since
    the core always hides ``mask.ratio``. With a lower ratio the first rectangles are hidden.

    Options:
        share: of the patches that rectangles should hide; the recipe's ``mask.ratio``.
        least: patches of a rectangle, where so many are still wanted.
        narrowest: height by width of the narrowest rectangle; its inverse is the widest's.
    """

    def __init__(self, share: float = 0.3826, least: int = 16, narrowest: float = 0.3) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}")
        if least < 1:
            raise ValueError(f"a rectangle needs one patch at least, got least = {least}")
        if not 0 < narrowest <= 1:
            raise ValueError(f"narrowest must be in (0, 1], got {narrowest}")
        self.share, self.least, self.narrowest = share, least, narrowest

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        wanted = grid.size - int(grid.size * (1 - self.share))
        found = rng.uniform(grid.size)  # [B, N]: patches in no rectangle, by chance
        drawn = rng.uniform(ATTEMPTS, 4).double()  # of each: area, shape, top, left
        ratio = torch.exp((2 * drawn[:, :, 1] - 1) * -math.log(self.narrowest))
        row = torch.arange(grid.rows, device=rng.device).repeat_interleave(grid.cols)  # [N]
        col = torch.arange(grid.cols, device=rng.device).repeat(grid.rows)
        hidden = torch.zeros_like(found, dtype=torch.bool)
        failures = found.new_zeros(len(found), 1)
        for attempt in range(ATTEMPTS):
            area, _, down, right = drawn[:, attempt, :, None].unbind(1)  # [B, 1] each
            left_over = wanted - hidden.sum(1, keepdim=True)  # [B, 1]
            area, shape = self.least + area * (left_over - self.least), ratio[:, attempt, None]
            high, wide = (area * shape).sqrt().round(), (area / shape).sqrt().round()
            top, left = (down * (grid.rows - high + 1)).floor(), (right * (grid.cols - wide + 1)).floor()
            inside = (row >= top) & (row < top + high) & (col >= left) & (col < left + wide)  # [B, N]
            new = inside & ~hidden
            count = new.sum(1, keepdim=True)
            fits = (high < grid.rows) & (wide < grid.cols) & (count > 0) & (count <= left_over) & (failures < FAILURES)
            hidden |= new & fits
            found = found + (new & fits) * (ATTEMPTS - attempt)  # the first rectangle is hidden first
            failures = torch.where(fits, torch.zeros_like(failures), failures + 1)
        return found
