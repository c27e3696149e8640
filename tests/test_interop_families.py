"""DINO, DINOv2 and MoCo v3 come in from checkpoints as their code writes them; what cannot come in is refused."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae_pipe.cli import interop as commands
from mae_pipe.errors import DataError, DiskError
from mae_pipe.interop.families import FAMILIES
from mae_pipe.interop.imports import bring_in
from mae_pipe.recipe import EncoderShape

from .travelling import HEADS, TINY, WHOLE, classifier, drawn, features_of, images, near, same, saved

Weights = dict[str, Tensor]


def under(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def projector(prefix: str) -> Weights:
    return {f"{prefix}{name}": torch.zeros(3, 3) for name in ("mlp.0.weight", "last_layer.weight_v")}


def test_dino_gives_its_teachers_backbone(tmp_path: Path) -> None:
    weights = drawn(TINY)
    teacher = under("backbone.", weights) | projector("head.")
    student = under("module.", under("backbone.", drawn(TINY, seed=1)) | projector("head."))
    file = {"student": student, "teacher": teacher, "epoch": 9, "args": argparse.Namespace(arch="vit_tiny")}
    arrival = bring_in(saved(file, tmp_path / "in.pth"), tmp_path / "run", heads=4)
    assert arrival.family == "dino"
    assert "student, epoch, args" in arrival.said[0]
    assert "'head.mlp.0.weight', 'head.last_layer.weight_v'" in arrival.said[1]
    same(arrival.model.weights, weights)
    # The file of the backbone alone has timm's names.
    assert bring_in(saved(weights, tmp_path / "alone.pth"), tmp_path / "b", heads=4, family="dino").family == "dino"


def test_mocos_base_encoder_keeps_its_own_positions(tmp_path: Path) -> None:
    weights = drawn(TINY)
    state = under("module.base_encoder.", weights | projector("head."))
    state |= under("module.momentum_encoder.", drawn(TINY, seed=1) | projector("head."))
    state |= under("module.predictor.", projector(""))
    file = {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {}}
    arrival = bring_in(saved(file, tmp_path / "in.pth"), tmp_path / "run", heads=4)
    assert arrival.family == "moco"
    same(arrival.model.weights, weights)
    assert "module.momentum_encoder" not in str(sorted(arrival.model.weights))


def test_mocos_missing_positions_are_made_as_moco_makes_them(tmp_path: Path) -> None:
    """Rows and columns by MoCo's own formula: torch's meshgrid of (width, height), of which the first runs slowest."""
    weights = drawn(TINY)
    del weights["pos_embed"]
    state = under("module.base_encoder.", weights)
    made = bring_in(saved({"state_dict": state}, tmp_path / "in.pth"), tmp_path / "run", heads=4).model
    side = made.grid[0]
    assert made.data.size == 224
    across, down = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    omega = 10000.0 ** (-torch.arange(12).double() / 12)
    first, second = (torch.outer(place.flatten(), omega) for place in (across, down))
    table = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1).float()
    near(made.weights["pos_embed"][0, 1:], table, 1e-6)
    assert not made.weights["pos_embed"][0, 0].any()


def test_dinov2s_registers_have_no_positions(tmp_path: Path) -> None:
    """timm's converted DINOv2 has no positions of its prefix: the class token's are added to it."""
    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0, reg_tokens=2,
        no_embed_class=True, init_values=0.5,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    given = {n: w.detach() + 0.05 * torch.randn(w.shape, generator=generator) for n, w in theirs.state_dict().items()}
    theirs.load_state_dict(given)
    theirs.eval()
    place = 0.05 * torch.randn(1, 1, 48, generator=generator)
    original = dict(given)
    original["register_tokens"] = original.pop("reg_token")
    original["cls_token"] = given["cls_token"] - place
    original["pos_embed"] = torch.cat([place, given["pos_embed"]], dim=1)
    original["mask_token"] = torch.zeros(1, 48)
    arrival = bring_in(saved(original, tmp_path / "in.pth"), tmp_path / "run", heads=4)
    assert arrival.family == "dinov2"
    assert arrival.model.encoder.class_tokens == 3
    with torch.no_grad():
        near(features_of(tmp_path / "run", images(32)), theirs.forward_features(images(32)))


def _strange(weights: Weights) -> Weights:
    return weights | {f"adapter.{n}.weight": torch.zeros(1) for n in range(12)}


def _torn(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.mlp")}


def _renamed(weights: Weights) -> Weights:
    return {name.replace("blocks", "stages"): tensor for name, tensor in weights.items() if "patch_embed" not in name}


def _narrow(weights: Weights) -> Weights:
    return weights | {"blocks.1.mlp.fc1.weight": torch.zeros(7, 48)}


def _nan(weights: Weights) -> Weights:
    return weights | {"norm.bias": torch.full((48,), torch.nan)}


def _oblong(weights: Weights) -> Weights:
    return weights | {"pos_embed": torch.zeros(1, 13, 48)}


def _pre_logits(weights: Weights) -> Weights:
    return weights | {"pre_logits.fc.weight": torch.zeros(48, 48), "head.weight": torch.zeros(7, 48)}


def _finetuned_without_head(weights: Weights) -> Weights:
    return {n.replace("norm.", "fc_norm.") if n.startswith("norm.") else n: w for n, w in weights.items()}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_strange, r"12 weights \('adapter.0.weight', .*'adapter.7.weight', \.\.\.\)"),
        (_torn, r"lacks 4 weights \('blocks.1.mlp.fc1.bias'"),
        (_renamed, r"closest is timm.*no 24 weights \('stages.0.norm1.weight'"),
        (_narrow, r"'blocks.1.mlp.fc1.weight' is \[7, 48\], expected \[192, 48\]"),
        (_nan, "'norm.bias'.*not finite"),
        (_oblong, "12 patches, which make no square"),
        (_pre_logits, "pre_logits.*--encoder-only"),
        (_finetuned_without_head, "no final norm"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, damage: Callable[[Weights], Weights], why: str) -> None:
    with pytest.raises(DataError, match=why):
        bring_in(saved({"model": damage(drawn(TINY))}, tmp_path / "in.pth"), tmp_path / "run", heads=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_an_unknown_width_wants_heads(tmp_path: Path) -> None:
    file = saved(drawn(WHOLE), tmp_path / "in.pth")
    with pytest.raises(DataError, match="--heads"):
        bring_in(file, tmp_path / "run")
    with pytest.raises(DataError, match="--decoder-heads"):
        bring_in(file, tmp_path / "run", heads=4)
    encoder = bring_in(file, tmp_path / "run", heads=4, encoder_only=True).model
    assert (encoder.decoder, encoder.encoder) == (None, EncoderShape(width=48, depth=2, heads=4, patch=8))


class _Armed:
    """Pickles as a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "pickle", "beside", "namespace"])
