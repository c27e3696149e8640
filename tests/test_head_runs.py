"""Heads that learn from other labels than one class, or not at all, through the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ["data.global_batch=8", "data.micro_batch=8", "data.workers=0", "schedule.warmup_epochs=0"]


def mae_pipe(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mae_pipe", *words], capture_output=True, text=True, check=False)


def changes(*more: str) -> list[str]:
    return [word for change in (*SMALL, *more) for word in ("--set", change)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a bright half: which one is a map, whether it is warm or cold, wide or high are classes."""
    folder = tmp_path_factory.mktemp("labels")
    draw = np.random.default_rng(3)
    lines = ["path,labels"]
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            upright, warm = number % 2 == 0, number % 3 == 0
            numbers = np.zeros((16, 16), np.uint8)
            numbers[(slice(None), slice(8, None)) if upright else (slice(8, None), slice(None))] = 1
            pixels = 60 + 120 * numbers[..., None] + draw.integers(0, 40, (16, 16, 3))
            pixels[..., 0 if warm else 2] += 30
            for kind, picture in (("images", pixels.astype(np.uint8)), ("maps", numbers)):
                path = folder / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
            names = [*(["upright"] if upright else []), "warm" if warm else "cold"]
            lines.append(f"{split}/{number}.png,{';'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    made = mae_pipe(
        *("shard", str(folder / "images"), str(folder / "shards"), "--workers", "1"),
        *("--labels", str(folder / "labels.csv"), "--maps", str(folder / "maps")),
    )
    assert made.returncode == 0, made.stderr
    done = mae_pipe(
        *("pretrain", "digits", "--shards", str(folder / "shards"), "--out", str(folder / "run")),
        *changes("data.size=16", "schedule.epochs=1", "encoder.depth=1", "encoder.width=48"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("task", ["probe", "finetune"])
@pytest.mark.parametrize(
    ("head", "options", "metric"),
    [
        ("segmentation", [], "miou"),
        ("segmentation", ["head.options.decoder=upernet", "head.options.hidden=16"], "miou"),
        ("multilabel", [], "map"),
    ],
)
def test_a_head_learns_from_its_own_labels(task: str, head: str, options: list[str], metric: str, folder: Path) -> None:
    out = folder / f"{task}-{head}-{len(options)}"
    done = mae_pipe(
        *(task, str(folder / "run"), "--recipe", f"{task}_digits", "--out", str(out)),
        *changes(f"head.name={head}", "head.options={}", *options, "label_smoothing=0", "schedule.epochs=30"),
        *("--set", "optimizer.base_lr=0.1", "--set", "eval_every_epochs=100"),
    )
    if task == "finetune":
        assert done.returncode == 3  # the recipe has labels_per_class, which means nothing here
        assert "labels_per_class 10 is for one class an image" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["main"] == metric
    assert result[metric] > 0.6
    assert result["images"] == 8
    assert {"miou": "mIoU", "map": "mAP"}[metric] in done.stdout


def test_neighbours_vote_without_training(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert mae_pipe("shard", str(image_folder), str(shards), "--split", "val=0.3", "--workers", "1").returncode == 0
    done = mae_pipe(
        *("probe", str(folder / "run"), "--recipe", "knn", "--shards", str(shards), "--out", str(tmp_path / "knn")),
        *changes("head.options.k=3"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "knn" / "result.json").read_text())
    assert {"top1", "top5", "top1_k10"} <= result.keys()
    assert not list((tmp_path / "knn").glob("checkpoints/step-*"))
    again = mae_pipe(
        "finetune", str(folder / "run"), "--shards", str(shards), "--set", "head.name=knn", "--set", "head.options={}"
    )
    assert again.returncode == 3
    assert "has nothing to train" in again.stderr


def test_labels_that_are_not_there_are_a_sentence(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert mae_pipe("shard", str(image_folder), str(shards), "--split", "val=0.3", "--workers", "1").returncode == 0
    for head in ("segmentation", "multilabel"):
        done = mae_pipe(
            *("probe", str(folder / "run"), "--recipe", "probe_digits", "--shards", str(shards)),
            *("--out", str(tmp_path / head), *changes(f"head.name={head}", "head.options={}")),
        )
        assert done.returncode == 4, done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / head).exists()
