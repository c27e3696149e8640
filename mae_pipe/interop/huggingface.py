"""The names of ViTMAE, ViTModel and ViTForImageClassification of transformers, those of version 4 and of 5.

Queries, keys and values are three matrices there and one here; everything else has another name only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE = {  # theirs, official; a trailing dot stands for all names below
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "classifier.": "head.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_norm.": "decoder_norm.",
    "decoder.decoder_pred.": "decoder_pred.",
}
_BLOCK = re.compile(  # version 4, 5 in memory, and the decoder as 5 writes it
    r"(?P<where>encoder\.layer|layers|decoder\.decoder_layers|decoder\.decoder_encoder\.layer)\.(?P<number>\d+)\.(?P<inside>.+)"
)
_INSIDE = {  # version 4, version 5, official
    "layernorm_before": ("layernorm_before", "norm1"),
    "attention.output.dense": ("attention.o_proj", "attn.proj"),
    "layernorm_after": ("layernorm_after", "norm2"),
    "intermediate.dense": ("mlp.fc1", "mlp.fc1"),
    "output.dense": ("mlp.fc2", "mlp.fc2"),
}
_PARTS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
_UNUSED = re.compile(r"pooler\.dense\.(weight|bias)|embeddings\.mask_token")  # of other tasks of the same encoder


def to_official(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Under the official names, and what was left out: a pooler, which only untrained tasks have.

    What has no known name keeps its own, for the caller to refuse.
    """
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    thirds: dict[str, dict[int, Tensor]] = {}
    for full, tensor in weights.items():
        name = full.removeprefix("vit.")
        if _UNUSED.fullmatch(name):
            left_out.append(full)
        elif (third := _third(name)) is not None:
            thirds.setdefault(third[0], {})[third[1]] = tensor
        else:
            found[_official(name) or full] = tensor
    for name, parts in thirds.items():
        if len(parts) == len(_PARTS):
            found[name] = torch.cat([parts[n] for n in range(len(_PARTS))])
        else:
            found |= {f"{name} ({_PARTS[n][0]} alone)": tensor for n, tensor in parts.items()}
    return found, left_out


def from_official(weights: Mapping[str, Tensor], *, prefix: str = "vit.") -> dict[str, Tensor]:
    """Under the names of version 4, which 5 reads as well. ``prefix`` is "" for a bare ViTModel."""
    found: dict[str, Tensor] = {}
    inside = {official: theirs for theirs, (_, official) in _INSIDE.items()}
    for name, tensor in weights.items():
        block = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            theirs = next(t + name.removeprefix(o) for t, o in _OUTSIDE.items() if name.startswith(o))
            found[theirs if theirs.startswith(("decoder.", "classifier.")) else prefix + theirs] = tensor
            continue
        layer = f"{'decoder.decoder_layers' if block[1] else prefix + 'encoder.layer'}.{block[2]}"
        if block[3] != "attn.qkv":
            found[f"{layer}.{inside[block[3]]}.{block[4]}"] = tensor
            continue
        for (part, _), third in zip(_PARTS, tensor.chunk(len(_PARTS)), strict=True):
            found[f"{layer}.attention.attention.{part}.{block[4]}"] = third.contiguous()
    return found


def _block(name: str) -> tuple[str, str, str] | None:
    """The official block, what is inside of it and whether weight or bias; None for what is in no block."""
    match = _BLOCK.fullmatch(name)
    if match is None or "." not in match["inside"]:
        return None
    inside, kind = match["inside"].rsplit(".", 1)
    return f"{'decoder_' * match['where'].startswith('decoder')}blocks.{match['number']}", inside, kind


def _third(name: str) -> tuple[str, int] | None:
    """The official name of the matrix that this is a third of, and which third."""
    block = _block(name)
    if block is None:
        return None
    for number, (four, five) in enumerate(_PARTS):
        if block[1] in (f"attention.attention.{four}", f"attention.{five}"):
            return f"{block[0]}.attn.qkv.{block[2]}", number
    return None


def _official(name: str) -> str | None:
    block = _block(name)
    if block is None:
        return next((o + name.removeprefix(t) for t, o in _OUTSIDE.items() if name.startswith(t)), None)
    for four, (five, official) in _INSIDE.items():
        if block[1] in (four, five):
            return f"{block[0]}.{official}.{block[2]}"
    return None
