"""Monitors: numbers of held-out images that no step depends on, and warnings that come when they should."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F

from mae_pipe import recipe
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.data import decode
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError, MaePipeError, RecipeError
from mae_pipe.monitoring import measures
from mae_pipe.monitoring.rules import warnings
from mae_pipe.pixels import normalise
from mae_pipe.pretraining import pretrain, stream_of
from mae_pipe.sharding import build as shard

TWINS = Catalog((Path(__file__).parent / "twins.py",))
READ = recipe.Monitor(every_epochs=1, images=9, knn=12)
TINY = recipe.Pretrain(
    data=recipe.Data(size=16, global_batch=8, micro_batch=4, workers=0),
    encoder=recipe.EncoderShape(width=32, depth=1, heads=2, patch=4, drop_path=0.2),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
    optimizer=recipe.Optimizer(base_lr=0.05),
    schedule=recipe.Schedule(epochs=3, warmup_epochs=1),
    engine=recipe.EngineChoice(zero=1, precision="fp32", persistence_threshold=0),
    saving=recipe.Saving(every_epochs=1, background=False),
    logging=recipe.Logging(every_steps=1, pictures_every_epochs=9),
)  # 2 steps an epoch of 16 images
PLAIN = {"decoder": recipe.DecoderShape(), "mask": recipe.MaskChoice(), "target": recipe.TargetChoice()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to train on and 11 held out, of two classes: dark and light, of any colour."""
    folder, draw = tmp_path_factory.mktemp("watched"), np.random.default_rng(0)
    for number in range(27):
        light, split = number % 2, "train" if number < 16 else "val"
        pixels = draw.integers(100 * light, 156 + 100 * light, (24, 24, 3)).astype(np.uint8)
        pixels[:, number % 8 :: 8] = draw.integers(0, 256, 3)
        path = folder / "images" / split / ("dark", "light")[light] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    shard(folder / "images", folder / "shards", catalog=Catalog(), workers=1, per_shard=4)
    return folder / "shards"


def of(**tables: Any) -> recipe.Pretrain:
    return TINY.model_copy(update=tables)


def twins(apart: float, **tables: Any) -> recipe.Pretrain:
    """Two views, which should have the same features."""
    method = recipe.Chosen(name="twins", options={"apart": apart})
    return of(method=method, **PLAIN, **tables)


def rows(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Of the journal, without the time at which they were written."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "images_per_second", "wait_share")
    return [{n: v for n, v in row.items() if n not in timed} for row in lines if row["kind"] in kinds]


def features(count: int, width: int, seed: int = 0) -> measures.Features:
    scales = 0.5 ** np.arange(width)
    return np.random.default_rng(seed).normal(size=(count, width)) * scales + 0.1


def test_rankme_is_the_entropy_of_the_singular_values() -> None:
    values = features(40, 12)
    roots = np.sqrt(np.linalg.eigvalsh(values.T @ values))  # another way to the singular values
    shares = [root / math.fsum(roots) + 1e-7 for root in roots]
    assert measures.rankme(values) == pytest.approx(math.exp(-math.fsum(s * math.log(s) for s in shares)), rel=1e-9)
    assert measures.rankme(np.eye(30)) == pytest.approx(30, rel=1e-5)
    assert measures.rankme(np.ones((30, 8))) == pytest.approx(1, abs=1e-4)
    assert measures.rankme(np.zeros((30, 8))) == 1.0
    assert math.isnan(measures.rankme(np.full((3, 2), np.nan)))


def test_cosine_alignment_and_uniformity_are_those_of_all_pairs() -> None:
    one, other = features(9, 5), features(9, 5, seed=1)
    a, b = (F.normalize(torch.from_numpy(part), dim=1) for part in (one, other))
    pairs = [float(a[i] @ a[j]) for i in range(9) for j in range(9) if i != j]
    assert measures.mean_cosine(one) == pytest.approx(math.fsum(pairs) / 72, rel=1e-12)
    assert measures.alignment(one, other) == pytest.approx(float((a - b).norm(dim=1).pow(2).mean()), rel=1e-12)
    expected = torch.pdist(a).pow(2).mul(-2).exp().mean().log()
    assert measures.uniformity(one) == pytest.approx(float(expected), rel=1e-10)
    assert measures.uniformity(np.ones((9, 5))) == pytest.approx(0.0, abs=1e-12)


def test_the_twenty_nearest_vote_by_their_nearness() -> None:
    bank, asked = features(60, 5), features(15, 5, seed=1)
    known, labels = np.arange(60) * 7 % 3, np.arange(15) % 3
    right = 0
    for vector, label in zip(measures.unit(asked), labels, strict=True):
        near = sorted(((float(vector @ other), int(c)) for other, c in zip(measures.unit(bank), known, strict=True)))[
            -20:
        ]
        votes = [math.fsum(math.exp(cosine / 0.07) for cosine, c in near if c == kind) for kind in range(3)]
        right += votes.index(max(votes)) == label
    assert measures.vote(bank, known, asked, labels) == pytest.approx(right / 15)
    assert 0 < right < 15


@pytest.mark.parametrize(("zero", "precision", "near"), [(1, "fp32", 1e-5), (3, "bf16", 3e-2)])
def test_a_run_that_is_watched_learns_the_same_to_the_last_bit(
    shards: Path, tmp_path: Path, zero: int, precision: str, near: float
) -> None:
    engine = TINY.engine.model_copy(update={"zero": zero, "precision": precision})
    for name, chosen in (("plain", of(engine=engine)), ("watched", of(engine=engine, monitor=READ))):
        pretrain(chosen, shards, tmp_path / name, catalog=Catalog())
    plain, watched = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(watched[name], tensor) for name, tensor in plain.items())
    assert rows(tmp_path / "watched", "train") == rows(tmp_path / "plain", "train")
    assert not rows(tmp_path / "plain", "monitor")
    found = rows(tmp_path / "watched", "monitor")
    assert [(row["step"], row["epoch"]) for row in found] == [(0, 0), (2, 1), (4, 2), (6, 3)]
    expected = directly(TINY, shards)
    assert {name: found[0][name] for name in expected} == pytest.approx(expected, rel=near)
    assert found[3]["held_out_loss"] < found[0]["held_out_loss"]
    assert 0 <= found[3]["knn"] <= 1


