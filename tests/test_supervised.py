"""Supervised training as a method: its loss by hand, finetuning's random numbers, and runs by the command."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mae_pipe import cli, recipe
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification
from mae_pipe.data.batch import Batch
from mae_pipe.errors import DataError, PluginError
from mae_pipe.sharding import build as shard
from tests.tiny import losses

CLASSES = 3
ALL = {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "erase": 0.5}


def made(**options: object) -> Any:
    chosen = recipe.Pretrain(
        seed=5,
        data=recipe.Data(size=16),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4),
        method=recipe.Chosen(name="supervised", options=options),
    )
    task: Any = build(chosen, Catalog(), classes=CLASSES)
    with torch.no_grad():
        task.classify.weight.mul_(50)  # its first weights hardly tell classes apart
    return task


def batch(first: int = 0, images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(first)
    pixels = torch.randint(0, 256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8)
    numbers = torch.arange(first, first + images)
    return Batch(pixels, numbers % CLASSES, numbers, numbers)


def by_hand(features: torch.Tensor, task: Any, shares: np.ndarray[Any, Any]) -> float:
    """Cross-entropy of shares of classes, in float64."""
    weight, bias = (p.detach().double().numpy() for p in (task.classify.weight, task.classify.bias))
    scores = features.detach().double().numpy() @ weight.T + bias
    highest = scores.max(1, keepdims=True)
    logs = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
    return float(-(shares * logs).sum(1).mean())


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy(pool: str, smoothing: float) -> None:
    task = made(pool=pool, label_smoothing=smoothing)
    given = batch()
    (images,) = task.images_of(given)
    tokens = task.encoder(images)
    features = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1)
    assert torch.equal(task(given, mode="features"), features)
    shares = (1 - smoothing) * np.eye(CLASSES)[given.labels] + smoothing / CLASSES
    assert task(given).item() == pytest.approx(by_hand(features, task, shares), rel=1e-5)
    best = (features @ task.classify.weight.T + task.classify.bias).argmax(1)
    assert task.signs() == {
        "loss": pytest.approx(task(given).item()),
        "top1": pytest.approx((best == given.labels).float().mean().item()),
    }


def test_mixed_images_have_the_labels_of_both() -> None:
    task = made(mixup=0.8, label_smoothing=0.1)
    given = batch()
    share = task._mixer.draw(0, 16, 16).share
    assert 0.01 < share < 0.99
    (images,) = task.images_of(given)
    mixed = share * images + (1 - share) * images.flip(0)
    one = 0.9 * np.eye(CLASSES)[given.labels] + 0.1 / CLASSES
    shares = share * one + (1 - share) * one[::-1]
    expected = by_hand(task.features(mixed), task, shares)
    assert task(given).item() == pytest.approx(expected, rel=1e-5)
    assert task.eval()(given).item() == pytest.approx(by_hand(task.features(images), task, one), rel=1e-5)


def test_images_are_varied_as_in_finetuning_with_the_same_random_numbers() -> None:
    task = made(**ALL)
    head = Catalog().build("head", "linear", {"pool": "token"}, width=32, classes=CLASSES, class_tokens=1)
    head.classify.load_state_dict(task.classify.state_dict())
    tuned = Classification(
        copy.deepcopy(task.encoder),
        head,
        tuned=2,
        classes=CLASSES,
        label_smoothing=0.1,
        mean=task.view.mean,
        std=task.view.std,
        erase=0.5,
        mixing=recipe.Mixing(mixup=0.8, cutmix=1.0),
        seed=5,
    )
    found = [task(batch(first)).item() for first in range(0, 60, 6)]
    assert found == [tuned(batch(first)).item() for first in range(0, 60, 6)]
    assert len(set(found)) == 10


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pool": "both"}, "pool"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"mixup": -0.1}, "mixup, cutmix and std must be 0 or more"),
        ({"mixing_switch": 2.0}, "mixing_switch must be in"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, object], why: str) -> None:
    with pytest.raises(PluginError, match=why) as caught:
        made(**options)
    assert "\n" not in str(caught.value)


RECIPE = """
task = "pretrain"
ema = 0.8
[method]
name = "supervised"
options = {{ label_smoothing = 0.1, mixup = 0.8, cutmix = 1.0, erase = 0.25 }}
[data]
size = 16
global_batch = 8
micro_batch = {micro_batch}
workers = 0
[encoder]
width = 32
depth = 2
heads = 2
patch = 4
[schedule]
epochs = 1.0
warmup_epochs = 0.5
[engine]
precision = "fp32"
[logging]
every_steps = 1
"""


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "shards"
    shard(image_folder, folder, catalog=Catalog(), workers=1)
    return folder


def pretrained(folder: Path, shards: Path, *words: str, micro_batch: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.toml").write_text(RECIPE.format(micro_batch=micro_batch))
    command = ["pretrain", str(folder / "mine.toml"), "--shards", str(shards), "--out", str(folder / "run"), *words]
    if words:
        subprocess.run(
            [sys.executable, "-m", "mae_pipe", *command],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    else:
        done = CliRunner().invoke(cli._group, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("alone"), shards)


def test_two_ranks_give_the_losses_of_one_that_accumulates(run: Path, shards: Path, tmp_path: Path) -> None:
    both = losses(pretrained(tmp_path, shards, "--nproc", "2"))
    assert both == pytest.approx(losses(run), rel=1e-5)
    assert sorted(both) == [1, 2, 3]


def test_the_average_is_published_and_can_be_probed(run: Path) -> None:
    published, whole = (load_file(run / f"{name}.safetensors") for name in ("encoder", "model"))
    assert whole.keys() - {f"encoder.{name}" for name in published} == {"classify.weight", "classify.bias"}
    words = [
        "probe",
        str(run),
        "--recipe",
        "probe_digits",
        "--set",
        "data.global_batch=8",
        "--set",
        "schedule.epochs=1",
    ]
    words += ["--set", "eval_split=train", "--set", "data.workers=0"]
    done = CliRunner().invoke(cli._group, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads((run / "probe" / "result.json").read_text())["top1"] <= 1


def test_images_without_labels_are_refused_in_words(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "images" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    shard(tmp_path / "images", tmp_path / "shards", catalog=Catalog(), workers=1)
    (tmp_path / "mine.toml").write_text(RECIPE.format(micro_batch=4))
    command = ["pretrain", str(tmp_path / "mine.toml"), "--shards", str(tmp_path / "shards"), "--out"]
    with pytest.raises(
        DataError, match=r"'supervised' learns from labels, and images of .*; shard a folder with a subf"
    ):
        CliRunner().invoke(cli._group, [*command, str(tmp_path / "run")], catch_exceptions=False)
    assert not (tmp_path / "run").exists()
