"""transformers reads what we write and computes the same of it, and we read what transformers writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from mae_pipe.catalog import Catalog
from mae_pipe.errors import DataError, RunError
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.huggingface import from_official
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.model import Model
from mae_pipe.recipe import Data, DecoderShape, EncoderShape
from mae_pipe.reconstructing import load
from mae_pipe.tasks import MaskedAutoencoder

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

SHAPES = {  # widths and heads of the published models; L and H not as deep, and their decoders neither
    "base": Model({}, EncoderShape(), Data(), decoder=DecoderShape()),
    "large": Model({}, EncoderShape(width=1024, depth=3, heads=16), Data(), decoder=DecoderShape(depth=2)),
    "huge": Model({}, EncoderShape(width=1280, depth=3, heads=16, patch=14), Data(), decoder=DecoderShape(depth=2)),
}


def loaded(kind: Any, folder: Path, **options: Any) -> Any:
    """A model of transformers, of which every weight was in the folder and no other."""
    model, about = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="sdpa", **options)
    assert not any(about[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    return model.eval()


def losses(run: Path, folder: Path, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Our loss and transformers', of the same masks."""
    _, task, _ = load(run, Catalog())
    assert isinstance(task, MaskedAutoencoder)
    noise = torch.rand(len(pixels), task.grid.size, generator=torch.Generator().manual_seed(2))
    theirs = loaded(ViTMAEForPreTraining, folder)
    with torch.no_grad():
        return task.loss_of(pixels, noise), theirs(pixels, noise=noise).loss


@pytest.mark.parametrize("norm", [True, False])
def test_transformers_computes_our_loss_and_our_features(tmp_path: Path, norm: bool) -> None:
    out = in_and_out({"model": drawn(WHOLE)}, tmp_path, "huggingface", target="normalized_pixel" if norm else "pixel")
    assert json.loads((out / "config.json").read_text())["norm_pix_loss"] is norm
    near(*losses(tmp_path / "run", out, images(32)))
    vit = loaded(ViTMAEForPreTraining, out).vit
    vit.config.mask_ratio = vit.embeddings.config.mask_ratio = 0.0
    in_order = torch.arange(16).repeat(2, 1) / 16.0
    with torch.no_grad():
        near(features_of(tmp_path / "run", images(32)), vit(images(32), noise=in_order).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_compute_the_same_in_transformers_and_timm(tmp_path: Path, name: str) -> None:
    import timm

    model = SHAPES[name]
    weights = drawn(model)
    for key in weights:  # as large as those of a trained model, whose features stay of the order of one
        weights[key] = weights[key] if "norm" in key else 0.4 * weights[key]
    out = in_and_out({"model": weights}, tmp_path, "huggingface", heads=None, decoder_heads=None)
    assert bring_in(out, tmp_path / "again").model.encoder == model.encoder
    near(*losses(tmp_path / "run", out, images(224, 1)))
    theirs: Any = timm.create_model(f"local-dir:{send_out(tmp_path / 'run', 'timm')[0]}", pretrained=True).eval()
    with torch.no_grad():
        near(features_of(tmp_path / "run", images(224, 1)), theirs.forward_features(images(224, 1)))


def test_a_whole_model_goes_to_transformers_and_back_byte_for_byte(tmp_path: Path) -> None:
    weights = drawn(WHOLE)
    out = in_and_out({"model": weights}, tmp_path, "huggingface")
    names = load_file(out / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names  # version 4's
    for step, kind in enumerate(("as exported", "as version 5 saves it", "as version 5 holds it")):
        folder = tmp_path / f"{step}"
        if step == 0:
            folder = out
        else:
            model = loaded(ViTMAEForPreTraining, out)
            model.save_pretrained(folder)
            if step == 2:
                save_file({n: w.contiguous() for n, w in model.state_dict().items()}, folder / "model.safetensors")
        arrival = bring_in(folder, tmp_path / f"back {step}")
        assert arrival.family == "huggingface", kind
        same(weights, arrival.model.weights)
        assert arrival.model.decoder == WHOLE.decoder
        again = send_out(tmp_path / f"back {step}", "official")[0]
        same(weights, torch.load(again, weights_only=True)["model"])
    processor = AutoImageProcessor.from_pretrained(out)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_sharded_folders_are_read_whole(tmp_path: Path) -> None:
    weights = drawn(WHOLE)
    out = in_and_out({"model": weights}, tmp_path, "huggingface")
    loaded(ViTMAEForPreTraining, out).save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    same(weights, bring_in(tmp_path / "parts", tmp_path / "back").model.weights)
    next((tmp_path / "parts").glob("*.safetensors")).unlink()
    with pytest.raises(DataError, match="there is no file"):
        bring_in(tmp_path / "parts", tmp_path / "no")


def test_a_classifier_of_the_class_token_goes_to_transformers_and_back(tmp_path: Path) -> None:
    weights = drawn(classifier("token", "encoder"))
    out = in_and_out({"model": weights}, tmp_path, "huggingface")
    with torch.no_grad():
        near(logits_of(tmp_path / "run", images(32)), loaded(ViTForImageClassification, out)(images(32)).logits)
    config = json.loads((out / "config.json").read_text())
    config["id2label"] = {str(n): f"class {n}" for n in range(7)}
    (out / "config.json").write_text(json.dumps(config))
    back = bring_in(out, tmp_path / "back").model
    same(weights, back.weights)
    assert back.head is not None
    assert back.head.classes == tuple(f"class {n}" for n in range(7))


def test_an_encoder_alone_is_a_vit_without_pooler(tmp_path: Path) -> None:
    weights = drawn(TINY)
    out = in_and_out({"model": weights}, tmp_path, "huggingface")
    model = loaded(ViTModel, out, add_pooling_layer=False)
    with torch.no_grad():
        near(features_of(tmp_path / "run", images(32)), model(images(32)).last_hidden_state)
    pooled = ViTModel(model.config)  # with a pooler that nobody trained
    pooled.load_state_dict(model.state_dict(), strict=False)
    pooled.save_pretrained(tmp_path / "pooled")
    arrival = bring_in(tmp_path / "pooled", tmp_path / "back")
    assert "pooler.dense.bias" in arrival.said[0]
    same(weights, arrival.model.weights)


def test_a_mean_of_patches_is_no_classifier_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"looks at the class token.*--to timm"):
        in_and_out({"model": drawn(classifier())}, tmp_path, "huggingface")


def test_the_configs_epsilon_is_said_or_refused(tmp_path: Path) -> None:
    """What transformers computes with 1e-12 of the same weights is near, but not the same."""
    out = in_and_out({"model": drawn(WHOLE)}, tmp_path, "huggingface")
    before = out / "config.json"
    config = json.loads(before.read_text())
    assert config["layer_norm_eps"] == 1e-6
    before.write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    assert any("computed with 1e-06" in said for said in bring_in(out, tmp_path / "back").said)
    for change, why in (({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"), ({"hidden_act": "relu"}, "'relu'")):
        before.write_text(json.dumps(config | change))
        with pytest.raises(DataError, match=why):
            bring_in(out, tmp_path / "no")


def test_a_third_of_queries_keys_and_values_is_missed(tmp_path: Path) -> None:
    weights = from_official(drawn(TINY))
    del weights["vit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(DataError, match=re.escape("blocks.1.attn.qkv.weight (query alone)")):
        bring_in(saved(weights, tmp_path / "in.pth"), tmp_path / "run", **HEADS)