def test_a_file_that_would_run_something_does_not(tmp_path: Path, form: str) -> None:
    armed, file = _Armed(f"touch {tmp_path}/ran"), tmp_path / "in.pth"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"model": armed}))
    else:
        torch.save(
            {
                "torch": armed,
                "beside": {"model": drawn(TINY), "optimizer": armed},
                "namespace": {"model": drawn(TINY), "args": argparse.Namespace(hook=armed)},
            }[form],
            file,
        )
    with pytest.raises(DataError, match=r"posix.system.* not run|names "):
        bring_in(file, tmp_path / "run", heads=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_half_precision_is_widened_and_said(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in drawn(TINY).items()}
    save_file(weights, tmp_path / "in.safetensors")
    arrival = bring_in(tmp_path / "in.safetensors", tmp_path / "run", heads=4)
    assert "weights of torch.bfloat16 are float32 now" in arrival.said
    same(arrival.model.weights, {name: tensor.float() for name, tensor in weights.items()})


def test_a_run_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    file = saved({"model": drawn(classifier())}, tmp_path / "in.pth")
    bring_in(file, tmp_path / "run", **HEADS)
    with pytest.raises(DiskError, match="exists already"):
        bring_in(file, tmp_path / "run", **HEADS)


def test_the_command_offers_every_family_and_says_what_it_did(tmp_path: Path) -> None:
    assert set(commands.FAMILIES) == set(FAMILIES)
    file = saved({"model": drawn(WHOLE)}, tmp_path / "in.pth")
    words = [str(file), "--out", str(tmp_path / "run"), "--heads", "4", "--decoder-heads", "4"]
    done = CliRunner().invoke(commands.import_, words, catch_exceptions=False)
    assert "an encoder and a decoder of 'normalized_pixel', names of official, width 48" in done.output
    assert "--target" in done.output
    done = CliRunner().invoke(commands.export, [str(tmp_path / "run"), "--to", "timm"], catch_exceptions=False)
    assert done.output.splitlines() == ["mae-pipe: timm has no decoder; it was left out", f"{tmp_path}/run/export/timm"]
