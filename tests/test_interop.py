"""Weights come in from other code and go out to it without a bit changed, and compute there what they compute here."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae_pipe import cli, runs
from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, fill, read_weights
from mae_pipe.errors import DataError, DiskError, MaePipeError, RunError
from mae_pipe.interop import exports
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.families import FAMILIES
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.leaving import model_of_run
from mae_pipe.interop.model import Head, Model, shapes_of
from mae_pipe.interop.official import own_name
from mae_pipe.interop.selfdistilled import moco_positions
from mae_pipe.masking import Mask
from mae_pipe.positions import sincos_positions
from mae_pipe.recipe import Data, DecoderShape, Downstream, EncoderShape, Pretrain
from mae_pipe.reconstruct import load
from mae_pipe.tasks import Pretraining, view_of

Weights = dict[str, Tensor]
TINY = Model({}, EncoderShape(width=48, depth=2, heads=4, patch=8), Data(size=32))
WHOLE = Model({}, TINY.encoder, TINY.data, decoder=DecoderShape(width=32, depth=2, heads=4))
PATHS = {  # widths and heads of the published models
    "base": (EncoderShape(depth=12), DecoderShape(depth=8), 224),
    "large": (EncoderShape(width=1024, depth=2, heads=16), DecoderShape(depth=1), 224),
    "huge": (EncoderShape(width=1280, depth=2, heads=16, patch=14), DecoderShape(depth=1), 224),
}
HEADS = {"heads": 4, "decoder_heads": 4}


def drawn(model: Model, seed: int = 0) -> Weights:
    """Random weights, positions too, of the sizes that trained ones have."""
    draw = torch.Generator().manual_seed(seed)
    return {n: 0.05 * torch.randn(s, generator=draw) + float(_scale(n)) for n, s in shapes_of(model).items()}


def _scale(name: str) -> bool:
    return "norm" in name and name.endswith("weight")


def classifier(pool: Any = "mean", norm: Any = "own", classes: int = 7) -> Model:
    return Model({}, TINY.encoder, TINY.data, head=Head(pool, norm, tuple(map(str, range(classes)))))


def saved(weights: Any, path: Path) -> Path:
    """A .pth file."""
    torch.save(weights, path)
    return path


def in_and_out(weights: Any, tmp_path: Path, form: str, **options: Any) -> Path:
    """An official file, imported and exported again."""
    bring_in(saved(weights, tmp_path / "in.pth"), tmp_path / "run", **(HEADS | options))
    return send_out(tmp_path / "run", form, tmp_path / f"out-{form}")[0]


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same names with the same bytes."""
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def features_of(run: Path, pixels: Tensor) -> Tensor:
    """What a probe's encoder computes of normalised images."""
    recipe = runs.read_recipe(run)
    assert isinstance(recipe, Pretrain)
    encoder = build_encoder(recipe.encoder, recipe.data.sides, channels=recipe.data.channels)
    fill(encoder, read_weights(run)[0], view_of(recipe.data, recipe.encoder).grid)
    with torch.no_grad():
        out: Tensor = encoder.eval()(pixels)
    return out


def logits_of(run: Path, pixels: Tensor) -> Tensor:
    """What a finetuned run computes, its head built by the catalog."""
    recipe = runs.read_recipe(run)
    assert isinstance(recipe, Downstream)
    model = model_of_run(run)
    assert model.head is not None
    pretrained = Pretrain(data=recipe.data, encoder=model.encoder)
    task = Classification.from_recipe(recipe, pretrained, None, Catalog(), classes=len(model.head.classes))
    task.load_state_dict(load_file(run / "model.safetensors"))
    with torch.no_grad():
        out: Tensor = task.eval().head(task.tokens_of(pixels))
    return out


def near(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < within


def test_official_files_come_in_and_go_out_byte_for_byte(tmp_path: Path) -> None:
    weights = drawn(WHOLE)
    about = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.6, blr=1e-3)
    file = saved({"model": weights, "optimizer": {"state": {}}, "epoch": 3, "args": about}, tmp_path / "a.pth")
    arrival = bring_in(file, tmp_path / "run", **HEADS)
    assert arrival.family == "official"
    assert "optimizer, epoch, args" in arrival.said[0]
    recipe, task, _ = load(tmp_path / "run", Catalog())
    assert (recipe.target.name, recipe.mask.ratio, recipe.encoder, recipe.decoder) == (
        "pixel",
        0.6,
        WHOLE.encoder,
        WHOLE.decoder,
    )
    same({str(own_name(n)): w for n, w in weights.items()}, task.state_dict())
    out, _ = send_out(tmp_path / "run", "official")
    same(weights, torch.load(out, weights_only=True)["model"])
    record = runs.about(tmp_path / "run")["imported"]
    assert record["family"] == "official" and len(record["sha256"]["a.pth"]) == 64


