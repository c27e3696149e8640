"""BEiT v2's tokenizer: a vision transformer, and the nearest of its codes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64  # numbers of an attention head in a ViT-B
LEFT_OUT: tuple[str, ...] = (
    "decoder.",
    "decode_task_layer.",
    "teacher_model.",
    "scaling_layer.",
    "loss.",
)  # of training alone
LEFT_OUT += ("quantize.cluster_size", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
LEFT_OUT += ("quantize.embedding.initted",)


class VqKd(nn.Module):
    """The encoder of vector-quantised knowledge distillation (BEiT v2, Peng et al. 2022, section 2.2).

    Its codes stand for a teacher's features, so there is no way back to pixels.

    Args:
        patch: pixels in a row and in a column of a token.
        rows: tokens in a row and in a column of the images that it learned from; on other grids its
            positions are interpolated.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        patch: int,
        rows: int,
        hidden: int,
        codebook: int,
        code_width: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = VisionTransformer(
            img_size=patch * rows,
            patch_size=patch,
            in_chans=channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=max(1, width // HEAD),
            mlp_ratio=hidden / width,
            dynamic_img_size=True,
        )
        self.project = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))
        self.codes = nn.Parameter(torch.zeros(codebook, code_width))

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, H / patch, W / patch] int64."""
        patch = self.encoder.patch_embed.patch_size[0]
        found: Tensor = self.encoder.forward_features(2 * colours - 1)[:, 1:]  # [B, N, width]
        vectors = F.normalize(self.project(found), dim=-1)
        distances = self.codes.square().sum(dim=1) - 2 * vectors @ self.codes.T  # less the vectors' own square
        return distances.argmin(dim=-1).reshape(len(colours), colours.shape[2] // patch, colours.shape[3] // patch)


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's names of weights -> ``VqKd``'s; what only its training needs is left out."""
    found = {name: weight for name, weight in weights.items() if not name.startswith(LEFT_OUT)}
    for name in [name for name in found if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        query, value = found.pop(name), found.pop(f"{block}v_bias", None)
        if value is not None:  # keys have none
            found[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    names = {"encoder.fc_norm.": "encoder.norm.", "encode_task_layer.": "project."}
    for before, after in names.items():
        found = {after + n.removeprefix(before) if n.startswith(before) else n: w for n, w in found.items()}
    if "quantize.embedding.weight" in found:
        found["codes"] = found.pop("quantize.embedding.weight")
    return found


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What ``VqKd`` is built with, from weights with its names; KeyError where one is missing."""
    embed, codes = weights["encoder.patch_embed.proj.weight"], weights["codes"]
    tokens = weights["encoder.pos_embed"].shape[1] - 1
    return {
        "width": embed.shape[0],
        "depth": len({found[1] for name in weights if (found := re.match(r"encoder\.blocks\.(\d+)\.", name))}),
        "patch": embed.shape[2],
        "rows": round(tokens**0.5),
        "hidden": weights["encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "codebook": codes.shape[0],
        "code_width": codes.shape[1],
        "channels": embed.shape[1],
    }
