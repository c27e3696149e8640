"""Heads that learn from other labels than one class, or not at all: whole runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from mae_pipe import outcome, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, read_weights
from mae_pipe.cli.downstream import probe as probe_command
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.downstream import Result, downstream
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.reporting import render
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder

MAE = recipe.Pretrain(
    data=recipe.Data(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), centre_share=1.0),
    encoder=recipe.EncoderShape(width=32, depth=1, heads=2, patch=4, class_tokens=2),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
SMALL = ("data.global_batch=8", "data.micro_batch=8", "data.workers=0", "data.flip=0.0", "engine.precision=fp32")
FAST = (
    "schedule.warmup_epochs=0",
    "optimizer.base_lr=0.3",
    "eval_every_epochs=7",
    "drop_path=0",
    "logging.every_steps=5",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a bright half, and a map of it; whether it is upright and whether it is warm are their classes."""
    folder = tmp_path_factory.mktemp("labels")
    draw = np.random.default_rng(3)
    lines = ["path,labels"]
    for split, count in (("train", 24), ("val", 11)):
        for number in range(count):
            upright, warm = number % 2 == 0, number % 3 == 0
            numbers = np.zeros((16, 16), np.uint8)
            numbers[(slice(None), slice(8, None)) if upright else (slice(8, None), slice(None))] = 1
            numbers[0] = 255
            pixels = 60 + 120 * (numbers == 1)[..., None] + draw.integers(0, 40, (16, 16, 3))
            pixels[..., 0 if warm else 2] += 30
            for kind, picture in (("images", pixels.astype(np.uint8)), ("maps", numbers)):
                path = folder / kind / split / ("upright" if upright else "flat") / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
            names = [*(["upright"] if upright else []), "warm" if warm else "cold"]
            lines.append(f"{split}/{path.parent.name}/{number}.png,{';'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    catalog = Catalog()
    build(folder / "images", folder / "both", catalog=catalog, workers=1, maps=folder / "maps")
    build(folder / "images", folder / "lists", catalog=catalog, workers=1, labels=folder / "labels.csv")
    return folder


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """A run folder as pretraining leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(MAE.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(shards / "both")}))
    return folder


def chosen(name: str, *changes: str) -> recipe.Downstream:
    loaded = recipe.load(name, [*SMALL, *FAST, *changes])
    assert isinstance(loaded, recipe.Downstream)
    return loaded


def directly(result: Result, run: Path, shards: Path) -> dict[str, float]:
    """The saved model, image by image, summed here."""
    settings = recipe.parse(json.loads((result.folder / "recipe.json").read_text()), "it")
    assert isinstance(settings, recipe.Downstream)
    classes = 3 if Catalog().find("head", settings.head.name).labels == "multi" else 2
    task = Classification.from_recipe(settings, MAE, read_weights(run)[0], Catalog(), classes=classes)
    task.load_state_dict(load_file(result.folder / "model.safetensors"))
    task.eval()
    kind = task.head.labels
    stream = open_stream(
        shards, "val", settings.data, seed=0, share=Share(), catalog=Catalog(), training=False, labels=kind
    )
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for batch in stream.once():
            for name, value in task(batch, mode="metrics").items():
                sums[name] = sums.get(name, torch.zeros(())) + value[0].double()
    stream.close()
    return task.head.summary({name: total / 11 for name, total in sums.items()})


@pytest.mark.parametrize(
    ("name", "labels", "changes", "metric", "goal"),
    [
        ("probe_segmentation", "both", (), "miou", 0.5),
        ("probe_segmentation", "both", ("head.options={ decoder = 'upernet', hidden = 16 }",), "miou", 0.5),
        ("finetune_segmentation", "both", ("head.options.hidden=16",), "miou", 0.5),
        ("probe_digits", "lists", ("head.name=multilabel",), "map", 0.6),
        ("finetune_imagenette", "lists", ("head.name=multilabel", "label_smoothing=0"), "map", 0.6),
        ("probe_digits", "both", ("head.name=attentive",), "top1", 0.6),
    ],
)
def test_a_head_learns_from_its_own_labels_and_reports_what_a_direct_count_gives(
    name: str, labels: str, changes: tuple[str, ...], metric: str, goal: float, run: Path, shards: Path
) -> None:
    slower = ("optimizer.base_lr=0.05",) if name.startswith("finetune") or "attentive" in changes[:1] else ()
    settings = chosen(name, *changes, *slower, "schedule.epochs=15")
    result = downstream(run, settings, catalog=Catalog(), shards=shards / labels)
    written = json.loads((result.folder / "result.json").read_text())
    assert written == result.to_json()
    assert (written["main"], written["images"], written["split"]) == (metric, 11, "val")
    assert result.metrics[metric] > goal
    assert result.metrics == pytest.approx(directly(result, run, shards / labels), rel=1e-4)
    (found,) = outcome.results(run)
    assert found.score == result.metrics[metric]
    assert [step for step, _ in found.curve] == [21, 42, 45]
    word = {"miou": "mIoU", "map": "mAP", "top1": "top-1"}[metric]
    assert (found.metric, found.is_share) == (word, metric == "top1")
    assert word in render([run])


def test_neighbours_vote_without_training(run: Path) -> None:
    result = downstream(run, chosen("probe", "head.name=knn", "head.options.k=3"), catalog=Catalog())
    assert result.folder == run / "probe-knn"
    assert {"loss", "top1", "top5", "top1_k10", "top1_k100", "top1_k200"} == set(result.metrics)
    assert result.metrics["top1"] > 0.8  # bright on the right or below shows without any training
    assert not list((run / "probe-knn").rglob("*.safetensors"))
    assert not list((run / "probe-knn" / "checkpoints").iterdir())
    again = downstream(run, chosen("probe", "head.name=knn", "head.options.k=3"), catalog=Catalog())
    assert again == result
    few = downstream(run, chosen("knn", "labels_per_class=2"), catalog=Catalog())  # a bank of four
    assert few.metrics["top1_k10"] == few.metrics["top1_k200"]


def test_the_command_says_the_main_metric(run: Path) -> None:
    words = [str(run), "--recipe", "probe_segmentation", "--set", "schedule.epochs=1"]
    done = CliRunner().invoke(probe_command, [*words, *(w for c in (*SMALL, *FAST) for w in ("--set", c))])
    assert done.exit_code == 0, done.output
    assert "mIoU" in done.output
    assert "±" not in done.output  # it is no share of images


def test_the_live_line_says_the_newest_score(run: Path) -> None:
    said = Console(file=io.StringIO(), width=300)
    settings = chosen("probe_segmentation", "schedule.epochs=3", "eval_every_epochs=2")
    result = downstream(run, settings, catalog=Catalog(), console=said)
    rows = [row for row in outcome.metrics(result.folder)[1] if row["step"] == 6]
    assert isinstance(said.file, io.StringIO)
    assert f"mIoU {rows[0]['miou']:.2%}" in said.file.getvalue()


@pytest.mark.parametrize(
    ("task", "changes", "error", "says"),
    [
        ("probe", ("head.name=segmentation",), DataError, r"have no maps of classes; build shards .* --maps"),
        ("probe", ("head.name=multilabel",), DataError, r"have no lists of classes; build shards .* --labels"),
        ("finetune", ("head.name=multilabel",), RecipeError, "label_smoothing 0.1 is for one class an image"),
        (
            "probe",
            ("head.name=segmentation", "labels_per_class=2"),
            RecipeError,
            "labels_per_class 2 is for one class an image",
        ),
        (
            "finetune",
            ("head.name=knn",),
            RecipeError,
            "the head 'knn' has nothing to train; use it with: mae-pipe probe",
        ),
        ("probe", ("head.name=segmentation", "eval_split=test"), DataError, "no split 'test', they have train, val"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_leaves_nothing(
    task: str, changes: tuple[str, ...], error: type[Exception], says: str, run: Path, shards: Path
) -> None:
    lacking = "lists" if "maps" in says or "smoothing" in says else "both"
    with pytest.raises(error, match=says) as caught:
        downstream(run, chosen(task, *changes), catalog=Catalog(), shards=shards / lacking)
    assert "\n" not in str(caught.value)
    assert {path.name for path in run.iterdir()} == {"encoder.safetensors", "recipe.json", "run.json"}
