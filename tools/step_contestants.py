"""The contestants of bench_step.py: masked autoencoders of the same sizes, each with its step.

All compute the loss on normalised pixels of hidden patches, on images or pixels that lie on the device already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Attention, Block  # type: ignore[attr-defined]
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae_pipe import recipe
from mae_pipe.attention import choose_attention
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.engine import Engine
from mae_pipe.engine.optimizers import optimizer_of
from mae_pipe.masking import gather, visible_count
from mae_pipe.optim import parameter_groups
from mae_pipe.patches import patchify
from mae_pipe.positions import sincos_positions
from mae_pipe.speeding import compile_blocks, keep_memory
from mae_pipe.tasks import MaskedAutoencoder

SIZE = 224
RECIPES = {
    "tiny": "imagenette_vit_tiny",
    "base": "mae_vit_base_patch16",
    "large": "mae_vit_large_patch16",
    "huge": "mae_vit_huge_patch14",
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """What all contestants of a run share; ``precision`` as in ``--precision``."""

    model: str = "base"
    batch: int = 16
    device: str = "cpu"
    precision: str = "bf16"
    optimizer: bool = True

    @property
    def recipe(self) -> recipe.Pretrain:
        precision = "fp32" if self.precision == "fp32" else "bf16"
        loaded = recipe.load(RECIPES[self.model], [f'engine.precision="{precision}"', f"data.size={SIZE}"])
        assert isinstance(loaded, recipe.Pretrain)
        return loaded

    def ready(self, model: nn.Module, precision: str = "") -> nn.Module:
        """On the device, in the run's precision or another one."""
        model.train().to(self.device)
        return model.bfloat16() if (precision or self.precision) == "bf16" else model

    def images(self, model: nn.Module) -> Tensor:
        """[B, 3, S, S] in the precision of ``model``."""
        return torch.randn(self.batch, 3, SIZE, SIZE, device=self.device).to(next(model.parameters()).dtype)

    def pixels(self) -> Batch:
        numbers = torch.arange(self.batch, device=self.device)
        pixels = torch.randint(0, 256, (self.batch, 3, SIZE, SIZE), dtype=torch.uint8, device=self.device)
        return Batch(pixels, numbers, numbers, numbers)


class Textbook(nn.Module):
    """MAE as the paper's code has it, of timm's blocks: all patches are embedded, put back in place and predicted."""

    def __init__(self, settings: Settings, fused: bool) -> None:
        super().__init__()
        shape, small = settings.recipe.encoder, settings.recipe.decoder
        self.patch, side = shape.sides[0], SIZE // shape.sides[0]
        self.visible = visible_count(side * side, settings.recipe.mask.ratio)
        self.embed = nn.Conv2d(3, shape.width, self.patch, stride=self.patch)
        self.blocks, self.decoder_blocks = (
            nn.Sequential(*(Block(s.width, s.heads, s.mlp_ratio, qkv_bias=True) for _ in range(s.depth)))
            for s in (shape, small)
        )
        self.norm, self.decoder_norm = nn.LayerNorm(shape.width), nn.LayerNorm(small.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small.width))
        self.decoder_embed = nn.Linear(shape.width, small.width)
        self.predict = nn.Linear(small.width, 3 * self.patch**2)
        self.register_buffer("places", sincos_positions(shape.width, side, side))
        self.register_buffer("decoder_places", sincos_positions(small.width, side, side))
        for part in self.modules():
            if isinstance(part, Attention):
                part.fused_attn = fused  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> the loss."""
        places: Any = self.places
        decoder_places: Any = self.decoder_places
        tokens = self.embed(images).flatten(2).transpose(1, 2) + places[:, 1:]
        batch, patches, _ = tokens.shape
        order = torch.rand(batch, patches, device=images.device).argsort(dim=1)
        first = (self.cls_token + places[:, :1]).expand(batch, -1, -1)
        tokens = torch.cat([first, gather(tokens, order[:, : self.visible])], dim=1)
        tokens = self.decoder_embed(self.norm(self.blocks(tokens)))
        masks = self.mask_token.expand(batch, patches - self.visible, -1)
        restore = order.argsort(dim=1)
        placed = gather(torch.cat([tokens[:, 1:], masks], dim=1), restore)
        tokens = self.decoder_blocks(torch.cat([tokens[:, :1], placed], dim=1) + decoder_places)
        prediction = self.predict(self.decoder_norm(tokens))[:, 1:]
        truth = patchify(images, self.patch)
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = (restore >= self.visible).to(truth.dtype)
        loss: Tensor = ((prediction - truth).square().mean(-1) * hidden).sum() / hidden.sum()
        return loss


def looped(settings: Settings, model: nn.Module, loss: Callable[[], Tensor], *, autocast: bool = False) -> Step:
    """The plain loop: forward, backward and AdamW on the model's own weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) if settings.optimizer else None

    def step() -> None:
        with torch.autocast(settings.device, torch.bfloat16, enabled=autocast or settings.precision == "autocast"):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def ours(settings: Settings, *, compiled: bool = False) -> Step:
    """Our model in the plain loop."""
    keep_memory()
    task = settings.ready(MaskedAutoencoder.from_recipe(settings.recipe, Catalog()))
    if settings.precision == "autocast":
        choose_attention(task, torch.bfloat16)
    if compiled:
        compile_blocks(task)
    batch = settings.pixels()
    return looped(settings, task, lambda: task(batch))


