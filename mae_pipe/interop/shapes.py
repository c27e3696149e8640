"""The shapes of a model, from those of its weights and from what stands beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mae_pipe.errors import DataError
from mae_pipe.interop.beit import side_of
from mae_pipe.interop.model import Head, Model
from mae_pipe.positions import BIAS
from mae_pipe.recipe import Data, DecoderShape, EncoderShape

HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}  # of published ViTs, by width
MOCO_HEADS = {384: 12}  # its ViT-S alone has heads of 32 numbers
DECODER_HEADS = {512: 16}  # of the official decoder
FIRST_SCALE = 1e-5  # of layer scale, which a run begins with and an imported one has behind it


@dataclass(frozen=True)
class Hints:
    """What weights do not say of themselves; None: it is not known.

    Attributes:
        size: H and W, pixels.
        classes: names of a classifier's classes.
        token: what a classifier without a norm of its own pools: its class token, or not.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None
    classes: tuple[str, ...] | None = None
    token: bool = True
    target: str = "normalized_pixel"
    ratio: float = 0.75


def model_of(weights: Mapping[str, Tensor], hints: Hints, family: str, what: str) -> Model:
    """The model that ``weights``, under the official names, are of; the caller checks that they all are.

    Raises:
        DataError: a weight that says a shape is missing, or the shapes are of no ViT that is known here.
    """
    kernel = _need(weights, "patch_embed.proj.weight", 4, what)
    width, channels, high, wide = kernel.shape
    layer = _need(weights, "blocks.0.mlp.fc1.weight", 2, what)
    tokens = sum(weights[n].shape[1] for n in ("cls_token", "reg_token") if n in weights and weights[n].dim() == 3)
    given, bias = dict(weights), next((name for name in weights if name.endswith(BIAS)), None)
    if bias is None:
        table = _need(weights, "pos_embed", 3, what)
        if not _is_square(table.shape[1] - tokens) and _is_square(table.shape[1]):  # timm's no_embed_class
            given["pos_embed"] = torch.cat([table.new_zeros(1, tokens, table.shape[2]), table], dim=1)
        size = hints.size or _size(given["pos_embed"].shape[1] - tokens, (high, wide), what)
    else:
        size = hints.size or _size_of_distances(_need(weights, bias, 2, what), (high, wide), what)
        hints = replace(hints, heads=hints.heads or weights[bias].shape[1])
    data = {"mean": hints.mean, "std": hints.std, "centre_share": hints.crop, "size": _one(size)}
    if hints.mean is None and channels != len(Data().mean):
        data |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    known = HEADS | (MOCO_HEADS if family == "moco" else {})
    scaled = "blocks.0.ls1.gamma" in weights
    try:
        encoder = EncoderShape(
            width=width,
            depth=_depth(weights, "blocks"),
            heads=hints.heads or _heads(known, width, "--heads", what),
            patch=_one((high, wide)),
            mlp_ratio=_ratio(layer.shape[0], width),
            class_tokens=tokens,
            qk_norm="blocks.0.attn.q_norm.weight" in weights,
            layer_scale=FIRST_SCALE if scaled else None,
            positions="sincos" if bias is None else "relative" if bias == BIAS else "relative_per_block",
        )
        decoder = _decoder(weights, hints, what)
        fitting = Data(**{name: value for name, value in data.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise DataError(f"{what} is no ViT that fits: {error.errors()[0]['msg']}") from error
    head = _head(weights, hints, what)
    return Model(given, encoder, fitting, decoder=decoder, head=head, target=hints.target, ratio=hints.ratio)


def _head(weights: Mapping[str, Tensor], hints: Hints, what: str) -> Head | None:
    if "head.weight" not in weights:
        return None
    count = len(weights["head.weight"])
    if hints.classes is not None and len(hints.classes) != count:
        raise DataError(
            f"{what} has {count} classes, and {len(hints.classes)} names of them are given; give one for each"
        )
    own = "fc_norm.weight" in weights
    names = hints.classes or tuple(map(str, range(len(weights["head.weight"]))))
    return Head("mean" if own or not hints.token else "token", "own" if own else "encoder", names)


def _decoder(weights: Mapping[str, Tensor], hints: Hints, what: str) -> DecoderShape | None:
    if not any(name.startswith("decoder_") for name in weights):
        return None
    width = len(_need(weights, "decoder_embed.weight", 2, what))
    layer = weights.get("decoder_blocks.0.mlp.fc1.weight")
    return DecoderShape(
        width=width,
        depth=_depth(weights, "decoder_blocks"),
        heads=hints.decoder_heads or _heads(DECODER_HEADS, width, "--decoder-heads", what),
        mlp_ratio=4.0 if layer is None else _ratio(len(layer), width),
    )


def _need(weights: Mapping[str, Tensor], name: str, dimensions: int, what: str) -> Tensor:
    if name not in weights:
        raise DataError(f"{what} lacks the weight {name!r} and so is no whole ViT; get the whole file")
    if weights[name].dim() != dimensions:
        raise DataError(
            f"{what} has a {name!r} of {weights[name].dim()} dimensions, expected {dimensions}; get it again"
        )
    return weights[name]


def _depth(weights: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks there are; a number that a block skips is found by the check of all names."""
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in weights)
    return len({match[1] for match in found if match})


def _heads(known: Mapping[int, int], width: int, option: str, what: str) -> int:
    if width not in known:
        raise DataError(f"{what} is {width} wide, which does not say its attention heads; give them with {option}")
    return known[width]


def _ratio(hidden: int, width: int) -> float:
    """A ratio of which timm makes ``hidden`` again, rounding down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _size(patches: int, patch: tuple[int, int], what: str) -> tuple[int, int]:
    if not _is_square(patches):
        raise DataError(
            f"{what} has positions of {patches} patches, which make no square; give a model of square images"
        )
    side = math.isqrt(patches)
    return side * patch[0], side * patch[1]


def _size_of_distances(table: Tensor, patch: tuple[int, int], what: str) -> tuple[int, int]:
    side = side_of(table)
    if side is None:
        raise DataError(
            f"{what} has biases of {len(table)} distances, which are of no square; give one of square images"
        )
    return side * patch[0], side * patch[1]


def _one(sides: tuple[int, int]) -> int | tuple[int, int]:
    return sides[0] if sides[0] == sides[1] else sides


def hints_beside(config: Mapping[str, Any], processor: Mapping[str, Any], arguments: Mapping[str, Any]) -> Hints:
    """What Hugging Face's or timm's config, an image processor and the training's arguments say."""
    timms, of_model = _table(config, "pretrained_cfg"), _table(config, "model_args")
    size, labels = config.get("image_size"), config.get("id2label")
    pixels = config.get("norm_pix_loss", arguments.get("norm_pix_loss", True))
    share, pool = timms.get("crop_pct"), config.get("global_pool", "token")
    return Hints(
        heads=_whole(config.get("num_attention_heads", of_model.get("num_heads"))),
        decoder_heads=_whole(config.get("decoder_num_attention_heads")),
        size=(size, size) if _whole(size) else tuple(size) if isinstance(size, list) and len(size) == 2 else None,
        mean=_three(processor.get("image_mean", timms.get("mean"))),
        std=_three(processor.get("image_std", timms.get("std"))),
        crop=share if isinstance(share, float) else None,
        classes=_classes(labels, config.get("label_names")),
        token=pool != "avg",
        target="normalized_pixel" if pixels else "pixel",
        ratio=float(config.get("mask_ratio", arguments.get("mask_ratio", 0.75))),
    )


def _table(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _three(value: Any) -> tuple[float, ...] | None:
    return tuple(map(float, value)) if isinstance(value, list) else None


def _classes(numbered: Any, listed: Any) -> tuple[str, ...] | None:
    """Hugging Face's names by number, or timm's in order."""
    if isinstance(numbered, dict) and all(str(n) in numbered for n in range(len(numbered))):
        return tuple(str(numbered[str(n)]) for n in range(len(numbered)))
    return tuple(map(str, listed)) if isinstance(listed, list) else None
