"""Exact means over every image of a split, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe.data.batch import Batch
from mae_pipe.data.device import placed
from mae_pipe.errors import PluginError

Summary = Callable[[dict[str, Tensor]], dict[str, float]]


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
def evaluate(model: Model, source: Images, summary: Summary | None = None) -> dict[str, float]:
    """What is reported of all images of ``source``; the same on every rank.

    Args:
        summary: of the means of the task's measures, float64 on the CPU; default: those that are one number.
    """
    found = means(model, source)
    return {name: float(mean) for name, mean in found.items() if not mean.dim()} if summary is None else summary(found)


@torch.no_grad()
def means(model: Model, source: Images) -> dict[str, Tensor]:
    """The mean of each of the task's measures ([B, ...]) over all images, [...] float64; the same on every rank.

    Values of single images are summed in float64 and padding is left out, so neither the size of
    batches nor the number of ranks weighs in. All ranks call it; the model is in training mode after.
    """
    model.train(False)
    shapes: dict[str, torch.Size] = {}
    sums = torch.zeros(0, dtype=torch.float64, device=model.device)  # all measures flat; the first counts images
    with closing(source.once()) as batches:  # type: ignore[type-var]
        for _, batch in placed(batches, model.device):
            measures = model(batch, mode="metrics")
            real = batch.numbers >= 0  # [B]
            if not shapes:
                shapes = {name: measure.shape[1:] for name, measure in measures.items()}
                size = 1 + sum(shape.numel() for shape in shapes.values())
                sums = torch.zeros(size, dtype=torch.float64, device=model.device)
            rows = [real.double().sum()[None]]
            for name, shape in shapes.items():
                if measures[name].shape != (len(real), *shape):
                    raise PluginError(
                        f"the head's metric {name!r} has shape {list(measures[name].shape)}; expected "
                        f"{[len(real), *shape]}, a value an image"
                    )
                rows.append(measures[name][real].sum(dim=0, dtype=torch.float64).flatten())
            sums += torch.cat(rows)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    model.train()
    if round(float(sums[0])) != source.images:
        raise RuntimeError(f"{float(sums[0]):.0f} of {source.images} images were measured")
    parts = torch.split((sums[1:] / sums[0]).cpu(), [shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


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
