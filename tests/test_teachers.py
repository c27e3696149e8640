"""The feature target: a frozen teacher's features, against timm's own forward."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Target, View
from mae_pipe.errors import PluginError
from mae_pipe.recipe import Data, EncoderShape, Pretrain
from mae_pipe.weights import to_safetensors

VIEW = View(32, 64, patch=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
VIT = "test_vit"  # timm's own for tests: 160 pixels, patches of 16


def made(view: View = VIEW, **options: Any) -> Target:
    target: Target = Catalog().build("target", "feature", options, view=view)
    return target


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(5)
    state = timm.create_model(VIT).state_dict()
    save_file(state, folder / "vit.safetensors")
    torch.save({"model": state}, folder / "vit.pth")
    return folder


@pytest.mark.parametrize("file", ["vit.safetensors", "vit.pth"])
def test_a_vits_features_are_timms_at_the_size_that_gives_our_grid(weights: Path, file: str) -> None:
    target = made(teacher=VIT, weights=str(weights / file), normalize=False)
    model: Any = timm.create_model(VIT, num_classes=0, img_size=(64, 128)).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(
        torch.load(weights / "vit.pth", weights_only=True)["model"], model
    )
    model.load_state_dict({n: w for n, w in state.items() if not n.startswith("head.")})
    config = model.pretrained_cfg
    theirs = View(32, 64, patch=(8, 8), mean=config["mean"], std=config["std"]).normalised(VIEW.colours(images()))
    with torch.no_grad():
        expected = model.forward_features(F.interpolate(theirs, (64, 128), mode="bicubic", antialias=True))
    truth = target.truth(images())
    assert truth.shape == (2, 4 * 8, target.width)
    assert torch.allclose(truth, expected[:, model.num_prefix_tokens :], atol=1e-4)
    assert target.provenance() == {"teacher": hashlib.sha256((weights / file).read_bytes()).hexdigest()}
    assert target.state_dict() == {}  # the teacher stays in its file
    assert list(target.parameters()) == []


def test_a_convolutions_map_is_brought_to_the_grid() -> None:
    truth = made(teacher="test_resnet", weights="none", normalize=False).truth(images())
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=0).eval()
    config = model.pretrained_cfg
    theirs = View(32, 64, patch=(8, 8), mean=config["mean"], std=config["std"]).normalised(VIEW.colours(images()))
    with torch.no_grad():
        found = model.forward_features(theirs)
    expected = F.interpolate(found, (4, 8), mode="bilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(truth, expected, atol=1e-4)


def test_the_losses_are_their_formulas() -> None:
    target = made(teacher=VIT, weights="none")
    truth = target.truth(images())
    assert truth.mean(-1).abs().max() < 1e-4
    prediction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    a, b = prediction.double(), truth.double()
    cosine = 1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    assert torch.allclose(target.loss(prediction, truth).double(), cosine, atol=1e-6)
    off = (a - b).abs()
    smooth = torch.where(off < 1, off.square() / 2, off - 0.5).mean(-1)
    found = made(teacher=VIT, weights="none", measure="smooth-l1").loss(prediction, truth)
    assert torch.allclose(found.double(), smooth, atol=1e-6)
    assert target.picture(truth, images()).shape == images().shape


def test_a_run_is_a_teacher_at_the_size_that_gives_our_grid(tmp_path: Path) -> None:
    recipe = Pretrain(data=Data(size=16), encoder=EncoderShape(width=16, depth=1, heads=2, patch=4))
    encoder = build_encoder(recipe.encoder, 16).eval()
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    (tmp_path / "encoder.safetensors").write_bytes(to_safetensors(encoder.state_dict(), {}))
    view = View(32, 32, patch=(8, 8), mean=VIEW.mean, std=VIEW.std)
    target = made(view, teacher=str(tmp_path), normalize=False)
    small = F.interpolate(VIEW.colours(images()[..., :32]), (16, 16), mode="bicubic", antialias=True)
    theirs = View(16, 16, patch=(4, 4), mean=recipe.data.mean, std=recipe.data.std)
    with torch.no_grad():
        expected = encoder(theirs.normalised(small))[:, 1:]
    assert torch.allclose(target.truth(images()[..., :32]), expected, atol=1e-4)
    assert len(target.provenance()["teacher"]) == 16


class Harm:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm-was-done"),))


def test_bad_teachers_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("harm.pth").write_bytes(pickle.dumps({"model": Harm()}))
    torch.save({"model": Harm()}, "harm2.pth")
    save_file({"x": torch.ones(1)}, "other.safetensors")
    Path("torn.safetensors").write_bytes(b"123")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "teacher is missing"),
        ({"teacher": "test_vti"}, "did you mean 'test_vit"),
        ({"teacher": VIT}, "needs weights"),
        ({"teacher": VIT, "weights": "gone.pth"}, "no file of weights"),
        ({"teacher": VIT, "weights": "harm.pth"}, "harm.pth"),
        ({"teacher": VIT, "weights": "harm2.pth"}, "harm2.pth"),
        ({"teacher": VIT, "weights": "torn.safetensors"}, "cannot be read"),
        ({"teacher": VIT, "weights": "other.safetensors"}, "are not those of 'test_vit'"),
        ({"teacher": VIT, "weights": "none", "measure": "l3"}, "measure"),
    ]
    for options, why in wrong:
        with pytest.raises(PluginError, match=why):
            made(**options)
    assert not Path("harm-was-done").exists()
