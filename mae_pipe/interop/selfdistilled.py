"""DINO, DINOv2 and MoCo v3: plain ViTs inside of a larger checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mae_pipe.positions import sincos_positions

MOCO_SIZE = 224  # pixels; the only size of its published models


def dino(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone of DINO's teacher; the projection head is left out by name."""
    plain = {name.removeprefix("module."): (name, tensor) for name, tensor in weights.items()}
    aside = ("head.", "dino_head.", "ibot_head.")
    left_out = [full for name, (full, _) in plain.items() if name.startswith(aside)]
    found = {name.removeprefix("backbone."): w for name, (_, w) in plain.items() if not name.startswith(aside)}
    return found, left_out


def dinov2(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """DINOv2: register tokens have no positions, so their rows of the table are zeros; the mask token is left out."""
    found, left_out = dino(weights)
    if "mask_token" in found:
        left_out.append("mask_token")
        del found["mask_token"]
    registers = found.pop("register_tokens", None)
    if registers is not None and "pos_embed" in found:
        table = found["pos_embed"]
        found["reg_token"] = registers
        found["pos_embed"] = torch.cat([table[:, :1], torch.zeros_like(registers), table[:, 1:]], dim=1)
    return found, left_out


def moco(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """MoCo v3's base encoder, without its projector (``head.``), predictor and momentum encoder.

    Its table of positions is in the checkpoint and is taken as it is. Where one is missing it is made anew as MoCo
    makes it: the halves of rows and columns are the other way round than MAE's.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    base = {n.removeprefix("base_encoder."): t for n, t in plain.items() if n.startswith("base_encoder.")}
    aside = ("base_encoder.head.", "momentum_encoder.", "predictor.")
    left_out = [name for name in plain if name.startswith(aside)]
    found = {n: t for n, t in base.items() if not n.startswith("head.")}
    found |= {n: t for n, t in plain.items() if not n.startswith(("base_encoder.", *aside))}
    kernel = found.get("patch_embed.proj.weight")
    if "pos_embed" not in found and kernel is not None:
        found["pos_embed"] = moco_positions(len(kernel), MOCO_SIZE // kernel.shape[-1])
    return found, left_out


def moco_positions(width: int, side: int) -> Tensor:
    """[1, 1 + side**2, D]: numbers [0, D/2) tell the row and [D/2, D) the column."""
    first, second = sincos_positions(width, side, side).chunk(2, dim=2)
    return torch.cat([second, first], dim=2)
