"""Imported runs are probed, finetuned, drawn and reported like others; trained runs go out; the document is true."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from transformers import ViTForImageClassification

from mae_pipe import cli as commands
from mae_pipe import recipe, reporting
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid
from mae_pipe.downstream import Result, downstream
from mae_pipe.errors import RunError
from mae_pipe.interop.beit import from_official
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.model import Model
from mae_pipe.recipe import Data, DecoderShape, EncoderShape, Pretrain, TargetChoice
from mae_pipe.reconstructing import reconstruct
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder
from mae_pipe.weights import to_safetensors

from .test_readme import ROOT, blocks, whole
from .travelling import HEADS, TINY, WHOLE, classifier, drawn, images, logits_of, near, saved

QUICK = (
    "data.global_batch=8", "data.micro_batch=4", "data.workers=1", "engine.precision=fp32", "schedule.epochs=1",
    "schedule.warmup_epochs=0", "eval_split=train",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop") / "shards"
    build(image_folder, folder, catalog=Catalog(), workers=1)
    return folder


def trained(run: Path, task: str, shards: Path, *changes: str) -> Result:
    chosen = recipe.load(task, (*QUICK, *changes), task=task)
    assert isinstance(chosen, recipe.Downstream)
    return downstream(run, chosen, catalog=Catalog(), shards=shards)


def test_an_imported_run_is_probed_and_the_probe_goes_to_transformers(tmp_path: Path, shards: Path) -> None:
    """The probe's batch norm is inside its linear layer there."""
    bring_in(saved({"model": drawn(WHOLE)}, tmp_path / "in.pth"), tmp_path / "run", **HEADS)
    with pytest.raises(RunError, match="imported and has no shards"):
        downstream(tmp_path / "run", recipe.load("probe", QUICK), catalog=Catalog())  # type: ignore[arg-type]
    probe = trained(tmp_path / "run", "probe", shards)
    out, _ = send_out(probe.folder, "huggingface")
    theirs = ViTForImageClassification.from_pretrained(out).eval()
    assert theirs.config.id2label == {0: "across", 1: "down"}
    with torch.no_grad():
        near(logits_of(probe.folder, images(32)), theirs(images(32)).logits)
    assert "in.pth" in reporting.render([tmp_path / "run"])


def test_a_finetuned_run_goes_to_timm_and_comes_back(tmp_path: Path, shards: Path) -> None:
    bring_in(saved({"model": drawn(TINY)}, tmp_path / "in.pth"), tmp_path / "run", **HEADS)
    tuned = trained(tmp_path / "run", "finetune", shards)
    out, _ = send_out(tuned.folder, "timm")
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    ours = logits_of(tuned.folder, images(32))
    bring_in(out, tmp_path / "back")
    with torch.no_grad():
        near(ours, theirs(images(32)))
    near(ours, logits_of(tmp_path / "back", images(32)), 1e-7)


def test_an_imported_decoder_draws(tmp_path: Path, image_folder: Path) -> None:
    bring_in(saved({"model": drawn(WHOLE)}, tmp_path / "in.pth"), tmp_path / "run", **HEADS)
    picture = next(image_folder.rglob("*.png"))
    assert reconstruct(tmp_path / "run", [picture], tmp_path / "made.png", catalog=Catalog()).is_file()


def test_a_decoder_that_predicts_no_pixels_stays(tmp_path: Path) -> None:
    chosen = Pretrain(
        encoder=TINY.encoder, decoder=DecoderShape(width=32, depth=1, heads=4), data=TINY.data,
        target=TargetChoice(name="hog"),
    )  # fmt: skip
    weights = MaskedAutoencoder.from_recipe(chosen, Catalog()).state_dict()
    (tmp_path / "recipe.json").write_text(chosen.model_dump_json())
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(weights, {}))
    out, said = send_out(tmp_path, "official")
    assert said == ["the encoder alone was written: its decoder predicts 'hog', no pixels"]
    assert set(torch.load(out, weights_only=True)["model"]) == set(drawn(TINY))


@pytest.mark.slow
def test_every_command_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On models of a known width that are small otherwise; RUN/finetune is an imported classifier."""
    shape = EncoderShape(width=192, depth=1, heads=3)
    whole_model = Model({}, shape, Data(size=32), decoder=DecoderShape(depth=1))
    monkeypatch.chdir(tmp_path)
    saved({"model": drawn(whole_model)}, Path("mae_pretrain_vit_base_full.pth"))
    bring_in(Path("mae_pretrain_vit_base_full.pth"), Path("first"))
    send_out(Path("first"), "huggingface", Path("vit-mae-folder"))
    teacher = {f"backbone.{name}": tensor for name, tensor in drawn(Model({}, shape, Data(size=32))).items()}
    saved({"teacher": teacher}, Path("dino_checkpoint.pth"))
    relative = Model({}, shape.model_copy(update={"positions": "relative", "layer_scale": 0.1}), Data(size=32))
    saved({"model": from_official(drawn(relative), Grid(2, 2), index=True)}, Path("beit_base_patch16_224_pt22k.pth"))
    saved({"model": drawn(classifier())}, Path("finetuned.pt"))
    lines = [line for block in blocks(ROOT / "docs" / "weights.md", "") for line in whole(block)]
    assert len(lines) == 8
    for number, line in enumerate(lines):
        if "export" in line and not Path("RUN").exists():
            Path("run-0").rename("RUN")
            bring_in(Path("finetuned.pt"), Path("RUN/finetune"), **HEADS)
        words = shlex.split(line)[1:]
        if words[0] == "import":
            words[-1] = f"run-{number}"  # the document calls each of them RUN
        done = CliRunner().invoke(commands._group, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    written = {str(path) for path in Path().glob("**/*.*") if path.suffix in (".pth", ".onnx", ".safetensors")}
    assert {
        "RUN/export/timm/model.safetensors", "FOLDER/model.safetensors", "finetuned.pth",
        "RUN/finetune/export/model.onnx", "run-1/model.safetensors", "run-2/encoder.safetensors",
        "run-3/encoder.safetensors",
    } <= written  # fmt: skip
