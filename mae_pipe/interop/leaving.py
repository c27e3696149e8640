"""A run folder as a model that can travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae_pipe.errors import DataError, RunError
from mae_pipe.interop.model import Head, Model, check
from mae_pipe.interop.official import to_official
from mae_pipe.recipe import Downstream, EncoderShape, Pretrain
from mae_pipe.runs import read_recipe

PIXELS = ("pixel", "normalized_pixel")  # targets whose predictions other code knows how to read
_BATCH_NORM = ("head.norm.running_mean", "head.norm.running_var", "head.norm.num_batches_tracked")


def model_of_run(run: Path) -> Model:
    """The newest weights of a pretraining, probe or finetuning run.

    Raises:
        RunError: the run has no weights yet, they are damaged, or its head is none that other code has.
    """
    recipe = read_recipe(run)
    if isinstance(recipe, Pretrain):
        return _checked(_pretrained(run, recipe), run)
    if isinstance(recipe, Downstream):
        return _checked(_classifier(run, recipe), run)
    raise RunError(f"{run} is a {recipe.task} run; give a run of mae-pipe pretrain, probe or finetune")


def _pretrained(run: Path, recipe: Pretrain) -> Model:
    whole = run / "model.safetensors"
    if not whole.is_file():  # imported without a decoder
        encoder, _ = _read(run / "encoder.safetensors")
        return Model(encoder, recipe.encoder, recipe.data, without="the run has no decoder")
    if recipe.method != Pretrain().method:
        encoder, _ = _read(run / "encoder.safetensors")
        shape = recipe.encoder.model_copy(update={"mask_tokens": False})
        without = f"it was pretrained by {recipe.method.name!r}, so it has no decoder that other code knows"
        return Model(encoder, shape, recipe.data, without=without)
    weights, _ = _read(whole)
    without = ""
    if recipe.encoder.mask_tokens:
        without = "its encoder sees mask tokens, for which the decoder has none"
    elif recipe.target.name not in PIXELS:
        without = f"its decoder predicts {recipe.target.name!r}, no pixels"
    elif recipe.target.loss_on != "hidden":
        without = "its decoder learned from all patches, not from hidden ones"
    elif recipe.encoder.class_tokens != 1:
        without = f"its encoder has {recipe.encoder.class_tokens} class tokens, where other code has one"
    official = to_official({n: w for n, w in weights.items() if n != "encoder.mask_token"})
    if without:
        official = {n: w for n, w in official.items() if not n.startswith(("decoder_", "mask_token"))}
    return Model(
        official,
        recipe.encoder.model_copy(update={"mask_tokens": False}),
        recipe.data,
        decoder=None if without else recipe.decoder,
        target=recipe.target.name,
        ratio=recipe.mask.ratio,
        without=without,
    )


def _classifier(run: Path, recipe: Downstream) -> Model:
    weights, told = _read(run / "model.safetensors")
    if recipe.head.name != "linear":
        raise RunError(f"{run} has the head {recipe.head.name!r}; only linear heads are exported, so give another run")
    try:
        encoder = EncoderShape.model_validate_json(json.dumps(told["encoder"]))
        classes = tuple(map(str, told["classes"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{run}/model.safetensors does not say its encoder and classes; train it again") from error
    options = recipe.head.options
    pool: Literal["token", "mean"] = "token" if options.get("pool", "mean") == "token" else "mean"
    if pool == "token" and encoder.class_tokens > 1:
        raise RunError(f"{run} classifies the mean of {encoder.class_tokens} class tokens, which no other code does")
    if pool == "token" and options.get("layer_norm"):
        raise RunError(f"{run} norms its class token twice (head.options.layer_norm), which no other code does")
    if options.get("batch_norm"):
        weights = _folded(weights)
    found = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    found |= {n.replace("head.classify.", "head."): w for n, w in weights.items() if n.startswith("head.classify.")}
    found |= {n.replace("head.norm.", "fc_norm."): w for n, w in weights.items() if n.startswith("head.norm.")}
    head = Head(pool, "own" if options.get("layer_norm") else "encoder", classes)
    return Model(found, encoder.model_copy(update={"mask_tokens": False}), recipe.data, head=head)


def _folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Batch norm without scale and shift, as it is in evaluation, put into the linear layer after it."""
    mean, variance = (weights[name].double() for name in _BATCH_NORM[:2])
    matrix = weights["head.classify.weight"].double() / (variance + 1e-6).sqrt()
    bias = weights["head.classify.bias"].double() - matrix @ mean
    rest = {name: tensor for name, tensor in weights.items() if name not in _BATCH_NORM}
    return rest | {"head.classify.weight": matrix.float(), "head.classify.bias": bias.float()}


def _checked(model: Model, run: Path) -> Model:
    try:
        check(model, str(run))
    except DataError as error:
        raise RunError(str(error)) from error
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float32, and what the file says of them."""
    if not path.is_file():
        raise RunError(
            f"{path.parent} has no {path.name} yet; it is written with the first checkpoint, so let it go on"
        )
    try:
        with safe_open(path, "pt") as file:
            told = {n: json.loads(v) for n, v in (file.metadata() or {}).items() if n != "format"}
            weights = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); go on with the run, which writes it again") from error
    return {n: w.float() if w.dtype.is_floating_point else w for n, w in weights.items()}, told


def ordered(model: Model) -> dict[str, Tensor]:
    """The weights in the order of the official code's state dict."""
    first = (
        "cls_token",
        "pos_embed",
        "mask_token",
        "decoder_pos_embed",
        "patch_embed.",
        "blocks.",
        "norm.",
        "fc_norm.",
    )
    last = ("head.", "decoder_embed.", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
    inside = ("norm1.", "attn.qkv.", "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.")

    def place(name: str) -> tuple[int, int, int, int]:
        parts = name.split(".")
        number = int(parts[1]) if parts[0].endswith("blocks") else 0
        within = next((n for n, start in enumerate(inside) if number >= 0 and f".{start}" in name), 0)
        group = next((n for n, start in enumerate((*first, *last)) if name.startswith(start)), len(first + last))
        return group, number, within, int(name.endswith("bias"))

    return {name: torch.clone(model.weights[name]).contiguous() for name in sorted(model.weights, key=place)}
