"""Relative positions: a bias of attention that depends on how far two patches are apart (BEiT, Bao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_pipe.contracts import Grid
from mae_pipe.positions import OF_CLASS, resized_bias


class RelativePositionBias(nn.Module):
    """What is added to every block's attention before its softmax; name and order of the table are timm's.

    A number a head for each distance of patches, (2 rows - 1) (2 cols - 1) of them, then one each for a class
    token that looks at a patch, a patch at a class token, and a class token at a class token. All begin at zero.

    Args:
        grid: of the encoder's own images.
        heads: A.
        class_tokens: T.
    """

    def __init__(self, grid: Grid, heads: int, class_tokens: int) -> None:
        super().__init__()
        self.grid, self.class_tokens = grid, class_tokens
        distances = (2 * grid.rows - 1) * (2 * grid.cols - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(distances + OF_CLASS, heads))
        nn.init.zeros_(self.relative_position_bias_table)

    def forward(self, grid: Grid) -> Tensor:
        """-> [A, T + N, T + N]: of queries (rows) and keys, patches in the order of ``grid``."""
        table: Tensor = self.relative_position_bias_table
        if grid != self.grid:
            table = resized_bias(table, self.grid, grid)
        return table[distances(grid, self.class_tokens, table.device)].permute(2, 0, 1)


def distances(grid: Grid, class_tokens: int, device: torch.device) -> Tensor:
    """[T + N, T + N] int64: which row of the table a query (row) and a key have."""
    row = torch.arange(grid.rows, device=device).repeat_interleave(grid.cols)  # [N]
    col = torch.arange(grid.cols, device=device).repeat(grid.rows)
    down = row[:, None] - row + grid.rows - 1
    right = col[:, None] - col + grid.cols - 1
    of_patches = down * (2 * grid.cols - 1) + right  # [N, N]
    last = (2 * grid.rows - 1) * (2 * grid.cols - 1)
    of_class = of_patches.new_full((class_tokens, grid.size), last)
    own = of_patches.new_full((class_tokens, class_tokens), last + 2)
    below = torch.cat([of_class.T + 1, of_patches], dim=1)
    return torch.cat([torch.cat([own, of_class], dim=1), below])
