"""Folders of features: what is in them, by any ranks, after a kill, and never for another encoder, view or images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mae_pipe import cli, recipe
from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.features import extract
from mae_pipe.features.embed import embed
from mae_pipe.features.folder import Features
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder

MAE = recipe.Pretrain(
    data=recipe.Data(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), centre_share=1.0, crop="random", workers=1),
    encoder=recipe.EncoderShape(width=16, depth=2, heads=2, patch=4),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
PER_CLASS = {"train": 8, "val": 5}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for name in ("first", "second", "third"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{number}.png")
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1)
    return folder / "shards"


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """A run folder as pretraining leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(3)
    weights = MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict()
    save_file({n: w + 0.02 * torch.randn_like(w) for n, w in weights.items()}, folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(MAE.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(shards)}))
    return folder


def tokens(run: Path, pixels: np.ndarray, *, normed: bool = True) -> Tensor:
    """[n, T + N, D] of [n, H, W, C] uint8 pixels, computed by hand."""
    encoder = build_encoder(MAE.encoder, 16)
    encoder.load_state_dict(load_file(run / "encoder.safetensors"))
    if not normed:
        encoder.norm = nn.Identity()
    images = (torch.from_numpy(pixels) / 255 - torch.tensor(MAE.data.mean)) / torch.tensor(MAE.data.std)
    with torch.no_grad():
        found: Tensor = encoder.eval()(images.permute(0, 3, 1, 2).float())
    return found


def stored(shards: Path, split: str) -> tuple[list[str], np.ndarray]:
    """The keys and pixels of a split's images, as the files that were sharded have them."""
    index = Shelf(shards, split, Catalog()).index
    keys = [index.key(row) for row in range(len(index))]
    paths = [next((shards.parent / "images").rglob(f"{split}/{'/'.join(key.split('/')[-2:])}.png")) for key in keys]
    return keys, np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize(
    ("kind", "normed", "of"),
    [
        ("token", True, lambda found: found[:, 0]),
        ("mean", True, lambda found: found[:, 1:].mean(dim=1)),
        ("mean", False, lambda found: found[:, 1:].mean(dim=1)),
        ("tokens", True, lambda found: found),
    ],
)
def test_features_are_what_the_encoder_says_of_the_stored_pixels(kind, normed, of, run: Path, shards: Path) -> None:
    made = embed(run, shards, catalog=Catalog(), kind=kind, normed=normed)
    assert {folder.name.split("-")[0] for folder in made} == {"train", "val"}
    for folder in made:
        features = Features.open(folder)
        split = features.manifest.identity.split
        keys, pixels = stored(shards, split)
        assert features.keys == keys
        assert features.manifest.identity.classes == ["first", "second", "third"]
        names = [features.manifest.identity.classes[label] for label in features.labels]
        assert [key.split("/")[-2] for key in keys] == names
        wanted = of(tokens(run, pixels, normed=normed))
        assert torch.allclose(features.whole(), wanted, atol=2e-5)
        assert torch.equal(features.take(np.array([7, 2, 2])), features.whole()[[7, 2, 2]])


def test_half_precision_is_float32_rounded(run: Path, shards: Path) -> None:
    whole, half = (
        Features.open(next(iter(embed(run, shards, catalog=Catalog(), kind="tokens", splits=("val",), dtype=dtype))))
        for dtype in ("float32", "float16")
    )
    assert torch.equal(half.whole(), whole.whole().half().float())
    assert half.manifest.shards[0].bytes < 0.6 * whole.manifest.shards[0].bytes


