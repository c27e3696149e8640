"""Weights come from the official code and timm and go there without a bit changed, and compute the same."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from mae_pipe import runs
from mae_pipe.catalog import Catalog
from mae_pipe.errors import RunError
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.model import Model
from mae_pipe.interop.official import own_name
from mae_pipe.recipe import Data, DecoderShape, Pretrain
from mae_pipe.reconstructing import load
from mae_pipe.tasks import MaskedAutoencoder
from mae_pipe.weights import to_safetensors

from .travelling import (
    HEADS,
    TINY,
    WHOLE,
    classifier,
    drawn,
    features_of,
    images,
    in_and_out,
    logits_of,
    near,
    same,
    saved,
)


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
    assert (record["family"], len(record["sha256"]["a.pth"])) == ("official", 64)


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
    theirs: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
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
    theirs: Any = VisionTransformer(
        **_timms(TINY), num_classes=0, reg_tokens=3, no_embed_class=True, init_values=0.3, qk_norm=True
    )
    given = {n: w.detach() + 0.05 * torch.randn(w.shape) for n, w in theirs.state_dict().items()}
    theirs.load_state_dict(given)
    save_file(given, tmp_path / "in.safetensors")
    arrival = bring_in(tmp_path / "in.safetensors", tmp_path / "run", heads=4)
    assert arrival.family == "timm"
    out = send_out(tmp_path / "run", "timm")[0]
    back: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        wanted = theirs.eval().forward_features(images(32))
        near(features_of(tmp_path / "run", images(32)), wanted)
        near(back.forward_features(images(32)), wanted)
    with pytest.raises(RunError, match="4 class tokens"):
        send_out(tmp_path / "run", "official", tmp_path / "no.pth")


@pytest.mark.parametrize(
    ("data", "patch", "why"),
    [(Data(size=(32, 64)), 8, "images of 32 x 64"), (Data(size=32), (8, 4), "patches of 8 x 4")],
)
def test_what_is_not_square_goes_to_timm_alone(tmp_path: Path, data: Data, patch: Any, why: str) -> None:
    small = DecoderShape(width=32, depth=1, heads=4)
    chosen = Pretrain(decoder=small, encoder=TINY.encoder.model_copy(update={"patch": patch}), data=data)
    weights = MaskedAutoencoder.from_recipe(chosen, Catalog()).state_dict()
    (tmp_path / "recipe.json").write_text(chosen.model_dump_json())
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(weights, {}))
    for form in ("official", "huggingface"):
        with pytest.raises(RunError, match=f"{why}.*--to timm"):
            send_out(tmp_path, form)
    theirs: Any = timm.create_model(f"local-dir:{send_out(tmp_path, 'timm')[0]}", pretrained=True).eval()
    pixels = torch.randn(2, 3, *data.sides)
    encoder = MaskedAutoencoder.from_recipe(chosen, Catalog()).encoder.eval()
    with torch.no_grad():
        near(encoder(pixels), theirs.forward_features(pixels))
