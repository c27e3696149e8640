"""What the ranks of a job share while they compute: the statistics of batch norm, and each other's rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.errors import RecipeError


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch norm of [B, D], in training over the rows of all ranks, which all have as many.

    On one rank it is ``nn.BatchNorm1d``, of which it has the names in the state dict. It computes in float32 whatever
    the model's precision, on CPUs as on GPUs. Every rank calls it in training; in evaluation it asks nobody.
    The running statistics are float32 and the same on all ranks, and pass over what is not finite.

    Raises:
        RecipeError: in training, there is one row over all ranks.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """[B, D] -> [B, D] in the precision of ``rows``."""
        scale, shift = (None if one is None else one.float() for one in (self.weight, self.bias))
        x = rows.float()
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, scale, shift, eps=self.eps).to(rows.dtype)
        count = len(rows) * _world()
        if count < 2:
            raise RecipeError("batch norm needs two images or more at once, over all ranks; raise data.micro_batch")
        mean = _of_all(x.sum(0)) / count  # [D]
        x = x - mean
        variance = _of_all(x.square().sum(0)) / count  # [D]
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        x = x * torch.rsqrt(variance + self.eps)
        return (x if scale is None or shift is None else x * scale + shift).to(rows.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of this batch."""
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(torch.where(new.isfinite(), new, running), self.momentum)
        self.num_batches_tracked += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SyncedBatchNorm:
        kept = (self.running_mean, self.running_var)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.running_mean, self.running_var = (one.to(self.running_mean.device) for one in kept)
        return self


@torch.no_grad()
def of_all_ranks(rows: Tensor) -> tuple[Tensor, int]:
    """[B, ...] -> the rows of all ranks, [world x B, ...], and the number of this rank's first; no gradients.

    All ranks call it with as many rows.
    """
    world = _world()
    if world == 1:
        return rows.detach(), 0
    found = rows.new_empty(world, *rows.shape)
    dist.all_gather(list(found.unbind(0)), rows.detach().contiguous())
    return found.flatten(0, 1), dist.get_rank() * len(rows)


class _Sum(torch.autograd.Function):
    """The sum over all ranks; a gradient is the sum over all of theirs, as each has used it."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _of_all(mine: Tensor) -> Tensor:
    return mine if _world() == 1 else _Sum.apply(mine)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
