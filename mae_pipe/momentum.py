"""A copy of a module that follows it slowly (mean teachers: Tarvainen and Valpola 2017; MoCo; DINO)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mae_pipe.precision import keep_float32


class MomentumCopy(nn.Module):
    """Weights that are ``momentum`` x themselves + (1 - ``momentum``) x those of the module that they follow.

    Not trained, and in float32 in a model that is cast to another precision: near 1, a step of the mean is less than
    what bfloat16 can tell apart. Buffers, such as batch norm's, are its own.

    Attributes:
        part: the copy; its state dict has the names ``part.*``.
    """

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.part = copy.deepcopy(of).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy says; no gradients."""
        return self.part(*args, **kwargs)

    @torch.no_grad()
    def follow(self, of: nn.Module, momentum: float) -> None:
        """One step of the mean."""
        for mine, its in zip(self.part.parameters(), of.parameters(), strict=True):
            mine.lerp_(its.to(mine.dtype), 1 - momentum)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MomentumCopy:
        keep_float32(self, partial(super()._apply, fn, recurse))
        # DeepSpeed casts parameters one by one, which no module sees, and then moves the model to its device.
        for one in self.parameters():
            one.data = one.data.float()
        return self


def rising(first: float, progress: float, last: float = 1.0) -> float:
    """A momentum that goes from ``first`` to ``last`` by half a cosine (BYOL, Grill et al. 2020)."""
    return last - (last - first) * 0.5 * (1 + math.cos(math.pi * progress))
