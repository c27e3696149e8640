"""BEiT comes in from its authors' checkpoints and from timm's, and goes out again, computing what timm's computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import Tensor

from mae_pipe import runs
from mae_pipe.errors import DataError, RunError
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.leaving import model_of_run
from mae_pipe.positions import BIAS
from mae_pipe.recipe import Pretrain

from .travelling import features_of, images, logits_of, near, saved

Weights = dict[str, Tensor]
WAYS = ["relative", "relative_per_block"]


def beit(positions: str, **options: Any) -> Beit:
    """timm's, with random weights everywhere."""
    model = Beit(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0,
           "global_pool": "token", "init_values": 0.1, "use_abs_pos_emb": False,
           "use_shared_rel_pos_bias": positions == "relative", "use_rel_pos_bias": positions != "relative", **options}
    ).eval()  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def of_authors(model: Beit) -> Weights:
    """With the index that their code keeps, and what it has in pretraining."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if getattr(module, "relative_position_index", None) is not None:
            weights[f"{name}.relative_position_index"] = module.relative_position_index
    return weights | {"mask_token": torch.zeros(1, 1, 48), "lm_head.weight": torch.zeros(9, 48)}


@pytest.mark.parametrize("positions", WAYS)
def test_an_encoder_computes_what_timms_does_and_goes_back_with_the_same_bytes(tmp_path: Path, positions: str) -> None:
    theirs = beit(positions)
    given = of_authors(theirs)
    arrival = bring_in(saved({"model": given}, tmp_path / "in.pth"), tmp_path / "run")
    assert arrival.family == "beit"
    assert arrival.model.encoder.positions == positions
    assert (arrival.model.encoder.heads, arrival.model.data.size) == (4, 32)
    assert "'mask_token', 'lm_head.weight'" in arrival.said[0]
    assert "taken as [0.5, 0.5, 0.5]" in arrival.said[1]
    with torch.no_grad():
        near(features_of(tmp_path / "run", images(32)), theirs.forward_features(images(32)))
    out, said = send_out(tmp_path / "run", "official", tmp_path / "out.pth")
    back = torch.load(out, weights_only=True)["model"]
    assert said == ["the encoder alone was written: the run has no decoder"]
    assert set(back) == {name for name in given if name not in ("mask_token", "lm_head.weight")}
    assert all(torch.equal(tensor, given[name]) for name, tensor in back.items())


@pytest.mark.parametrize("positions", WAYS)
@pytest.mark.parametrize(("pool", "own"), [("avg", True), ("avg", False), ("token", False)])
def test_a_classifier_goes_to_timm_and_back(tmp_path: Path, positions: str, pool: str, own: bool) -> None:
    theirs = beit(positions, global_pool=pool, use_fc_norm=own, num_classes=7)
    (tmp_path / "timm").mkdir()
    save_file(dict(theirs.state_dict()), tmp_path / "timm" / "model.safetensors")
    (tmp_path / "timm" / "config.json").write_text(
        f'{{"global_pool": "{pool}", "pretrained_cfg": {{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}'
    )
    bring_in(tmp_path / "timm", tmp_path / "run")
    with torch.no_grad():
        expected = theirs(images(32))
    near(logits_of(tmp_path / "run", images(32)), expected)
    out, _ = send_out(tmp_path / "run", "timm", tmp_path / "out")
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert isinstance(again, Beit)
    with torch.no_grad():
        near(again(images(32)), expected)
    sent = load_file(out / "model.safetensors")
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in sent.items())


def test_a_bias_of_keys_changes_nothing_and_is_left_behind(tmp_path: Path) -> None:
    """Ours trains one: it shifts all that a query's softmax compares by the same number."""
    weights = dict(beit("relative").state_dict())
    keyed = weights | {f"blocks.{n}.attn.k_bias": torch.randn(48) for n in range(2)}
    for name, given in (("plain", weights), ("keyed", keyed)):
        bring_in(saved({"model": given}, tmp_path / f"{name}.pth"), tmp_path / name)
    assert model_of_run(tmp_path / "keyed").weights["blocks.1.attn.qkv.bias"][48:96].any()
    near(features_of(tmp_path / "keyed", images(32)), features_of(tmp_path / "plain", images(32)))
    sent = torch.load(send_out(tmp_path / "keyed", "official", tmp_path / "out.pth")[0], weights_only=True)["model"]
    assert not [name for name in sent if "k_bias" in name]


