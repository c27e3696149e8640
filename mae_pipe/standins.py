"""Batches of no images: what a method is tried with where there are no shards, or no numbers at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.data.batch import Batch
from mae_pipe.errors import RecipeError
from mae_pipe.method import Method
from mae_pipe.views import Crop, groups


def batch_for(task: Method, images: int, *, classes: int = 2, first: int = 0, seed: int = 0) -> Batch:
    """The views that ``task`` wants of ``images`` pictures of soft noise, at positions from ``first`` on.

    Labels are spread over ``classes``.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(first, first + images)
    views: list[Tensor] = []
    for sides, count in groups(task.views, (task.view.height, task.view.width)):
        soft = _pictures(images * count, task.view.channels, sides, generator)
        views.append(soft.view(images, count, *soft.shape[1:]))  # [B, V, C, h, w]
    pixels, *others = views
    return Batch(pixels if pixels.shape[1] > 1 else pixels[:, 0], numbers % classes, numbers, numbers, tuple(others))


def loss_on_shapes(task: Method, images: int) -> Tensor:
    """The loss of a method on the meta device, with shapes and no numbers, as in a step.

    Raises:
        RecipeError: it needs numbers.
    """
    task.eval()  # images are not mixed and erased by numbers that are drawn
    task.encoder.train()  # what drops keeps what it dropped
    task.views = tuple(Crop(size=crop.size) for crop in task.views)  # colours are drawn by numbers, and cost little
    batch = batch_for(task, images).to("meta")
    try:
        with torch.device("meta"), _no_autocast():
            loss: Tensor = task(batch)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise RecipeError(
            f"the loss of {type(task).__name__} cannot be counted on shapes alone ({str(error).splitlines()[0]}); "
            "measure it with mae-pipe tune"
        ) from error
    return loss


@contextmanager
def _no_autocast() -> Iterator[None]:
    """There is none for the meta device, where only shapes count; teachers ask for it (``MomentumCopy``)."""
    old = torch.autocast
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = old  # type: ignore[misc]


def _pictures(count: int, channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """[count, C, H, W] uint8."""
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    noise = 0.1 * torch.randn(count, channels, *size, generator=generator)
    return ((F.interpolate(coarse, size, mode="bilinear") + noise) * 255).clamp(0, 255).to(torch.uint8)