def test_random_views_are_the_crops_of_the_first_epochs_of_training(run: Path, shards: Path) -> None:
    (folder,) = embed(run, shards, catalog=Catalog(), kind="token", splits=("train",), views=2)
    features = Features.open(folder)
    assert features.whole().shape == (24, 2, 16)
    stream = open_stream(shards, "train", MAE.data, seed=0, share=Share(micro_batch=24), catalog=Catalog())
    for epoch, batch in zip(range(2), stream.batches(), strict=False):
        wanted = tokens(run, batch.pixels.permute(0, 2, 3, 1).numpy())[:, 0]
        found = features.take(batch.numbers.numpy(), np.full(24, epoch))
        assert torch.allclose(found, wanted, atol=2e-5)
    assert not torch.allclose(features.whole()[:, 0], features.whole()[:, 1], atol=1e-2)


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_bytes_of_one_and_a_killed_build_goes_on(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "BATCH", 4)
    monkeypatch.setattr(extract, "LARGEST", 4)
    small = "import mae_pipe.features.extract as e, mae_pipe.features.embed as m; e.BATCH = m.BATCH = e.LARGEST = 4\n"
    monkeypatch.setattr("mae_pipe.features.embed.BATCH", 4)
    (whole,) = embed(run, shards, catalog=Catalog(), splits=("train",), out=run / "one")
    assert len(list(whole.glob("*.safetensors"))) == 6
    program = small + "import time; slow = e._write\n"
    program += "def write(*given): slow(*given); time.sleep(float(__import__('os').environ.get('SLOW', 0)))\n"
    program += "e._write = write\nfrom mae_pipe.cli import main; main()"
    script = run / "main.py"
    script.write_text(program)
    words = [sys.executable, str(script), "embed", str(run), str(shards), "--split", "train", "--out", str(run / "two")]
    begun = subprocess.Popen(words, env={**os.environ, "SLOW": "60"}, stderr=subprocess.PIPE)
    first = run / "two" / "train" / "features-00000.safetensors"
    try:
        for _ in range(600):
            if first.exists():
                break
            time.sleep(0.1)
        inode = first.stat().st_ino
    finally:
        begun.send_signal(signal.SIGKILL)
        begun.communicate()
    assert not (run / "two" / "train" / "manifest.json").exists()
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words[1:]]
    done = subprocess.run(launched, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert first.stat().st_ino == inode  # it was kept
    assert digests(run / "two" / "train") == digests(whole)


def test_what_was_computed_once_is_not_computed_again(run: Path, shards: Path) -> None:
    (folder,) = embed(run, shards, catalog=Catalog(), splits=("val",))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert list(embed(run, shards, catalog=Catalog(), splits=("val",))) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_encoder_other_images_or_another_view_are_another_folder_or_a_sentence(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (first,) = embed(run, shards, catalog=Catalog(), splits=("val",))
    embed(run, shards, catalog=Catalog(), splits=("val",), out=out)
    folders = {first}
    (folder,) = embed(run, shards, catalog=Catalog(), splits=("val",), size=20)
    folders.add(folder)
    with pytest.raises(RunError, match=r"other features than these \(they differ in view\)"):
        embed(run, shards, catalog=Catalog(), splits=("val",), size=20, out=out)
    other = tmp_path / "images"
    shutil.copytree(shards.parent / "images", other)
    Image.new("RGB", (16, 16), "red").save(other / "val" / "second" / "3.png")
    (folder,) = embed(run, other, catalog=Catalog(), splits=("val",))
    folders.add(folder)
    weights = load_file(run / "encoder.safetensors")
    weights["cls_token"] += 1
    save_file(weights, run / "encoder.safetensors")
    (folder,) = embed(run, shards, catalog=Catalog(), splits=("val",))
    folders.add(folder)
    assert len(folders) == 4
    with pytest.raises(RunError, match="they differ in encoder"):
        embed(run, shards, catalog=Catalog(), splits=("val",), out=out)


def test_a_damaged_file_is_named_and_not_used(run: Path, shards: Path) -> None:
    (folder,) = embed(run, shards, catalog=Catalog(), splits=("val",))
    path = folder / "features-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"features-00000.safetensors is damaged"):
        Features.open(folder).whole()


def test_what_does_not_fit_is_a_sentence(run: Path, shards: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"catalog": Catalog(), "splits": ("val",)}
    with pytest.raises(RecipeError, match="no multiple of the encoder's patch 4"):
        embed(run, shards, size=18, **given)
    with pytest.raises(RecipeError, match="one vector an image"):
        embed(run, shards, kind="tokens", format="parquet", out=tmp_path / "p", **given)
    (tmp_path / "mine" / "val").mkdir(parents=True)
    (tmp_path / "mine" / "val" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty and holds no features"):
        embed(run, shards, out=tmp_path / "mine", **given)


def test_parquet_holds_keys_labels_and_the_same_numbers(run: Path, shards: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    shown = CliRunner().invoke(
        cli._group,
        f"embed {run} {shards} --out {tmp_path / 'p'} --split val --format parquet --pool token --workers 0".split(),
        catch_exceptions=False,
    )
    assert shown.exit_code == 0
    assert "val: 15 images" in shown.output
    table = parquet.read_table(tmp_path / "p" / "val" / "features-00000.parquet")
    (folder,) = embed(run, shards, catalog=Catalog(), kind="token", splits=("val",))
    features = Features.open(folder)
    assert table["key"].to_pylist() == features.keys
    assert table["label"].to_pylist() == features.labels.tolist()
    assert np.array_equal(np.array(table["feature"].to_pylist(), np.float32), features.whole().numpy())
    assert json.loads(table.schema.metadata[b"classes"]) == ["first", "second", "third"]


def test_the_encoder_of_a_finetuned_run_gives_its_own_features(run: Path, shards: Path, tmp_path: Path) -> None:
    weights = load_file(run / "encoder.safetensors")
    weights["norm.bias"] += 1.5
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    told = {"encoder": MAE.encoder.model_dump_json()}
    save_file({f"encoder.{name}": weight for name, weight in weights.items()}, tuned / "model.safetensors", told)
    settings = recipe.Downstream(task="finetune", data=MAE.data)
    (tuned / "recipe.json").write_text(settings.model_dump_json())
    folders = [next(iter(embed(folder, shards, catalog=Catalog(), splits=("val",)))) for folder in (run, tuned)]
    before, after = (Features.open(folder).whole() for folder in folders)
    assert torch.allclose(after, before + 1.5, atol=1e-5)


def test_the_commands_of_the_page_run_as_they_stand(run: Path, shards: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "features.md").read_text()
    lines = [line.split("#")[0].split() for line in page.splitlines() if line.startswith("mae-pipe ")]
    assert len(lines) >= 13
    places = {
        "RUN": run,
        "SHARDS": shards,
        "IMAGES": shards.parent / "images",
        "OUT": tmp_path / "o",
        "OUT1": tmp_path / "p",
    }
    quick = (
        "data.global_batch=6",
        "data.micro_batch=3",
        "data.workers=0",
        "engine.precision=fp32",
        "schedule.epochs=1",
    )
    for _, *line in lines:
        given = [str(places.get(word, word)) for word in line]
        if line[0] == "probe":
            given += [word for change in (*quick, "schedule.warmup_epochs=0") for word in ("--set", change)]
            given += [] if "--recipe" in line else ["--recipe", "probe_digits"]
        if "--nproc" not in line:  # that starts processes, and is another test
            shown = CliRunner().invoke(cli._group, given)
            assert shown.exit_code == 0, (given, shown.output, shown.exception)
    assert {path.name for path in run.glob("probe*")} == {
        "probe-cached", "probe-knn-cached", "probe-attentive-cached", "probe-sweep", "probe-logistic",
    }  # fmt: skip
