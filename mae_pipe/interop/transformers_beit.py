"""The names of BeitModel, BeitForMaskedImageModeling and BeitForImageClassification of transformers 4 and 5.

Queries, keys and values are three matrices there and one in BEiT's own code; all else has another name only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"(?:beit\.)?(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_OUTSIDE = (  # theirs as a pattern, what BEiT's code says
    (r"(?:beit\.)?embeddings\.(cls_token|mask_token)", r"\1"),
    (r"(?:beit\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"(?:beit\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"(?:beit\.)?(?:encoder\.relative_position_bias|shared_position_bias)\.(.+)", r"rel_pos_bias.\1"),
    (r"(?:beit\.)?layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:beit\.)?pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
    (r"classifier\.(weight|bias)", r"head.\1"),
)
_INSIDE = (
    (r"lambda_([12])", r"gamma_\1"),
    (r"(?:attention\.attention\.)?relative_position_bias\.(.+)", r"attn.\1"),
    (r"(?:attention\.output\.dense|attention\.o_proj)\.(.+)", r"attn.proj.\1"),
    (r"(?:attention\.attention\.(q|k|v)(?:uery|ey|alue)|attention\.(q|k|v)_proj)\.bias", r"attn.\1\2_bias"),
    (r"(?:attention\.attention\.(q|k|v)(?:uery|ey|alue)|attention\.(q|k|v)_proj)\.weight", r"attn.\1\2"),
    (r"layernorm_before\.(.+)", r"norm1.\1"),
    (r"layernorm_after\.(.+)", r"norm2.\1"),
    (r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"mlp.fc1.\1"),
    (r"(?:output\.dense|mlp\.fc2)\.(.+)", r"mlp.fc2.\1"),
)


def as_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of BEiT's own code; what has no known name keeps its own."""
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for full, tensor in weights.items():
        block = _BLOCK.fullmatch(full)
        name = f"blocks.{block[1]}.{_renamed(block[2], _INSIDE)}" if block else _renamed(full, _OUTSIDE)
        third = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])", name)
        if third:
            thirds.setdefault(third[1], {})[third[2]] = tensor
        else:
            found[name] = tensor
    for attention, parts in thirds.items():
        if len(parts) == len("qkv"):
            found[f"{attention}.qkv.weight"] = torch.cat([parts[part] for part in "qkv"])
        else:
            found |= {f"{attention}.{part}": tensor for part, tensor in parts.items()}
    return found


def _renamed(name: str, known: tuple[tuple[str, str], ...]) -> str:
    return next((re.sub(theirs, own, name) for theirs, own in known if re.fullmatch(theirs, name)), name)
