"""Activation checkpointing: blocks compute their activations again in the backward pass, and keep only their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mae_pipe.errors import RecipeError


def recompute(task: nn.Module, blocks: int) -> None:
    """Let the first ``blocks`` blocks of ``task`` forget their activations; an encoder's come before its decoder's.

    Names and weights stay as they are. Random numbers too: drop path drops the same again.
    """
    found = blocks_of(task)
    if blocks and not found:
        raise RecipeError("engine.checkpoint_blocks is for models of blocks, and this one has none; leave it out")
    for block in found[:blocks]:
        block.forward = _forgetful(block.forward)


def blocks_of(task: nn.Module) -> list[nn.Module]:
    """What is in the lists called ``blocks``, in the order of the model; frozen ones only where none trains."""
    lists = [part for name, part in task.named_modules() if name.rpartition(".")[2] == "blocks"]
    found = [block for part in lists for block in part.children()]
    return [block for block in found if any(p.requires_grad for p in block.parameters())] or found


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing is kept anyway
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return again
