"""``mae-pipe export``: a run's weights in the form of other code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae_pipe.contracts import Grid
from mae_pipe.disk import new_folder, write_whole, writing
from mae_pipe.errors import DiskError, RunError
from mae_pipe.interop import beit, huggingface
from mae_pipe.interop.leaving import model_of_run, ordered
from mae_pipe.interop.model import Model
from mae_pipe.weights import to_safetensors

_TIMM: dict[
    tuple[object, ...], str
] = {  # (width, depth, heads, patch) -> timm's name; others are written as changes of the first
    (768, 12, 12, 16): "vit_base_patch16_224",
    (192, 12, 3, 16): "vit_tiny_patch16_224",
    (384, 12, 6, 16): "vit_small_patch16_224",
    (1024, 24, 16, 16): "vit_large_patch16_224",
    (1280, 32, 16, 14): "vit_huge_patch14_224",
}


def send_out(
    run: Path, form: str, out: Path | None = None, *, features: str = "tokens", normalise: bool = False
) -> tuple[Path, list[str]]:
    """Write the newest weights of ``run`` as ``form``; returns where, and what a person should read.

    Args:
        out: a folder for timm and huggingface, a file for the others; default: RUN/export/FORM, with .pth or .onnx.
        features, normalise: of ONNX; see ``onnx.write``.

    Raises:
        RunError: the model cannot be said in that form.
        DiskError: ``out`` exists, or cannot be written.
    """
    model = model_of_run(run)
    out = out or run / "export" / {"official": "official.pth", "onnx": "model.onnx"}.get(form, form)
    if out.exists():
        raise DiskError(f"{out} exists already; choose another --out")
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    if form == "onnx":
        from mae_pipe.interop import onnx  # needs the extra

        return out, onnx.write(model, out, features=features, normalise=normalise)
    write: dict[str, Callable[[Model, Path], list[str]]] = {
        "timm": _timm,
        "huggingface": _huggingface,
        "official": _official,
    }
    return out, write[form](model, out)


def _official(model: Model, out: Path) -> list[str]:
    relative = model.encoder.positions.startswith("relative")
    _plain(model, "BEiT's code" if relative else "the official code")
    if model.head is not None and (model.head.pool == "mean") != (model.head.norm == "own"):
        raise RunError(
            "the official code knows a classifier of the class token, or of the mean with a norm of its own; this one "
            "is of the mean of normed tokens; export it with --to timm"
        )
    weights = ordered(model)
    if relative:
        weights = beit.from_official(weights, Grid(*model.grid), index=True)
    file = io.BytesIO()
    torch.save({"model": weights}, file)
    write_whole(out, file.getvalue())
    return _without(model)


def _timm(model: Model, out: Path) -> list[str]:
    shape, head = model.encoder, model.head
    relative = shape.positions.startswith("relative")
    if relative:
        _one_token(model, "timm's Beit")
    known = (shape.width, shape.depth, shape.heads, shape.patch)
    of_model: dict[str, Any] = {
        "img_size": list(model.data.sides),
        "patch_size": list(shape.sides),
        "in_chans": model.data.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": shape.mlp_ratio,
        "init_values": shape.layer_scale,
        "qk_norm": shape.qk_norm,
        "class_token": shape.class_tokens > 0,
        "reg_tokens": max(0, shape.class_tokens - 1),
        "global_pool": "avg" if shape.class_tokens == 0 or (head and head.pool == "mean") else "token",
        "fc_norm": head is not None and head.norm == "own",
    }
    of_model = _of_beit(of_model, model) if relative else of_model
    of_file = {
        "input_size": [model.data.channels, *model.data.sides],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": model.data.centre_share,
        "mean": list(model.data.mean),
        "std": list(model.data.std),
        "num_classes": 0 if head is None else len(head.classes),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "custom_load": False,
    }
    config: dict[str, Any] = {
        "architecture": "beit_base_patch16_224" if relative else _TIMM.get(known, "vit_base_patch16_224"),
        "num_classes": of_file["num_classes"],
        "num_features": shape.width,
        "global_pool": of_model["global_pool"],
        "model_args": of_model,
        "pretrained_cfg": of_file,
        **({} if head is None else {"label_names": list(head.classes)}),
    }
    # timm takes a state dict with a mask token for a DINOv2.
    weights = {n: w for n, w in model.weights.items() if not n.startswith(("decoder_", "mask_token"))}
    if relative:
        weights = beit.from_official(weights, Grid(*model.grid), index=False)
    with new_folder(out) as folder:
        write_whole(folder / "config.json", _json(config))
        write_whole(folder / "model.safetensors", to_safetensors(weights, {}))
    return ["timm has no decoder; it was left out"] if model.decoder else []


def _of_beit(of_vit: dict[str, Any], model: Model) -> dict[str, Any]:
    """What timm's Beit is made with, from what its ViT would be."""
    other = ("qk_norm", "class_token", "reg_tokens", "fc_norm")
    return {name: value for name, value in of_vit.items() if name not in other} | {
        "use_abs_pos_emb": False,
        "use_shared_rel_pos_bias": model.encoder.positions == "relative",
        "use_rel_pos_bias": model.encoder.positions == "relative_per_block",
        "use_fc_norm": of_vit["fc_norm"],
    }


