"""Which family of names a state dict has, and what it is called officially."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mae_pipe.errors import DataError
from mae_pipe.interop import beit, huggingface, selfdistilled
from mae_pipe.interop.model import listed

Translate = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
_BLOCK = r"blocks\.\d+\.(norm[12]|attn\.(qkv|proj|[qk]_norm)|mlp\.fc[12])\.(weight|bias)"
_PLAIN = rf"cls_token|pos_embed|reg_token|patch_embed\.proj\.(weight|bias)|{_BLOCK}|blocks\.\d+\.ls[12]\.gamma"
_PLAIN += r"|norm\.(weight|bias)"


@dataclass(frozen=True)
class Family:
    """A way of naming weights.

    Attributes:
        about: for a person.
        marks: a name that only this family has.
        names: the names that it knows, to say which family is the closest.
        translate: to the official names, and the names that were left out on purpose.
    """

    about: str
    marks: re.Pattern[str]
    names: re.Pattern[str]
    translate: Translate


def _plain(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    return dict(weights), []


FAMILIES = {  # in the order in which they are looked for
    "beit": Family(
        "BEiT, BEiT v2",
        re.compile(
            r"(rel_pos_bias|blocks\.\d+\.attn"
            r"|(beit\.)?(shared_position_bias|(encoder|(encoder\.layer|layers)\.\d+(\.attention\.attention)?)"
            r"\.relative_position_bias))\.relative_position_bias_table"
        ),
        re.compile(
            rf"{_PLAIN}|(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_(bias_table|index)|mask_token|lm_head\..*|cls_pt_.*"
            r"|blocks\.\d+\.(gamma_[12]|attn\.[qkv]_bias)|fc_norm\..*|head\..*"
        ),
        beit.to_official,
    ),
    "moco": Family(
        "MoCo v3",
        re.compile(r"(module\.)?(base|momentum)_encoder\..*"),
        re.compile(rf"(module\.)?((base|momentum)_encoder\.({_PLAIN}|head\..*)|predictor\..*)"),
        selfdistilled.moco,
    ),
    "dinov2": Family(
        "DINOv2",
        re.compile(r"register_tokens|(module\.)?backbone\..*ls1\.gamma"),
        re.compile(rf"(backbone\.)?({_PLAIN}|register_tokens|mask_token)"),
        selfdistilled.dinov2,
    ),
    "dino": Family(
        "DINO",
        re.compile(r"(module\.)?backbone\..*"),
        re.compile(rf"(module\.)?(backbone\.({_PLAIN})|head\..*)"),
        selfdistilled.dino,
    ),
    "huggingface": Family(
        "transformers' ViTMAE, ViT",
        re.compile(r"(vit\.)?embeddings\..*|decoder\.decoder_.*"),
        re.compile(
            r"(vit\.)?(embeddings|encoder\.layer\.\d+|layers\.\d+|layernorm|pooler)\..*|classifier\..*|decoder\.(decoder_.*|mask_token)"
        ),
        huggingface.to_official,
    ),
    "official": Family(
        "the official MAE",
        re.compile(r"decoder_blocks\..*"),
        re.compile(rf"{_PLAIN}|mask_token|decoder_.*|fc_norm\..*|head\..*"),
        _plain,
    ),
    "timm": Family(
        "timm's VisionTransformer",
        re.compile(r"patch_embed\.proj\.weight"),
        re.compile(rf"{_PLAIN}|fc_norm\..*|head\..*"),
        _plain,
    ),
}


def recognise(weights: Mapping[str, Tensor], under: str, what: str) -> str:
    """The family of ``weights``, which lay ``under`` some keys of their file.

    Raises:
        DataError: there is none; the closest is named, with the names that it has not.
    """
    if "mask_token" in weights and "blocks.0.ls1.gamma" in weights:
        return "dinov2"
    for name, family in FAMILIES.items():
        if any(family.marks.fullmatch(each) for each in weights):
            # Without a decoder the official names are timm's; they differ in how the file is wrapped.
            return "official" if name == "timm" and under == "model" else name
    fits = {name: sum(bool(f.names.fullmatch(each)) for each in weights) for name, f in FAMILIES.items()}
    best = max(reversed(fits), key=lambda name: fits[name])  # where they tie, the plainer one
    unfit = [name for name in weights if not FAMILIES[best].names.fullmatch(name)]
    raise DataError(
        f"{what} has names of no known family ({', '.join(FAMILIES)}); the closest is {best}, which has no "
        f"{listed(unfit)}; rename them, or give --from if you know better"
    )