def test_beit_v2_has_imagenets_statistics(tmp_path: Path) -> None:
    weights = dict(beit("relative").state_dict()) | {"cls_pt_layers.0.norm1.weight": torch.ones(48)}
    arrival = bring_in(saved({"model": weights}, tmp_path / "in.pth"), tmp_path / "run")
    assert "'cls_pt_layers.0.norm1.weight'" in arrival.said[0]
    assert arrival.model.data.mean == (0.485, 0.456, 0.406)
    recipe = runs.read_recipe(tmp_path / "run")
    assert isinstance(recipe, Pretrain)
    assert recipe.encoder.positions == "relative"


def test_grey_images_and_heads_that_are_not_its_own(tmp_path: Path) -> None:
    file = saved(dict(beit("relative", in_chans=1).state_dict()), tmp_path / "in.pth")
    assert bring_in(file, tmp_path / "run").model.data.mean == (0.5,)
    with pytest.raises(DataError, match=r"rel_pos_bias.*of another shape"):
        bring_in(file, tmp_path / "other", heads=6)


def test_a_swin_is_no_beit(tmp_path: Path) -> None:
    weights = {f"layers.0.{name}": tensor for name, tensor in beit("relative_per_block").state_dict().items()}
    with pytest.raises(DataError, match="names of no known family"):
        bring_in(saved({"model": weights}, tmp_path / "in.pth"), tmp_path / "run")


def _index(weights: Weights) -> Weights:
    return weights | {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}


def _oblong(weights: Weights) -> Weights:
    return weights | {"rel_pos_bias.relative_position_bias_table": torch.zeros(38, 4)}


def _half(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name != "blocks.1.attn.v_bias"}


def _both(weights: Weights) -> Weights:
    return weights | {"blocks.1.attn.relative_position_bias_table": torch.zeros(52, 4)}


def _tables(weights: Weights) -> Weights:
    return weights | {"pos_embed": torch.zeros(1, 17, 48)}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_index, "holds 1 weight .'rel_pos_bias.relative_position_index'. that a ViT of these shapes has not"),
        (_oblong, "has biases of 38 distances, which are of no square"),
        (_half, "holds 1 weight .'blocks.1.attn.q_bias'. that a ViT"),
        (_both, "holds 1 weight .'blocks.1.rel_pos_bias.relative_position_bias_table'."),
        (_tables, "holds 1 weight .'pos_embed'. that a ViT"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, damage: Callable[[Weights], Weights], why: str) -> None:
    with pytest.raises(DataError, match=why):
        bring_in(saved({"model": damage(dict(beit("relative").state_dict()))}, tmp_path / "in.pth"), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_transformers_has_no_name_for_it(tmp_path: Path) -> None:
    bring_in(saved(dict(beit("relative").state_dict()), tmp_path / "in.pth"), tmp_path / "run")
    assert BIAS in model_of_run(tmp_path / "run").weights
    with pytest.raises(RunError, match="relative positions, which transformers' ViT has not"):
        send_out(tmp_path / "run", "huggingface")


@pytest.mark.parametrize("positions", WAYS)
@pytest.mark.parametrize("names", [4, 5])
def test_transformers_own_come_in_and_compute_the_same(tmp_path: Path, positions: str, names: int) -> None:
    """As it saves them, with the names of version 4, and as version 5 has them in memory."""
    import transformers

    shared = positions == "relative"
    chosen = transformers.BeitConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        layer_norm_eps=1e-6, use_shared_relative_position_bias=shared, use_relative_position_bias=not shared,
    )  # fmt: skip
    classifies = transformers.BeitForImageClassification(chosen).eval()
    tells = transformers.BeitForMaskedImageModeling(chosen).eval()
    draw = torch.Generator().manual_seed(3)
    for name, model in (("classifies", classifies), ("tells", tells)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        if names == 4:
            model.save_pretrained(tmp_path / name)
            assert any("encoder.layer.1" in each for each in load_file(tmp_path / name / "model.safetensors"))
        else:
            chosen.save_pretrained(tmp_path / name)
            save_file(dict(model.state_dict()), tmp_path / name / "model.safetensors")
    arrival = bring_in(tmp_path / "classifies", tmp_path / "run")
    assert (arrival.family, arrival.model.encoder.positions) == ("beit", positions)
    with torch.no_grad():
        near(logits_of(tmp_path / "run", images(32)), classifies(images(32)).logits)
        bring_in(tmp_path / "tells", tmp_path / "encoder")
        seen = tells.layernorm(tells.beit(images(32)).last_hidden_state)
    near(features_of(tmp_path / "encoder", images(32)), seen)