def _huggingface(model: Model, out: Path) -> list[str]:
    if model.encoder.positions.startswith("relative"):
        raise RunError(
            "this model has relative positions, which transformers' ViT has not; export it with --to official or timm"
        )
    _plain(model, "transformers' ViT")
    shape, head, said = model.encoder, model.head, _without(model)
    (height, width), patch = model.data.sides, shape.sides[0]
    if head is not None and head.pool == "mean":
        raise RunError(
            "transformers' ViTForImageClassification looks at the class token, this model at the mean of the patches; "
            "export it with --to timm"
        )
    config: dict[str, Any] = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": int(shape.width * shape.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "image_size": height,
        "patch_size": patch,
        "num_channels": model.data.channels,
        "qkv_bias": True,
        "dtype": "float32",
    }
    if model.decoder is not None:
        config |= {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            "decoder_hidden_size": model.decoder.width,
            "decoder_num_hidden_layers": model.decoder.depth,
            "decoder_num_attention_heads": model.decoder.heads,
            "decoder_intermediate_size": int(model.decoder.width * model.decoder.mlp_ratio),
            "mask_ratio": model.ratio,
            "norm_pix_loss": model.target == "normalized_pixel",
        }
    elif head is not None:
        config |= {
            "architectures": ["ViTForImageClassification"],
            "id2label": {str(n): name for n, name in enumerate(head.classes)},
            "label2id": {name: n for n, name in enumerate(head.classes)},
        }
    else:
        said.append("load it with ViTModel.from_pretrained(FOLDER, add_pooling_layer=False): it has no pooler")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.data.mean),
        "image_std": list(model.data.std),
    }
    bare = model.decoder is None and head is None
    weights = huggingface.from_official(model.weights, prefix="" if bare else "vit.")
    with new_folder(out) as folder:
        write_whole(folder / "config.json", _json(config))
        write_whole(folder / "preprocessor_config.json", _json(processor))
        write_whole(folder / "model.safetensors", to_safetensors(weights, {}))
    return said


def _one_token(model: Model, where: str) -> None:
    """Refuse what no BEiT has."""
    shape = model.encoder
    for what, has in (
        (f"{shape.class_tokens} class tokens", shape.class_tokens != 1),
        ("a norm of queries and keys", shape.qk_norm),
    ):
        if has:
            raise RunError(f"this model has {what}, which {where} has not; export it with --to onnx")


def _plain(model: Model, where: str) -> None:
    """Refuse what neither the official code, BEiT's nor transformers has."""
    shape = model.encoder
    (height, width), (high, wide) = model.data.sides, shape.sides
    relative = shape.positions.startswith("relative")
    unlike = {
        f"{shape.class_tokens} class tokens": shape.class_tokens != 1,
        "layer scale": shape.layer_scale is not None and not relative,
        "a norm of queries and keys": shape.qk_norm,
        f"patches of {high} x {wide} pixels": high != wide,
        f"images of {height} x {width} pixels": height != width,
    }
    found = next((what for what, has in unlike.items() if has), None)
    if found:
        other = "onnx" if relative and not found.startswith(("images", "patches")) else "timm"
        raise RunError(f"this model has {found}, which {where} has not; export it with --to {other}")


def _without(model: Model) -> list[str]:
    return [f"the encoder alone was written: {model.without}"] if model.without else []


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
