"""A run that was killed goes on as if it had not been; damage is seen before it is trained on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from mae_pipe import checkpoints, runs
from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.errors import DiskError, RunError
from mae_pipe.indexing import index
from mae_pipe.runs import Run
from mae_pipe.sharding import build
from tests import nursing
from tests.workers import pretrain_and_die
from tests.workers.plain_beton import plain_beton


def start(shards: Path, run: Path, log: Path, death: int = -1) -> subprocess.CompletedProcess[str]:
    return nursing.run(pretrain_and_die, shards, run, log, death)


def rows(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on WebDataset shards, with its log."""
    folder = tmp_path_factory.mktemp("finished")
    build(image_folder, folder / "shards", format="webdataset", catalog=Catalog(), workers=1, per_shard=7)
    done = start(folder / "shards", folder / "run", folder / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def beton_of(folder: Path) -> bytes:
    """JPEGs as they are, and pixels, as FFCV's writer would place them."""
    samples: list[tuple[Any, ...]] = []
    for path in sorted(folder.rglob("*.*")):
        with Image.open(path) as image:
            data = path.read_bytes() if image.format == "JPEG" else image.convert("RGB").tobytes()
            samples.append(((int(image.format != "JPEG"), *image.size, data), int(path.parent.name == "down")))
    return plain_beton([("image", 2), ("label", 1)], samples)


@pytest.mark.parametrize("form", ["webdataset", "ffcv", pytest.param("an indexed beton", marks=pytest.mark.slow)])
def test_a_killed_run_repeats_the_uninterrupted_one_exactly(
    finished: Path, image_folder: Path, tmp_path: Path, form: str
) -> None:
    if form == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    if form == "an indexed beton":
        (tmp_path / "x.beton").write_bytes(beton_of(image_folder))
        index([str(tmp_path / "x.beton")], tmp_path / "shards", catalog=Catalog(), workers=1)
    else:
        build(image_folder, tmp_path / "shards", format=form, catalog=Catalog(), workers=1, per_shard=7)
    killed = start(tmp_path / "shards", tmp_path / "run", tmp_path / "first", death=7)
    assert killed.returncode == -signal.SIGKILL
    resumed = start(tmp_path / "shards", tmp_path / "run", tmp_path / "second")
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    whole, first, second = rows(finished / "log"), rows(tmp_path / "first"), rows(tmp_path / "second")
    assert len(whole) == 24  # 12 steps of 2 micro-batches
    assert first == whole[: len(first)]
    assert second == whole[12:]  # from the checkpoint of step 6: samples, masks and losses to the last bit
    metrics = [
        [json.loads(line) for line in (f / "run" / "metrics.jsonl").read_text().splitlines()]
        for f in (finished, tmp_path)
    ]
    for a, b in zip(*metrics, strict=True):
        assert (a["step"], a["loss"]) == (b["step"], b["loss"])


def test_the_encoder_of_a_run_is_timms_name_by_name(finished: Path) -> None:
    weights = load_file(finished / "run" / "encoder.safetensors")
    mae = pretrain_and_die.chosen()
    encoder = build_encoder(mae.encoder, mae.data.size, positions="learned")
    encoder.load_state_dict(weights, strict=True)
    assert {name.split(".")[0] for name in weights} == {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"}


def test_the_newest_damaged_checkpoint_is_named_and_passed_over(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    newest = run.newest()
    assert newest is not None
    assert newest.name == "step-0000012"
    victim = next(newest.glob("rank-*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    before = run.newest()
    assert before is not None
    assert before.name == "step-0000009"
    assert victim.name in capsys.readouterr().err


def test_a_torn_checkpoint_is_refused_in_a_sentence(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step-0000012"
    shutil.copytree(finished / "run" / "checkpoints" / "step-0000012", copy)
    next(copy.glob("rank-*.safetensors")).unlink()
    with pytest.raises(RunError, match=r"rank-00000-of-00001\.safetensors is missing"):
        checkpoints.check(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        checkpoints.check(copy)


def test_a_checkpoint_holds_no_program(finished: Path) -> None:
    suffixes = {path.suffix for path in (finished / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_another_recipe_or_other_shards_are_refused_with_the_difference(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    mae = pretrain_and_die.chosen()
    other = mae.model_copy(update={"seed": 3})
    with pytest.raises(RunError, match="seed was 0, now 3"):
        Run(tmp_path / "run").begin(other, about)
    with pytest.raises(RunError, match="shards fingerprint"):
        Run(tmp_path / "run").begin(mae, {**about, "shards_fingerprint": "else", "samples_fingerprint": None})
    changed = {**about, "shards_fingerprint": "else", "samples_fingerprint": "other images"}
    with pytest.raises(RunError, match="shards fingerprint"):
        Run(tmp_path / "run").begin(mae, changed)
    with pytest.raises(RunError, match="with another order"):
        Run(tmp_path / "run").begin(mae, {**about, "order": 2})
    with pytest.raises(RunError, match="--out"):
        Run(tmp_path / "run").begin(mae, about, resume="none")


def test_shards_of_the_same_images_in_another_format_are_gone_on_with(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    mae = pretrain_and_die.chosen()
    assert Run(tmp_path / "run").begin(mae, {**about, "shards_fingerprint": "of betons"}) is not None
    assert "of the same images; going on" in capsys.readouterr().err


def test_a_run_may_change_what_no_number_depends_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    mae = pretrain_and_die.chosen()
    calm = mae.model_copy(update={"logging": mae.logging.model_copy(update={"every_steps": 7})})
    found = Run(tmp_path / "run").begin(calm, about)
    assert found is not None
    fused, lars = (
        mae.model_copy(update={"optimizer": mae.optimizer.model_copy(update={"name": name})})
        for name in ("fused_adam", "lars")
    )
    assert Run(tmp_path / "run").begin(fused, about) == found
    with pytest.raises(RunError, match=r"optimizer\.name was 'adamw', now 'lars'"):
        Run(tmp_path / "run").begin(lars, about)


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        Run(tmp_path).begin(pretrain_and_die.chosen(), {})


def test_a_run_that_the_disk_cannot_hold_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="keep_last"):
        Run(tmp_path).make_room(10**15, keep=2)
    Run(tmp_path).make_room(1000, keep=2)


def test_a_plugin_that_is_not_there_leaves_no_run_behind(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mae_pipe", "pretrain", "digits", "--shards", str(finished / "shards")]
    done = subprocess.run(
        [*command, "--out", str(out), "--set", "mask.name=blok"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5
    assert "blok" in done.stderr
    assert not out.exists()


def test_a_run_records_its_plugins_and_says_when_one_has_changed(finished: Path, tmp_path: Path) -> None:
    used = {entry["kind"]: entry for entry in runs.about(finished / "run")["plugins"]}
    assert set(used) == {"method", "mask", "target", "shards"}
    assert used["mask"]["package"] == "mae-pipe"
    assert len(used["target"]["sha256"]) == 64
    shutil.copytree(finished / "run", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["plugins"][0]["sha256"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    done = start(finished / "shards", tmp_path / "run", tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not the one that" in done.stderr