@torch.no_grad()
def directly(chosen: recipe.Pretrain, shards: Path) -> dict[str, float]:
    """A reading of first weights, image by image."""
    task, shelf = build(chosen, Catalog()).eval(), Shelf(shards, "val", Catalog())
    held = np.unique(np.linspace(0, 10, 9).round().astype(np.int64))
    made = []
    for row in held.tolist():
        pixels = torch.from_numpy(decode.centred(decode.picture(shelf.read(row)), 16, 0.875).copy())
        made.append(task.features(normalise(pixels.permute(2, 0, 1)[None], task.view.mean, task.view.std))[0])
    shelf.close()
    stream = stream_of(task, chosen, shards, "val", share=Share(0, 1, 8), catalog=Catalog(), rows=held)
    batches = stream.batches()
    losses = [float(task(next(batches))) for _ in range(2)]  # 9 images: two global batches of 8
    stream.close()
    vectors = torch.stack(made).double().numpy()
    return {
        "held_out_loss": sum(losses) / 2,
        "rankme": measures.rankme(vectors),
        "cosine": measures.mean_cosine(vectors),
        "images": 9,
    }


def test_a_run_that_goes_on_writes_the_same_readings(shards: Path, tmp_path: Path) -> None:
    def stop(step: int, batch: Any, loss: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    chosen = of(monitor=READ)
    pretrain(chosen, shards, tmp_path / "whole", catalog=Catalog())
    with pytest.raises((KeyboardInterrupt, MaePipeError)):
        pretrain(chosen, shards, tmp_path / "halves", catalog=Catalog(), seen=stop)
    assert len(rows(tmp_path / "halves", "monitor")) == 2
    pretrain(chosen, shards, tmp_path / "halves", catalog=Catalog())
    assert rows(tmp_path / "halves", "monitor") == rows(tmp_path / "whole", "monitor")


@pytest.mark.parametrize(("apart", "said"), [(0.0, {"rank"}), (1.0, set())])
def test_a_method_that_collapses_is_told_of_and_one_that_does_not_is_not(
    shards: Path, tmp_path: Path, apart: float, said: set[str]
) -> None:
    long = {"schedule": recipe.Schedule(epochs=15, warmup_epochs=1), "optimizer": recipe.Optimizer(base_lr=0.3)}
    screen = StringIO()
    chosen = twins(apart, monitor=recipe.Monitor(every_epochs=15), **long)
    pretrain(chosen, shards, tmp_path / "run", catalog=TWINS, console=Console(file=screen, width=400))
    first, last = rows(tmp_path / "run", "monitor")
    warned = rows(tmp_path / "run", "warning")
    assert {row["rule"] for row in warned} == said, last
    assert all(row["text"] in screen.getvalue() for row in warned)
    assert first["sign"] == last["sign"] == 0.25
    assert first["images"] == 11
    # The loss is of 16 crops, alignment and uniformity of the 11 images; without the second they are means alone.
    assert (last["alignment"] < first["alignment"] / 10) == (last["uniformity"] > first["uniformity"]) == (not apart)
    if not apart:
        assert last["held_out_loss"] == pytest.approx(last["alignment"], rel=0.5)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 patterns of four colours to train on and 32 held out: more than two clusters can hold."""
    folder, draw = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    for number in range(96):
        path = folder / "images" / ("train" if number < 64 else "val") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = draw.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((20, 20), Image.Resampling.BILINEAR).save(path)
    shard(folder / "images", folder / "shards", catalog=Catalog(), workers=1)
    return folder / "shards"


@pytest.mark.parametrize(("centring", "said"), [(False, {"one_output"}), (True, set())])
def test_dino_collapses_without_centring_and_is_told_of(
    patterns: Path, tmp_path: Path, centring: bool, said: set[str]
) -> None:
    options: dict[str, Any] = {
        "out": 64,
        "hidden": 32,
        "bottleneck": 16,
        "local_crops": 0,
        "momentum": 0.95,
    }
    options |= {"frozen_epochs": 0.0, "teacher_warmup_epochs": 0.0, "teacher_temperature": [0.04, 0.04]}
    chosen = of(
        method=recipe.Chosen(name="dino", options=options | {"centring": centring}),
        data=TINY.data.model_copy(update={"global_batch": 16, "micro_batch": 16, "crop_scale": (0.6, 1.0)}),
        schedule=recipe.Schedule(epochs=24, warmup_epochs=0),
        optimizer=recipe.Optimizer(base_lr=0.08),
        monitor=recipe.Monitor(every_epochs=8),
        **PLAIN,
    )
    pretrain(chosen, patterns, tmp_path / "run", catalog=Catalog(), console=Console(quiet=True))
    last = rows(tmp_path / "run", "monitor")[-1]
    assert {row["rule"] for row in rows(tmp_path / "run", "warning")} == said, last
    assert (last["mean_output_entropy"] < 0.01) == (not centring)


def test_without_images_that_are_held_out_a_run_says_so(shards: Path, tmp_path: Path) -> None:
    screen = StringIO()
    monitor = recipe.Monitor(every_epochs=2.5, split="test")
    pretrain(of(monitor=monitor), shards, tmp_path / "run", catalog=Catalog(), console=Console(file=screen, width=400))
    assert "the shards have no split 'test', so no image is held out" in screen.getvalue()
    assert [row["step"] for row in rows(tmp_path / "run", "monitor")] == [0, 6]  # step 5 is as good as the last


def test_a_vote_needs_labels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / split / "a.png")
    shard(tmp_path / "images", tmp_path / "shards", catalog=Catalog(), workers=1)
    with pytest.raises(DataError, match="1 images of the split 'train' have no label"):
        pretrain(of(monitor=READ), tmp_path / "shards", tmp_path / "run", catalog=Catalog())
    assert not (tmp_path / "run").exists()


def test_a_band_is_given_in_order() -> None:
    values = {"task": "pretrain", "monitor": {"band": [[1, 0.5, 0.9], [1, 0.4, 0.8]]}}
    with pytest.raises(RecipeError, match="rising epochs"):
        recipe.parse(values, "of a test")


# A journal of five readings, one an epoch, of a run that does well.
WARM = recipe.Pretrain(
    encoder=recipe.EncoderShape(width=64, depth=1, heads=2),
    schedule=recipe.Schedule(epochs=10, warmup_epochs=1),
    monitor=recipe.Monitor(every_epochs=1, band=((1, 0.7, 1.2), (5, 0.3, 0.8))),
)
LOSSES = [1.6, 0.95, 0.85, 0.75, 0.65, 0.6]


def journal(*, losses: list[float] = LOSSES, **numbers: list[Any]) -> list[dict[str, Any]]:
    """Rows of a training loss in every epoch, and of a reading after it; ``numbers`` take a reading's place."""
    read: dict[str, list[Any]] = {
        "held_out_loss": losses,
        "rankme": [20, 12, 14, 20, 25, 26],
        "cosine": [0.6, 0.97, 0.9, 0.8, 0.8, 0.7],
    }
    read |= {"mean_output_entropy": [0.9] * 6, "teacher_entropy": [0.995, 0.9, 0.8, 0.7, 0.7, 0.7], **numbers}
    found: list[dict[str, Any]] = []
    for epoch, loss in enumerate(losses):
        if epoch:
            found.append({"kind": "train", "step": 10 * epoch, "epoch": float(epoch), "loss": loss})
        values = {name: of_epochs[epoch] for name, of_epochs in read.items()}
        found.append({"kind": "monitor", "step": 10 * epoch, "epoch": float(epoch), "images": 512, **values})
    return found


def told(rows: list[dict[str, Any]], chosen: recipe.Pretrain = WARM) -> dict[str, str]:
    """What is warned of, at every reading as the rows come in, once each."""
    seen: list[dict[str, Any]] = []
    found: dict[str, str] = {}
    for row in rows:
        seen.append(row)
        if row["kind"] == "monitor":
            for rule, text in warnings(chosen, list(seen)):
                assert rule not in found
                found[rule] = text
                seen.append({"kind": "warning", "rule": rule, "step": row["step"], "text": text})
    return found


@pytest.mark.parametrize(
    ("changes", "rules", "words"),
    [
        ({}, set(), ""),
        ({"losses": [1.6, 0.95, 0.85, 0.84, 0.83, 0.82]}, {"band"}, "the recipe expects 0.3000 to 0.8"),
        ({"losses": [1.6, 0.95, 0.55, 0.5, 0.4, 0.31]}, {"band"}, "easier than it should be"),
        ({"losses": [1.6, 0.995, 0.99, 0.99, 0.99, 0.99]}, {"plateau", "band"}, "0.9987 is what a prediction of"),
        ({"losses": [1.6, 1.04, 0.99, 0.75, 0.65, 0.6], "held_out_loss": [1.6, 0.86, 0.8, 0.7, 0.65, 0.6]}, set(), ""),
        ({"rankme": [20, 12, 14, 20, 8, 8]}, {"rank"}, "has fallen from 20.0 to 8.0"),
        ({"rankme": [20, 12, 6, 4, 2, 1.2]}, {"rank"}, "collapse"),
        ({"rankme": [20, 2.3, 2.2, 2.2, 2.2, 2.2]}, {"rank"}, "is 2.3, of 64 at most"),
        ({"rankme": [40, 12, 14, 20, 25, 26]}, set(), ""),  # of first weights it says nothing
        ({"cosine": [0.6, 0.97, 0.9, 0.8, 0.995, 0.7]}, {"alike"}, "mean cosine of 0.9950"),
        ({"cosine": [0.995, 0.97, 0.9, 0.8, 0.8, 0.7]}, set(), ""),
        ({"mean_output_entropy": [0.9, 0.09, 0.09, 0.09, 0.09, 0.09]}, {"one_output"}, "centring"),
        ({"mean_output_entropy": [0.9, 0.09, 0.09, 0.2, 0.09, 0.09]}, set(), ""),
        ({"teacher_entropy": [0.995] * 6}, {"no_opinion"}, "temperature"),
        ({"teacher_entropy": [0.995, 0.995, 0.995, 0.98, 0.995, 0.995]}, set(), ""),
        ({"held_out_loss": [1.6, 0.95, 0.96, 0.97, 0.98, 0.99]}, {"overfitting"}, "by heart"),
        ({"held_out_loss": [1.6, 0.95, 0.85, 0.86, 0.87, 0.84]}, set(), ""),
        ({"held_out_loss": [1.6, None, 0.85, 0.86, 0.87, 0.865], "rankme": [None] * 6}, set(), ""),
    ],
)  # fmt: skip
def test_each_rule_speaks_when_it_should_and_once(changes: dict[str, Any], rules: set[str], words: str) -> None:
    found = told(journal(**changes))
    assert set(found) == rules
    assert words in " ".join(found.values())


def test_only_a_loss_of_normalised_pixels_has_that_plateau() -> None:
    flat = journal(losses=[1.6, 0.995, 0.99, 0.99, 0.99, 0.99])
    free = {"monitor": recipe.Monitor(every_epochs=1)}
    assert set(told(flat, WARM.model_copy(update=free))) == {"plateau"}
    pixel = {**free, "target": recipe.TargetChoice(name="pixel")}
    assert not told(flat, WARM.model_copy(update=pixel))
    assert not told(flat, WARM.model_copy(update={**free, "schedule": recipe.Schedule(epochs=10, warmup_epochs=6)}))


def test_the_band_of_the_papers_recipe_holds_the_published_curve_and_no_plateau() -> None:
    chosen = recipe.load("mae_vit_base_patch16")
    assert isinstance(chosen, recipe.Pretrain)
    published = {1: 0.950, 2: 0.782, 5: 0.703, 10: 0.602, 14: 0.559}  # means of the epochs that end there

    def said(curve: dict[int, float]) -> set[str]:
        found: list[dict[str, Any]] = []
        for epoch, loss in curve.items():
            place = {"step": epoch, "epoch": float(epoch)}
            found += [{"kind": "train", "loss": loss, **place}, {"kind": "monitor", **place}]
        return set(told(found, chosen))

    assert not said(published)
    assert "band" in said(dict.fromkeys(published, 0.99))
    assert "band" in said({epoch: loss / 2 for epoch, loss in published.items()})