def engine(settings: Settings) -> Step:
    """Our model as a run has it: DeepSpeed, ZeRO 1, float32 master weights, the gradient's norm."""
    task = MaskedAutoencoder.from_recipe(settings.recipe, Catalog()).train()
    groups = parameter_groups(task.named_parameters(), weight_decay=0.05)
    made, batch = Engine(task, groups, settings.recipe, micro_batch=settings.batch), settings.pixels()

    def step() -> None:
        made.backward(made(batch))
        made.step(1e-6)

    return step


def masters(settings: Settings) -> Step:
    """What the engine does without DeepSpeed: gradients to float32, their norm, AdamW on float32 weights, and back."""
    keep_memory()
    task = settings.ready(MaskedAutoencoder.from_recipe(settings.recipe, Catalog()))
    weights = {name: nn.Parameter(p.detach().float()) for name, p in task.named_parameters() if p.requires_grad}
    pairs = [(dict(task.named_parameters())[name], weight) for name, weight in weights.items()]
    optimizer = optimizer_of(parameter_groups(weights.items(), weight_decay=0.05), settings.recipe)
    batch = settings.pixels()

    def step() -> None:
        task(batch).backward()
        for parameter, weight in pairs:
            assert parameter.grad is not None
            weight.grad, parameter.grad = parameter.grad.float(), None
        assert torch.nn.utils.get_total_norm([weight.grad for _, weight in pairs if weight.grad is not None]) >= 0
        optimizer.step()
        with torch.no_grad():
            for parameter, weight in pairs:
                parameter.copy_(weight)

    return step


def hugging_face(settings: Settings, attention: str, *, autocast: bool = False) -> Step:
    """Hugging Face's model; with ``autocast`` as its trainer runs bf16: float32 weights, products in bfloat16."""
    shape, small = settings.recipe.encoder, settings.recipe.decoder
    config: Any = ViTMAEConfig(
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=int(shape.width * shape.mlp_ratio), patch_size=shape.sides[0], norm_pix_loss=True,
        decoder_hidden_size=small.width, decoder_num_hidden_layers=small.depth, decoder_num_attention_heads=small.heads,
        decoder_intermediate_size=int(small.width * small.mlp_ratio), attn_implementation=attention,
    )  # type: ignore[call-arg]  # fmt: skip
    model = settings.ready(ViTMAEForPreTraining(config), "fp32" if autocast else "")
    images = settings.images(model)
    return looped(settings, model, lambda: model(pixel_values=images).loss, autocast=autocast)


def textbook(settings: Settings, *, fused: bool) -> Step:
    """``Textbook`` in the plain loop."""
    model = settings.ready(Textbook(settings, fused))
    images = settings.images(model)
    return looped(settings, model, lambda: model(images))


CONTESTANTS: dict[str, Callable[[Settings], Step]] = {
    "mae-pipe": ours,
    "mae-pipe, compiled": lambda settings: ours(settings, compiled=True),
    "mae-pipe, Engine": engine,
    "mae-pipe, float32 masters": masters,
    "Hugging Face, sdpa": lambda settings: hugging_face(settings, "sdpa"),
    "Hugging Face, eager": lambda settings: hugging_face(settings, "eager"),
    "Hugging Face, sdpa, autocast": lambda settings: hugging_face(settings, "sdpa", autocast=True),
    "timm blocks, explicit": lambda settings: textbook(settings, fused=False),
    "timm blocks, sdpa": lambda settings: textbook(settings, fused=True),
}
