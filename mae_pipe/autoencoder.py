"""The asymmetric autoencoder: a timm ViT that leaves hidden patches out, and a small decoder.

Legend in ``contracts.py``. Sizes, order and initial weights are the official ones (MAE, He et
al. 2022), so its state dict maps to the official one name by name (``interop/official.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.attention import Block, choose_attention
from mae_pipe.contracts import Grid
from mae_pipe.errors import RecipeError
from mae_pipe.masking import Mask, gather
from mae_pipe.patches import cells
from mae_pipe.positions import resizing, sincos_positions
from mae_pipe.recipe import DecoderShape, EncoderShape
from mae_pipe.relative import RelativePositionBias

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


class PatchProjection(nn.Conv2d):
    """The patch embedding's convolution, given patches that are already cut out.

    A convolution whose stride is its kernel is a linear map of each patch; as one, it need
    not see hidden patches. The weight keeps its shape and name [D, C, P, P].
    """

    def forward(self, patches: Tensor) -> Tensor:
        """[B, k, C, P, P] -> [B, k, D]."""
        return F.linear(patches.flatten(2).to(self.weight.dtype), self.weight.flatten(1), self.bias)


class Encoder(VisionTransformer):
    """A timm ViT with the same state-dict names that can leave hidden patches out.

    Args:
        shape: width, depth, heads, patch.
        size: H and W, pixels.
        channels: C.
        learned: a table of positions is a parameter; else a float32 buffer. It begins as the sin-cos one, or with
            positions "learned" in the shape as truncated normal noise (DINO, Caron et al. 2021).
        drop_path: stochastic depth of the last block, rising linearly from 0.
        dropout: after the positions, and after attention and both layers of every MLP (Dosovitskiy et al. 2021).
    """

    cls_token: Any  # nn.Parameter; None where T is 0
    reg_token: nn.Parameter | None  # the class tokens after the first
    mask_token: nn.Parameter | None
    pos_embed: Any  # a table; None where positions are relative
    rel_pos_bias: RelativePositionBias | None  # of all blocks; with positions "relative_per_block" each has its own

    def __init__(
        self,
        shape: EncoderShape,
        size: tuple[int, int],
        *,
        channels: int,
        learned: bool,
        drop_path: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            img_size=size,
            patch_size=shape.sides,
            in_chans=channels,
            num_classes=0,
            class_token=shape.class_tokens > 0,
            reg_tokens=max(0, shape.class_tokens - 1),
            qk_norm=shape.qk_norm,
            init_values=shape.layer_scale,
            global_pool="",
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            mlp_ratio=shape.mlp_ratio,
            drop_path_rate=drop_path,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            norm_layer=LayerNorm,
            block_fn=Block,
            weight_init="skip",
        )
        self.grid = Grid(size[0] // shape.sides[0], size[1] // shape.sides[1])
        self.patch_embed.proj = PatchProjection(channels, shape.width, shape.sides, stride=shape.sides)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        initialise(self)
        # After all else, so that the other first weights are the same with it and without.
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width).normal_(std=0.02)) if shape.mask_tokens else None
        self._add_positions(shape, learned)
        choose_attention(self)

    def _add_positions(self, shape: EncoderShape, learned: bool) -> None:
        """A table, or the bias of attention that stands in its place."""
        del self.pos_embed
        self.rel_pos_bias = None
        if shape.positions.startswith("relative"):
            self.pos_embed = None
            for part in self.blocks if shape.positions == "relative_per_block" else [self]:
                part.rel_pos_bias = RelativePositionBias(self.grid, shape.heads, shape.class_tokens)
            return
        if shape.positions == "learned":
            table = torch.empty(1, shape.class_tokens + self.grid.size, shape.width)
            nn.init.trunc_normal_(table, std=0.02)
        else:
            table = sincos_positions(shape.width, self.grid.rows, self.grid.cols, first=shape.class_tokens)
            table = table.to(self.patch_embed.proj.weight.device)
        if learned:
            self.pos_embed = nn.Parameter(table)
        else:
            self.register_buffer("pos_embed", table)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:  # type: ignore[override]
        """[B, C, H, W] normalised images -> [B, T + V, D] tokens, or [B, T + N, D] without a mask.

        The class tokens, then the visible patches in the mask's order, then, with ``mask_tokens`` in
        the shape, a token for each hidden one; the final norm is applied. Without a mask images may have
        another size than the encoder's: positions are interpolated.
        """
        tokens = self._embedded(images, mask)
        for block, bias in zip(self.blocks, self._biases(images), strict=True):
            tokens = block(tokens, bias=bias)
        out: Tensor = self.norm(tokens)
        if mask is None or self.pos_embed is not None:
            return out
        first = self.num_prefix_tokens
        return torch.cat([out[:, :first], gather(out[:, first:], mask.order)], dim=1)

    def after_blocks(self, images: Tensor, blocks: tuple[int, ...]) -> Tensor:
        """[B, C, H, W] normalised images -> [B, K, T + N, D]: tokens after each of the K ``blocks``, not normed."""
        tokens, biases, found = self._embedded(images, None), self._biases(images), []
        for number, block in enumerate(self.blocks[: blocks[-1] + 1]):
            tokens = block(tokens, bias=biases[number])
            if number in blocks:
                found.append(tokens)
        return torch.stack(found, dim=1)

    def grid_of(self, images: Tensor) -> Grid:
        """The patches of [B, C, H, W] images, of any size that they divide."""
        (height, width), (high, wide) = images.shape[2:], self.patch_embed.proj.kernel_size
        if height % high or width % wide:
            raise ValueError(f"images of {height} x {width} pixels do not split into patches of {high} x {wide}")
        return Grid(height // high, width // wide)

    def _embedded(self, images: Tensor, mask: Mask | None) -> Tensor:
        """[B, T + V, D]: what the first block is given; where positions are relative, patches in the grid's order."""
        if mask is not None and self.pos_embed is None and self.mask_token is None:
            raise RecipeError(
                "relative encoder.positions with a mask need encoder.mask_tokens, as distances are of all places; "
                "set encoder.mask_tokens=true, or other positions"
            )
        grid = self.grid if mask is not None else self.grid_of(images)
        cut = cells(images, grid, None if mask is None else mask.visible)  # [B, V, C, P, P]
        patches = self.patch_embed.proj(cut)  # [B, V, D]
        known = None if mask is None else mask.visible
        if mask is not None and self.mask_token is not None:
            hidden = self.mask_token.to(patches.dtype).expand(len(images), mask.hidden.shape[1], -1)
            patches, known = torch.cat([patches, hidden], dim=1), mask.order  # [B, N, D]
        if self.pos_embed is not None:
            positions = self.pos_embed[:, self.num_prefix_tokens :]  # [1, N, D]
            if grid != self.grid:
                positions = resizing(self.grid, grid, positions) @ positions
            patches = patches + (positions if known is None else positions[0][known])
        elif mask is not None:
            patches = gather(patches, mask.restore)
        tokens = self._with_class_tokens(patches).to(self.patch_embed.proj.weight.dtype)  # [B, T + V, D]
        out: Tensor = self.pos_drop(tokens)
        return out

    def _biases(self, images: Tensor) -> list[Tensor | None]:
        """[A, T + N, T + N] of every block, where positions are relative."""
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias(self.grid_of(images))
        if shared is not None or self.pos_embed is not None:
            return [shared] * len(self.blocks)
        own: list[Any] = [block.rel_pos_bias for block in self.blocks]
        return [bias(self.grid_of(images)) for bias in own]

    def _with_class_tokens(self, patches: Tensor) -> Tensor:
        """[B, V, D] -> [B, T + V, D]."""
        own: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if not own:
            return patches
        first = torch.cat(own, dim=1)
        if self.pos_embed is not None:
            first = first + self.pos_embed[:, : self.num_prefix_tokens]
        first = first.expand(patches.shape[0], -1, -1)  # len() would fix the batch of a traced graph
        return torch.cat([first.to(patches.dtype), patches], dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        _keep_positions(self, partial(super()._apply, fn, recurse))
        choose_attention(self)
        return self


class Decoder(nn.Module):
    """Transformer blocks that predict hidden patches from the encoder's tokens.

    Args:
        shape: width, depth and heads.
        width: D, of the encoder's tokens.
        out: K, numbers predicted a patch.
        grid: the patches of an image.
        class_tokens: T, of the encoder.
        mask_tokens: whether hidden patches get a token here; not where the encoder gave them one.
    """

    mask_token: nn.Parameter | None
    pos_embed: Tensor

    def __init__(
        self,
        shape: DecoderShape,
        *,
        width: int,
        out: int,
        grid: Grid,
        class_tokens: int = 1,
        mask_tokens: bool = True,
    ) -> None:
        super().__init__()
        self.class_tokens = class_tokens
        self.embed = nn.Linear(width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width).normal_(std=0.02)) if mask_tokens else None
        positions = sincos_positions(shape.width, grid.rows, grid.cols)
        self.register_buffer("pos_embed", positions.to(self.embed.weight.device))
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(shape.depth)
        )
        self.norm = LayerNorm(shape.width)
        self.predict = nn.Linear(shape.width, out)
        initialise(self)
        choose_attention(self)

    def forward(self, tokens: Tensor, mask: Mask, *, everywhere: bool = False) -> Tensor:
        """[B, T + V, D] -> [B, M, K], the hidden patches in the mask's order; or [B, N, K], all in place.

        Attention does not care for the order of tokens, so they stay as the mask sorts them,
        visible before hidden, and are never put back in place before the end.
        """
        known = self.embed(tokens)  # [B, T + V, Dd], or T + N
        places = self.pos_embed[0, 1:][mask.order]  # [B, N, Dd]
        seen = known.shape[1] - self.class_tokens  # V or N
        zero = self.pos_embed[:, :1].expand(len(tokens), self.class_tokens, -1)
        tokens = known + torch.cat([zero, places[:, :seen]], dim=1)
        if self.mask_token is not None:
            tokens = torch.cat([tokens, self.mask_token + places[:, seen:]], dim=1)
        tokens = tokens.to(self.embed.weight.dtype)  # [B, T + N, Dd]
        # The last block makes only the tokens that are predicted from: the others are seen there, and then forgotten.
        first = self.class_tokens + (0 if everywhere else mask.visible_count)
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, first if number == len(self.blocks) else 0)
        tokens = tokens if self.blocks else tokens[:, first:]
        wanted = gather(tokens, mask.restore) if everywhere else tokens
        out: Tensor = self.predict(self.norm(wanted))
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        _keep_positions(self, partial(super()._apply, fn, recurse))
        choose_attention(self)
        return self


