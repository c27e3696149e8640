"""Transformer blocks with timm's weights and names, and attention that is fast on CPUs as well.

Legend in ``contracts.py``; **Tk** tokens of a sequence, **A** heads, **E** = D / A numbers of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Block(TimmBlock):
    """timm's block, which can leave tokens out that nothing after it looks at."""

    def forward(  # type: ignore[override]
        self, tokens: Tensor, first: int = 0, bias: Tensor | None = None
    ) -> Tensor:
        """[B, Tk, D] -> [B, Tk - first, D]: the first tokens are seen by the others, and not computed further.

        Args:
            bias: [A, Tk, Tk], added to what queries (rows) and keys give before the softmax.
        """
        kept = tokens[:, first:] + self.drop_path1(self.ls1(attend(self.attn, self.norm1(tokens), first, bias)))
        out: Tensor = kept + self.drop_path2(self.ls2(self.mlp(self.norm2(kept))))
        return out


def attend(attention: Any, tokens: Tensor, first: int = 0, bias: Tensor | None = None) -> Tensor:
    """timm's self-attention of [B, Tk, D], with queries of the tokens from ``first`` on -> [B, Tk - first, D].

    Args:
        bias: [A, Tk, Tk], added before the softmax.
    """
    batch, length, width = tokens.shape
    heads = attention.num_heads
    packed = attention.qkv(tokens)  # [B, Tk, 3 D]
    if bias is not None:
        bias = bias[:, first:].to(packed.dtype)  # [A, Tk - first, Tk]
    plain = isinstance(attention.q_norm, nn.Identity)
    if plain and not attention.fused_attn:
        mixed = cast(Tensor, _Explicit.apply(packed, bias, heads, first))
    else:
        q, k, v = packed.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
        q, k = attention.q_norm(q[:, :, first:]), attention.k_norm(k)
        if attention.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q * attention.scale @ k.transpose(-2, -1)
            mixed = (scores if bias is None else scores + bias).softmax(dim=-1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)  # [B, Tk - first, D]
    out: Tensor = attention.proj_drop(attention.proj(mixed))
    return out


def choose_attention(module: nn.Module, precision: torch.dtype | None = None) -> None:
    """Set every attention below ``module`` to what is fastest on its device; docs/speed.md has the measurements.

    PyTorch's fused kernel, but on CPU in bfloat16 the products and softmax of ``_Explicit``.

    Args:
        precision: of the products, where autocast makes it differ from the weights'.
    """
    weights = next(module.parameters(), None)
    if weights is None:
        return
    fused = weights.device.type != "cpu" or (precision or weights.dtype) == torch.float32
    for part in module.modules():
        if isinstance(part, Attention):
            part.fused_attn = fused  # type: ignore[misc]  # Final only for TorchScript


class _Explicit(torch.autograd.Function):
    """Attention as matrix products and a softmax: [B, Tk, 3 D] -> [B, Tk - first, D].

    Written out with its gradient so that tokens are turned into heads once, all three of q, k and v together,
    and gradients are written where the layer before wants them: autograd's own way copies each by itself.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor | None, heads: int, first: int) -> Tensor:
        batch, length, width = packed.shape[0], packed.shape[1], packed.shape[2] // 3
        each = width // heads
        parts = packed.view(batch, length, 3, heads, each).permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, -1)
        q, k, v = parts
        scores = _scaled(q[:, first:], k.transpose(1, 2), each**-0.5)  # [B A, Tk - first, Tk]
        if bias is not None:
            scores.view(batch, heads, length - first, length).add_(bias)
        shares = scores.softmax(dim=-1).to(packed.dtype)
        ctx.save_for_backward(parts, shares)
        ctx.heads, ctx.first = heads, first
        mixed = torch.bmm(shares, v).view(batch, heads, length - first, each)
        return mixed.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        parts, shares = ctx.saved_tensors
        (q, k, v), heads, first = parts, ctx.heads, ctx.first
        batch, kept, width = gradient.shape
        length, each = k.shape[1], k.shape[2]
        mixed = gradient.view(batch, kept, heads, each).transpose(1, 2).reshape(batch * heads, kept, each)
        scores = torch.bmm(mixed, v.transpose(1, 2))
        scores = torch._softmax_backward_data(scores, shares, -1, shares.dtype)
        of_bias = scores.view(batch, heads, kept, length).sum(0) if ctx.needs_input_grad[1] else None
        found = torch.empty_like(parts)
        found[0, :, :first] = 0
        found[0, :, first:] = _scaled(scores, k, each**-0.5)
        found[1] = _scaled(scores.transpose(1, 2), q[:, first:], each**-0.5)
        found[2] = torch.bmm(shares.transpose(1, 2), mixed)
        found = found.view(3, batch, heads, length, each).permute(1, 3, 0, 2, 4)
        return found.reshape(batch, length, 3 * width), of_bias, None, None


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``scale`` times the products of two stacks of matrices, in one pass."""
    nothing = left.new_empty(()).expand(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale)
