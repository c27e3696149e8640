"""A mask of a few large rectangles."""

from __future__ import annotations

from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("block")
class BlockMask(MaskSampler):
    """Hide whole regions, not scattered patches (after BEiT, Bao et al. 2022, section 2.3).

    ``blocks`` rectangles, each side between ``min_side`` and ``max_side`` of the
    image, fall on the grid; the more of them cover a patch, the sooner it is hidden.
    The grid wraps round, so that no patch is hidden more often than another.
    """

    def __init__(self, blocks: int = 4, min_side: float = 0.3, max_side: float = 0.7) -> None:
        if blocks < 1:
            raise ValueError(f"need at least one block, got {blocks}")
        if not 0 < min_side <= max_side <= 1:
            raise ValueError(f"need 0 < min_side <= max_side <= 1, got {min_side} and {max_side}")
        self.blocks, self.min_side, self.max_side = blocks, min_side, max_side

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        side = self.min_side + (self.max_side - self.min_side) * rng.uniform(self.blocks, 1, 2)
        start = rng.uniform(self.blocks, 1, 2)  # [B, blocks, 1, 2]: top, left; side: height, width
        offset = (grid.centres(images.device) - start) % 1  # [B, blocks, N, 2]
        covered = (offset < side).all(dim=-1)  # [B, blocks, N]
        return covered.sum(dim=1) + rng.uniform(grid.size)  # noise below 1 only breaks ties