def build_encoder(
    shape: EncoderShape,
    size: int | tuple[int, int],
    *,
    channels: int = 3,
    positions: Literal["fixed", "learned"] | None = None,
    drop_path: float | None = None,
    dropout: float | None = None,
) -> Encoder:
    """A freshly initialised encoder for images of ``size`` pixels: a side, or height and width.

    Pretraining keeps sin-cos positions fixed, finetuning learns any. ``positions``, ``drop_path`` and ``dropout`` None:
    the shape's own.
    """
    learned = (positions or shape.positions) == "learned"
    rate = shape.drop_path if drop_path is None else drop_path
    dropout = shape.dropout if dropout is None else dropout
    sides = (size, size) if isinstance(size, int) else size
    return Encoder(shape, sides, channels=channels, learned=learned, drop_path=rate, dropout=dropout)


def initialise(module: nn.Module) -> None:
    """The official first weights: Xavier-uniform matrices, zero biases; a norm begins as nothing.

    qkv counts as one [3D, D] matrix, and the patch embedding as a [D, C P P] one that keeps
    the convolution's own bias.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, PatchProjection):
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1))


def _keep_positions(module: Any, move: Callable[[], object]) -> None:
    """Run ``move``, a change of device or precision, but keep a fixed position table in float32.

    An engine that casts a module to bfloat16 casts its buffers too, which would blur the positions.
    """
    table = module._buffers.get("pos_embed")
    move()
    if table is not None and module.pos_embed.dtype != table.dtype:
        module.pos_embed = table.to(module.pos_embed.device)
