"""A mask of patches drawn at random."""

from __future__ import annotations

from torch import Tensor

from mae_pipe.api import Grid, MaskSampler, Rng, plugin


@plugin("random")
class RandomMask(MaskSampler):
    """Hide patches uniformly at random (MAE, He et al. 2022, section 3)."""

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size)
