"""``torch.compile`` for the blocks of a model."""

from __future__ import annotations

from torch import nn

from mae_pipe.recompute import blocks_of


def compile_blocks(task: nn.Module) -> None:
    """Compile every block by itself, in place: equal blocks share the work, and no name changes."""
    for block in blocks_of(task):
        block.compile()
