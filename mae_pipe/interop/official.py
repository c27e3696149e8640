"""The names of weights elsewhere: ours <-> the official MAE checkpoints; encoder names are timm's.

Only names differ: every tensor has the same shape and meaning (docs/recipes.md lists the sources).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_DECODER = {  # ours, official; a trailing dot stands for all names below
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.embed.": "decoder_embed.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.predict.": "decoder_pred.",
}
_ENCODER = ("cls_token", "reg_token", "pos_embed", "rel_pos_bias.", "patch_embed.", "blocks.", "norm.")


def official_name(name: str) -> str | None:
    """The official name of one of ``MaskedAutoencoder``'s weights; None for a target's, which has none."""
    if name.startswith("encoder."):
        return name.removeprefix("encoder.")
    return next((name.replace(ours, theirs, 1) for ours, theirs in _DECODER.items() if name.startswith(ours)), None)


def own_name(name: str) -> str | None:
    """The name in ``MaskedAutoencoder`` of an official weight; None for what is neither encoder nor decoder."""
    if name.startswith(_ENCODER):
        return f"encoder.{name}"
    return next((name.replace(theirs, ours, 1) for ours, theirs in _DECODER.items() if name.startswith(theirs)), None)


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``MaskedAutoencoder``'s state dict under official names: what is in a ``*_full`` checkpoint."""
    return {theirs: tensor for name, tensor in weights.items() if (theirs := official_name(name)) is not None}
