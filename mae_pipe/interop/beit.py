"""BEiT (Bao et al. 2022) and BEiT v2 (Peng et al. 2022) as their authors, timm and transformers name them.

Names differ, and keys have no bias: one would add the same number to all that a query's softmax compares.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_pipe.contracts import Grid
from mae_pipe.interop.transformers_beit import as_authors
from mae_pipe.positions import BIAS, OF_CLASS
from mae_pipe.relative import distances

_KERNELS = "patch_embed.proj.weight", "patch_embeddings.projection.weight"
_TABLE = "relative_position_bias_table"
_INDEX = "relative_position_index"
_ASIDE = re.compile(r"mask_token|lm_head\..*|cls_pt_.*")  # of pretraining alone


def to_official(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Under the official names, where a bias keeps the name that it has here, and what was left out on purpose.

    What has no known name keeps its own, for the caller to refuse; so does an index that does not say which row of the
    table two patches have here.
    """
    weights = as_authors(weights) if any("embeddings." in name for name in weights) else weights
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    left_out = [name for name in weights if _ASIDE.fullmatch(name)]
    for name, tensor in weights.items():
        third = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])_bias", name)
        if third:
            thirds.setdefault(third[1], {})[third[2]] = tensor
        elif name.endswith(f".{_INDEX}") and _is_ours(tensor, weights.get(name.replace(_INDEX, _TABLE))):
            continue
        elif name not in left_out:
            own = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
            found[re.sub(rf"^(blocks\.\d+)\.attn\.{_TABLE}$", rf"\1.{BIAS}", own)] = tensor
    for attention, parts in thirds.items():
        if {"q", "v"} <= set(parts):
            keys = parts.get("k", torch.zeros_like(parts["q"]))
            found[f"{attention}.qkv.bias"] = torch.cat([parts["q"], keys, parts["v"]])
        else:
            found |= {f"{attention}.{part}_bias": tensor for part, tensor in parts.items()}
    return found, left_out


def from_official(weights: Mapping[str, Tensor], grid: Grid, *, index: bool) -> dict[str, Tensor]:
    """Under the authors' names, which are timm's; with ``index`` as the authors keep it beside every table."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith("attn.qkv.bias"):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                if part != "k":
                    found[name.replace("qkv.bias", f"{part}_bias")] = third.contiguous()
            continue
        own = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        own = re.sub(rf"^(blocks\.\d+)\.{re.escape(BIAS)}$", rf"\1.attn.{_TABLE}", own)
        found[own] = tensor
        if index and own.endswith(_TABLE):
            found[own.replace(_TABLE, _INDEX)] = distances(grid, 1, tensor.device)
    return found


def statistics_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and std of the published models of colours; of v2, which its own layers tell, they are the usual ones."""
    kernel = next((tensor for name, tensor in weights.items() if name.endswith(_KERNELS)), None)
    colours = kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 3
    v2 = any(name.startswith("cls_pt_") for name in weights)
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3} if colours and not v2 else {}


def side_of(table: Tensor) -> int | None:
    """Rows and columns of the square grid that [distances + 3, A] biases are of; None of any other."""
    side = math.isqrt(max(0, len(table) - OF_CLASS))
    return (side + 1) // 2 if side % 2 and side**2 == len(table) - OF_CLASS else None


def _is_ours(index: Tensor, table: Tensor | None) -> bool:
    side = None if table is None or table.dim() != 2 else side_of(table)
    return side is not None and torch.equal(index, distances(Grid(side, side), 1, index.device))
