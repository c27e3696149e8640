"""A mask of whole rows."""

from __future__ import annotations

from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("stripes")
class StripesMask(MaskSampler):
    """Hide whole rows of patches.

    Options:
        height: of a stripe, patches.
    """

    def __init__(self, height: int = 1) -> None:
        if height < 1:
            raise ValueError(f"height must be at least 1 patch, got {height}")
        self.height = height

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        stripes = rng.uniform(-(-grid.rows // self.height)).repeat_interleave(self.height, dim=1)  # [B, >= rows]
        return stripes[:, : grid.rows, None].expand(-1, -1, grid.cols).flatten(1)
