"""Batches of no images: what a method is tried with where there are no shards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.data.batch import Batch
from mae_pipe.method import Method
from mae_pipe.views import Crop


def batch_for(task: Method, images: int, *, classes: int = 2, first: int = 0, seed: int = 0) -> Batch:
    """The views that ``task`` wants of ``images`` pictures of soft noise, at positions from ``first`` on.

    Labels are spread over ``classes``.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [_size(crop, task) for crop in task.views]
    numbers = torch.arange(first, first + images)
    groups: list[Tensor] = []
    for size in dict.fromkeys(sizes):
        count = sizes.count(size)
        soft = _pictures(images * count, task.view.channels, size, generator)
        groups.append(soft.view(images, count, *soft.shape[1:]))  # [B, V, C, h, w]
    pixels, *others = groups
    return Batch(pixels[:, 0] if len(sizes) == 1 else pixels, numbers % classes, numbers, numbers, tuple(others))


def _size(crop: Crop, task: Method) -> tuple[int, int]:
    size = crop.size or (task.view.height, task.view.width)
    return (size, size) if isinstance(size, int) else size


def _pictures(count: int, channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """[count, C, H, W] uint8."""
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    noise = 0.1 * torch.randn(count, channels, *size, generator=generator)
    return ((F.interpolate(coarse, size, mode="bilinear") + noise) * 255).clamp(0, 255).to(torch.uint8)
