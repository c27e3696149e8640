"""Exact means over every image of a split, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe.data.stream import Batch
from mae_pipe.errors import PluginError


class Model(Protocol):
    """What is measured: the engine, or anything that is called as it is."""

    device: torch.device

    def __call__(self, batch: Batch, *, mode: str) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> object: ...


class Images(Protocol):
    """What gives every image once."""

    @property
    def images(self) -> int: ...

    def once(self) -> Iterator[Batch]: ...


@torch.no_grad()
def evaluate(model: Model, source: Images) -> dict[str, float]:
    """The mean of each of the task's measures over all images of ``source``; the same on every rank.

    Values of single images are summed in float64 and padding is left out, so neither the size of
    batches nor the number of ranks weighs in. All ranks call it; the model is in training mode after.
    """
    model.train(False)
    names: list[str] = []
    sums = torch.zeros(0, dtype=torch.float64, device=model.device)  # [1 + measures]; the first counts images
    with closing(source.once()) as batches:  # type: ignore[type-var]
        for here in batches:
            batch = here.to(model.device)
            measures = model(batch, mode="metrics")
            real = batch.numbers >= 0  # [B]
            if not names:
                names = list(measures)
                sums = torch.zeros(1 + len(names), dtype=torch.float64, device=model.device)
            rows = [real.double()]
            for name in names:
                if measures[name].shape != real.shape:
                    raise PluginError(
                        f"the head's metric {name!r} has shape {list(measures[name].shape)}; expected "
                        f"[{len(real)}], one number an image"
                    )
                rows.append(torch.where(real, measures[name].double(), 0.0))
            sums += torch.stack(rows).sum(dim=1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    model.train()
    count, *totals = sums.tolist()
    if round(count) != source.images:
        raise RuntimeError(f"{count:.0f} of {source.images} images were measured")
    return {name: total / count for name, total in zip(names, totals, strict=True)}


def agree_on_buffers(part: nn.Module) -> None:
    """Make every rank's buffers their mean, such as batch norm's running statistics. All ranks call it.

    Each rank has seen other images; without it, every rank would measure another model. Only for what
    differs between ranks: the mean of three equal tables is off by a rounding.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for buffer in part.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(dist.get_world_size())