@pytest.mark.parametrize("model", [TINY, classifier(), classifier("token", "encoder")])
def test_encoders_and_classifiers_come_in_and_go_out_byte_for_byte(tmp_path: Path, model: Model) -> None:
    weights = drawn(model)
    out = in_and_out({"model": weights}, tmp_path, "official")
    same(weights, torch.load(out, weights_only=True)["model"])
    out, _ = send_out(tmp_path / "run", "timm")
    same(weights, load_file(out / "model.safetensors"))
    again = bring_in(out, tmp_path / "again")  # heads are in its config
    assert again.model.encoder == TINY.encoder
    same(again.model.weights, weights)


def test_exported_names_are_the_official_ones_in_their_order(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "shared" / "golden.json"
    if not golden.is_file():
        pytest.skip(f"the golden values are not at {golden}")
    keys = json.loads(golden.read_text())["pretrain_tiny_r75_pix"]["keys"]
    out = in_and_out({"model": drawn(WHOLE)}, tmp_path, "official")
    assert list(torch.load(out, weights_only=True)["model"]) == keys


@pytest.mark.parametrize("kind", ["encoder", "mean", "token", "normed mean"])
def test_timm_loads_an_export_and_computes_the_same(tmp_path: Path, kind: str) -> None:
    model = {
        "encoder": WHOLE,
        "mean": classifier(),
        "token": classifier("token", "encoder"),
        "normed mean": classifier("mean", "encoder"),
    }[kind]
    weights = drawn(model)
    if kind == "normed mean":  # no official file has it; timm calls it global_pool="avg", fc_norm=False
        plain = VisionTransformer(**_timms(TINY), num_classes=7, global_pool="avg", fc_norm=False)
        plain.load_state_dict(weights)
        save_file(plain.state_dict(), tmp_path / "model.safetensors")
        config = {"architecture": "vit_base_patch16_224", "global_pool": "avg", "model_args": {"num_heads": 4}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        bring_in(tmp_path / "model.safetensors", tmp_path / "run")
        out = send_out(tmp_path / "run", "timm", tmp_path / "out")[0]
    else:
        out = in_and_out({"model": weights}, tmp_path, "timm")
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert theirs.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]
    with torch.no_grad():
        if kind == "encoder":
            near(features_of(tmp_path / "run", images(32)), theirs.forward_features(images(32)))
        else:
            near(logits_of(tmp_path / "run", images(32)), theirs(images(32)))
    if kind in ("encoder", "token"):  # the default pooling
        plain = VisionTransformer(**_timms(TINY), num_classes=0 if kind == "encoder" else 7)
        timm.models.load_checkpoint(plain, str(out / "model.safetensors"), strict=True)


def _timms(model: Model) -> dict[str, Any]:
    shape = model.encoder
    return {
        "img_size": model.data.sides,
        "patch_size": shape.sides,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
    }


def test_registers_and_layer_scale_travel_to_timm_and_back(tmp_path: Path) -> None:
    """timm's own model: register tokens, of which no positions are known; layer scale; a norm of queries."""
    theirs = VisionTransformer(
        **_timms(TINY), num_classes=0, reg_tokens=3, no_embed_class=True, init_values=0.3, qk_norm=True
    )
    given = {n: w.detach() + 0.05 * torch.randn(w.shape) for n, w in theirs.state_dict().items()}
    theirs.load_state_dict(given)
    save_file(given, tmp_path / "in.safetensors")
    arrival = bring_in(tmp_path / "in.safetensors", tmp_path / "run", heads=4)
    assert arrival.family == "timm"
    out = send_out(tmp_path / "run", "timm")[0]
    back = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        wanted = theirs.eval().forward_features(images(32))
        near(features_of(tmp_path / "run", images(32)), wanted)
        near(back.forward_features(images(32)), wanted)
    with pytest.raises(RunError, match="4 class tokens"):
        send_out(tmp_path / "run", "official", tmp_path / "no.pth")
