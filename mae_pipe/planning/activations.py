"""What a micro-batch holds between its forward and backward pass: the real task, run on shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.method import Method
from mae_pipe.planning.counting import Counted
from mae_pipe.recipe import Pretrain
from mae_pipe.recompute import blocks_of, recompute
from mae_pipe.standins import loss_on_shapes
from mae_pipe.tasks import MaskedAutoencoder
from mae_pipe.views import groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Weights:
    """What a task holds before anything is computed.

    Attributes:
        parameters: numbers that are trained.
        encoder: of them, the encoder's.
        largest: numbers of the largest parameter.
        others: bytes of buffers and frozen parameters.
        blocks: transformer blocks that can be checkpointed.
        follows: others are needed whole on every rank, so that ZeRO 3 is none of the choices.
    """

    parameters: int
    encoder: int
    largest: int
    others: int
    blocks: int
    follows: bool = False


@contextmanager
def _fused(device: Device) -> Iterator[None]:
    """Attention by a device's fused kernel, which keeps a number a row and head, and not a matrix.

    The function is replaced, as neither a mode nor the meta device gives a choice of kernels in the backward pass.
    """
    name, ops = "scaled_dot_product_attention", torch.ops.aten
    kernel = (
        ops._scaled_dot_product_flash_attention if device == "cuda" else ops._scaled_dot_product_flash_attention_for_cpu
    )
    old = getattr(F, name)
    setattr(F, name, lambda q, k, v, **options: kernel(q, k, v)[0])
    try:
        yield
    finally:
        setattr(F, name, old)


def on_shapes(recipe: Pretrain, catalog: Catalog) -> Method:
    """The recipe's method on the meta device, in the precision that the engine computes in."""
    with torch.device("meta"):
        task = build(recipe, catalog)
    return task.to(device="meta", dtype=DTYPES[recipe.engine.precision])


def weights_of(task: Method) -> Weights:
    """Count a task's weights."""
    trained = [p for p in task.parameters() if p.requires_grad]
    others = [*(p for p in task.parameters() if not p.requires_grad), *task.buffers()]
    return Weights(
        parameters=sum(p.numel() for p in trained),
        encoder=sum(p.numel() for p in task.encoder.parameters()),
        largest=max(p.numel() for p in trained),
        others=sum(t.numel() * t.element_size() for t in others),
        blocks=len(blocks_of(task)),
        follows=task.follows,
    )


def activations(recipe: Pretrain, catalog: Catalog, images: int, *, blocks: int, device: Device) -> int:
    """The most bytes that forward and backward of ``images`` images hold, beside the weights and their gradients.

    Args:
        blocks: that compute their activations again in the backward pass.
        device: decides how attention is computed (``autoencoder.choose_attention``).
    """
    task = on_shapes(recipe, catalog)
    recompute(task, blocks)
    fused = device == "cuda" or recipe.engine.precision == "fp32"
    for part in task.modules():
        if isinstance(part, Attention):
            part.fused_attn = fused  # type: ignore[misc]  # Final only for TorchScript
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
    if isinstance(task, MaskedAutoencoder) and not _knows_shapes(task, recipe):
        task.target = _Squares(task.grid.size, task.target.width)  # type: ignore[assignment]
    with torch.device("meta"), _fused(device), Counted(shapes=True) as counted:
        for tensor in [*task.parameters(), *task.buffers()]:
            counted.add(tensor)
        before = counted.now
        if isinstance(task, MaskedAutoencoder):
            pixels = torch.empty(images, recipe.data.channels, *recipe.data.sides)
            loss = task.loss_of(pixels, torch.empty(images, task.grid.size))
        else:
            loss = loss_on_shapes(task, images)
        loss.backward()  # type: ignore[no-untyped-call]
    seen = sum(views * height * width for (height, width), views in groups(task.views, recipe.data.sides))
    batches = 2 * images * recipe.data.channels * seen  # bytes; the next one is there
    held: int = counted.most - before
    return held + batches


def _drop(parameter: Tensor) -> None:
    parameter.grad = None  # the engine's buffers take it over


class _Squares(nn.Module):
    """In place of a target whose truth wants real numbers: what it keeps is as large as the prediction."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.patches, self.width = patches, width

    def truth(self, images: Tensor) -> Tensor:
        return images.new_empty(len(images), self.patches, self.width)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction**2).mean(dim=-1)


def _knows_shapes(task: MaskedAutoencoder, recipe: Pretrain) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            task.target.truth(torch.empty(1, recipe.data.channels, *recipe.data.sides))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    return True
