"""Training a tokenizer: it learns, goes on exactly, is measured on any number of ranks, and feeds a pretraining."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli.tokenizer import tokenizer as command
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.pretraining import pretrain
from mae_pipe.sharding import build
from mae_pipe.tokenizer.folder import load_tokenizer
from mae_pipe.tokenizer.task import Tokenizing
from mae_pipe.tokenizer.training import Result, train_tokenizer
from tests.nursing import call
from tests.workers import quantize_on_ranks

SIZES: dict[str, dict[str, Any]] = {
    "data": {"size": 16, "global_batch": 8, "micro_batch": 4, "workers": 0, "centre_share": 1.0},
    "tokenizer": {"codebook": 16, "code_width": 4, "width": 4, "blocks": 1, "downsampling": 4},
    "optimizer": {"base_lr": 0.1},
    "schedule": {"epochs": 4.0, "warmup_epochs": 0.0},
    "engine": {"precision": "fp32"},
    "saving": {"every_epochs": 1.0, "keep_last": 9},
    "logging": {"every_steps": 1, "pictures_every_epochs": 2.0},
}


def chosen(**shape: Any) -> recipe.Tokenizer:
    found = recipe.parse({**SIZES, "tokenizer": {**SIZES["tokenizer"], **shape}}, "test", task="tokenizer")
    assert isinstance(found, recipe.Tokenizer)
    return found


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenized")
    build(image_folder, folder / "shards", catalog=Catalog(), workers=1, per_shard=12)
    return folder / "shards"


@pytest.fixture(scope="module", params=["vq", "gumbel"])
def trained(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """24 images, 12 steps of two micro-batches."""
    out = tmp_path_factory.mktemp("trained") / request.param
    return train_tokenizer(chosen(kind=request.param), shards, out, catalog=Catalog())


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [
        row for line in (folder / "metrics.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == kind
    ]


def test_a_stopped_training_goes_on_exactly(trained: Result, shards: Path, tmp_path: Path) -> None:
    whole, again = trained.folder, tmp_path / "again"
    shutil.copytree(whole, again)
    for step in (9, 12):  # as if it had been killed after step 6
        shutil.rmtree(again / "checkpoints" / f"step-{step:07d}")
    for name in ("tokenizer.json", "tokenizer.safetensors", "result.json"):
        (again / name).unlink()
    assert [path.name for path in sorted((again / "checkpoints").iterdir())] == ["step-0000003", "step-0000006"]
    told = train_tokenizer(chosen(kind=whole.name), shards, again, catalog=Catalog())
    assert (again / "tokenizer.safetensors").read_bytes() == (whole / "tokenizer.safetensors").read_bytes()
    assert (told.hash, told.psnr, told.perplexity) == (trained.hash, trained.psnr, trained.perplexity)
    assert [row["loss"] for row in rows(again, "train")] == [row["loss"] for row in rows(whole, "train")]
    with pytest.raises(RunError, match=r"tokenizer\.code_width was 4, now 8"):
        train_tokenizer(chosen(kind=whole.name, code_width=8), shards, again, catalog=Catalog())


@torch.no_grad()
def test_what_is_reported_is_what_the_folder_gives(trained: Result, shards: Path) -> None:
    found = load_tokenizer(trained.folder)
    stream = open_stream(
        shards, "train", chosen().data, seed=0, share=Share(0, 1, 1), catalog=Catalog(), training=False
    )
    noise, counts = [], [0] * 16
    for batch in stream.once():
        colours = batch.pixels / 255
        tokens = found(colours, 4, 4)
        noise.append(10 * math.log10(1 / float((found.picture(tokens) - colours).square().double().mean())))
        for token in tokens.flatten().tolist():
            counts[token] += 1
    stream.close()
    share = [count / sum(counts) for count in counts if count]
    assert trained.images == len(noise) == 24
    assert trained.psnr == pytest.approx(sum(noise) / 24, rel=1e-5)
    assert trained.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-6)
    assert trained.used == len(share) / 16
    last = rows(trained.folder, "eval")[-1]
    assert {name: last[name] for name in ("psnr", "perplexity", "used", "step", "split")} == {
        "psnr": trained.psnr, "perplexity": trained.perplexity, "used": trained.used, "step": 12, "split": "train",
    }  # fmt: skip
    assert json.loads((trained.folder / "result.json").read_text())["hash"] == found.hash == trained.hash
    assert (trained.folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_a_pretraining_predicts_its_tokens_and_records_its_hash(trained: Result, shards: Path, tmp_path: Path) -> None:
    mae = recipe.Pretrain(
        data=recipe.Data(size=16, global_batch=8, micro_batch=8, workers=0),
        encoder=recipe.EncoderShape(width=8, depth=1, heads=2, patch=4),
        decoder=recipe.DecoderShape(width=8, depth=1, heads=2),
        target=recipe.TargetChoice(name="dvae", options={"tokenizer": str(trained.folder)}),
        schedule=recipe.Schedule(epochs=1.0, warmup_epochs=0.0),
        engine=recipe.EngineChoice(precision="fp32"),
    )
    pretrain(mae, shards, tmp_path / "run", catalog=Catalog())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["provenance"] == {"tokenizer": trained.hash}
    assert rows(tmp_path / "run", "train")[0]["loss"] == pytest.approx(math.log(16), rel=0.5)
    other = tmp_path / "other"
    shutil.copytree(trained.folder, other)
    weights = bytearray((other / "tokenizer.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "tokenizer.safetensors").write_bytes(weights)
    (trained.folder / "tokenizer.safetensors").rename(tmp_path / "kept")
    shutil.copy(other / "tokenizer.safetensors", trained.folder / "tokenizer.safetensors")
    try:
        with pytest.raises(RunError, match="another provenance"):
            pretrain(mae, shards, tmp_path / "run", catalog=Catalog())
    finally:
        (tmp_path / "kept").replace(trained.folder / "tokenizer.safetensors")


def batch_of(images: Tensor, position: int = 0) -> Batch:
    numbers = torch.arange(len(images))
    return Batch((images * 255).to(torch.uint8), numbers, numbers, position + numbers)


@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_it_learns_to_give_images_back(kind: str) -> None:
    torch.manual_seed(0)
    task = Tokenizing.from_recipe(chosen(kind=kind, width=8, codebook=32), 100)
    coarse = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, (16, 16))  # flat squares
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3, weight_decay=0.0)

    def noise() -> float:
        with torch.no_grad():
            return float(task.eval()(batch_of(images), mode="metrics")["psnr"].mean())

    flat = -10 * math.log10(float((images - images.mean(dim=(0, 2, 3), keepdim=True)).square().mean()))
    assert noise() < flat + 1
    for step in range(100):
        task.train()(batch_of(images, 8 * step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        task.network.quantizer.after_step()
    assert noise() > flat + 2


def test_the_temperature_falls_by_the_step_alone() -> None:
    task = Tokenizing.from_recipe(chosen(kind="gumbel"), 11)
    found = [float(task.temperature_of(torch.tensor([8 * step, 8 * step + 3]))) for step in range(11)]
    assert found == [float(task.temperature_of(torch.tensor([8 * step + 4, 8 * step + 7]))) for step in range(11)]
    assert found == pytest.approx([(1 / 16) ** (step / 10) for step in range(11)], rel=1e-5)


def test_ranks_have_one_codebook_and_one_result(shards: Path, tmp_path: Path) -> None:
    call(quantize_on_ranks, shards, tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1"))
    assert torch.equal(first["learned"], second["learned"])
    assert torch.allclose(first["learned"], alone["learned"], atol=1e-6)  # as if one had seen all
    assert torch.equal(first["revived"], second["revived"])
    assert not torch.allclose(first["revived"], first["learned"], atol=1e-2)
    assert first["found"] == second["found"] == pytest.approx(alone["found"], rel=1e-6)


def test_the_commands_train_show_and_refuse(shards: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(command, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    path = tmp_path / "mine.toml"
    path.write_text('task = "tokenizer"\n[data]\nsize = 16\nglobal_batch = 8\nmicro_batch = 8\nworkers = 0\n')
    changes = ["tokenizer.codebook=16", "tokenizer.width=4", "tokenizer.blocks=0", "schedule.epochs=0.4"]
    changes += ["schedule.warmup_epochs=0", "engine.precision=fp32"]
    words = [word for change in changes for word in ("--set", change)]
    told = said("train", str(path), "--shards", str(shards), "--out", str(tmp_path / "tok"), *words)
    assert "PSNR" in told
    assert "codebook perplexity" in told
    told = said("show", str(tmp_path / "tok"))
    assert "16 tokens" in told
    assert load_tokenizer(tmp_path / "tok").hash in told
    with pytest.raises(RecipeError, match=r"multiple of tokenizer\.downsampling 8"):
        said("train", str(path), "--shards", str(shards), "--out", str(tmp_path / "other"), "--set", "data.size=20")
    with pytest.raises(RecipeError, match="is for 'pretrain', not for 'tokenizer'"):
        said("train", "digits", "--shards", str(shards), "--out", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
