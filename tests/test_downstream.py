"""Probing and finetuning on small shards: labels, layer decay, results that a direct count confirms, resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mae_pipe import outcome, recipe, runs
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, read_weights
from mae_pipe.cli.downstream import finetune as finetune_command
from mae_pipe.cli.downstream import probe as probe_command
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.downstream import Result, downstream, groups_of
from mae_pipe.errors import DataError, DiskError, PluginError, RunError
from mae_pipe.labelled import few
from mae_pipe.opening import folder_of, inherit
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder

MAE = recipe.Pretrain(
    data=recipe.Data(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), centre_share=1.0),
    encoder=recipe.EncoderShape(width=16, depth=2, heads=2, patch=4),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
CLASSES = ["across", "down", "flat"]
PER_CLASS = {"train": 8, "val": 5}
SMALL = ("global_batch = 6", "micro_batch = 3", "workers = 1", "flip = 0.0")


def picture(label: int, random: np.random.Generator) -> Image.Image:
    """20 x 20 pixels that vary across, down, or not at all, with noise."""
    ramp = np.linspace(0, 200, 20)
    base = [np.tile(ramp, (20, 1)), np.tile(ramp[:, None], (1, 20)), np.full((20, 20), 100.0)][label]
    noisy = base[..., None] + random.normal(0, 20, (20, 20, 3)) + random.uniform(0, 50)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("downstream"), np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                picture(label, random).save(place / f"{number}.png")
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1)
    return folder / "shards"


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """A run folder as pretraining leaves it; its weights are other than those of an untrained encoder."""
    folder = tmp_path / "run"
    folder.mkdir()
    weights = MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict()
    torch.manual_seed(3)
    save_file({n: w + 0.02 * torch.randn_like(w) for n, w in weights.items()}, folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(MAE.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(shards)}))
    return folder


def chosen(task: str, *changes: str) -> recipe.Downstream:
    base = [f"data.{change}" for change in SMALL]
    base += ["engine.precision=fp32", "optimizer.base_lr=0.2", "schedule.warmup_epochs=0.5", "schedule.epochs=2"]
    loaded = recipe.load(f"{task}_digits", [*base, *changes], task=task)
    assert isinstance(loaded, recipe.Downstream)
    return loaded


def measured(run: Path, out: Path, shards: Path) -> dict[str, float]:
    """A direct count: the saved model, image by image."""
    settings = runs.read_recipe(out)
    assert isinstance(settings, recipe.Downstream)
    task = Classification.from_recipe(settings, MAE, read_weights(run)[0], Catalog(), classes=3)
    task.load_state_dict(load_file(out / "model.safetensors"))
    task.eval()
    stream = open_stream(shards, "val", settings.data, seed=0, share=Share(), catalog=Catalog(), training=False)
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in stream.once():
            for name, value in task(batch, mode="metrics").items():
                sums[name] = sums.get(name, 0.0) + value.item()
    stream.close()
    return {name: total / 15 for name, total in sums.items()}


def encoder_of(out: Path) -> dict[str, Tensor]:
    weights = load_file(out / "model.safetensors")
    return {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}


def test_a_probe_leaves_the_encoder_and_reports_what_a_direct_count_gives(run: Path, shards: Path) -> None:
    result = downstream(run, chosen("probe"), catalog=Catalog())
    out = run / "probe"
    assert result.folder == out
    assert result.images == 15
    assert result.metrics == pytest.approx(measured(run, out, shards), rel=1e-5)
    before = read_weights(run)[0]
    after = encoder_of(out)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    written = json.loads((out / "result.json").read_text())
    assert written == result.to_json()
    always = {"task", "images", "split", "from_scratch", "labels_per_class", "main", "ema"}
    assert set(written) == always | {"top1", "top5", "loss"}
    about = json.loads((out / "run.json").read_text())
    assert (about["from_scratch"], about["images"], about["split"]) == (False, 24, "train")


def test_the_report_finds_trained_and_untrained_runs(run: Path) -> None:
    small = chosen("finetune", "labels_per_class=2", "data.global_batch=9", "schedule.epochs=6")
    for scratch in (False, True):
        downstream(run, small, catalog=Catalog(), from_scratch=scratch)
    found = outcome.results(run)
    assert [(r.folder, r.task, r.pretrained, r.labels_per_class, r.images) for r in found] == [
        ("finetune-scratch-2", "finetune", False, 2, 15),
        ("finetune-2", "finetune", True, 2, 15),
    ]
    # 6 images, 9 a step: the stream runs on across epochs.
    rows = [json.loads(line) for line in (run / "finetune-2" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows if row["kind"] == "train"] == [(4, 6.0)]


def test_a_stopped_finetuning_goes_on_to_the_same_model(run: Path, shards: Path) -> None:
    lively = ("saving.every_epochs=1", "saving.keep_last=9", "drop_path=0.5", "eval_every_epochs=1")
    noisy = ("dropout=0.1", "data.erase=0.5", "mixing.mixup=0.8", "mixing.cutmix=1.0")
    tuned = chosen("finetune", *lively, *noisy, "labels_per_class=8", "logging.every_steps=1")
    first = downstream(run, tuned, catalog=Catalog())
    out = run / "finetune-8"
    before, after = read_weights(run)[0], encoder_of(out)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert first.metrics == pytest.approx(measured(run, out, shards), rel=1e-5)

    half = run / "half"
    shutil.copytree(out, half)
    steps = sorted(path.name for path in (half / "checkpoints").iterdir())
    assert steps == ["step-0000004", "step-0000008"]
    shutil.rmtree(half / "checkpoints" / steps[-1])
    for name in ("result.json", "model.safetensors"):
        (half / name).unlink()
    again = downstream(run, tuned, catalog=Catalog(), out=half)
    assert again.metrics == first.metrics
    ours, theirs = load_file(half / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    finished = downstream(run, tuned, catalog=Catalog(), out=half)  # nothing is left to train
    assert finished.metrics == first.metrics


def test_a_run_names_the_weights_that_its_head_does_without(run: Path, shards: Path) -> None:
    head = ("head.options={layer_norm=true}", "labels_per_class=2")
    result = downstream(run, chosen("finetune", *head), catalog=Catalog())
    assert runs.about(result.folder)["left_out"] == ["norm.weight", "norm.bias"]
    assert not {"norm.weight", "norm.bias"} & set(encoder_of(result.folder))
    assert result.metrics == pytest.approx(measured(run, result.folder, shards), rel=1e-5)


def test_a_saved_model_says_all_that_it_takes_to_build_it(run: Path, shards: Path) -> None:
    downstream(run, chosen("finetune", "labels_per_class=2", "schedule.epochs=3"), catalog=Catalog())
    path = run / "finetune-2" / "model.safetensors"
    with safe_open(path, "pt") as file:
        said = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    settings = recipe.parse(said["recipe"], str(path))
    assert isinstance(settings, recipe.Downstream)
    shape = recipe.Pretrain(data=settings.data, encoder=recipe.EncoderShape(**said["encoder"]))
    task = Classification.from_recipe(settings, shape, None, Catalog(), classes=len(said["classes"]))
    task.load_state_dict(load_file(path))
    assert said["classes"] == CLASSES


def test_ranks_average_what_the_head_counts_and_never_the_encoders_positions(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged: set[str] = set()
    monkeypatch.setattr(
        "mae_pipe.downstream.agree_on_buffers", lambda part: averaged.update(n for n, _ in part.named_buffers())
    )
    downstream(run, chosen("probe", "schedule.epochs=1"), catalog=Catalog())
    assert {name.rpartition(".")[2] for name in averaged} == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_head_that_is_not_there_leaves_no_folder_behind(run: Path) -> None:
    with pytest.raises(PluginError, match="did you mean 'linear'"):
        downstream(run, chosen("probe", "head.name=liner"), catalog=Catalog())
    assert not (run / "probe").exists()


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_a_step(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae_pipe.runs.shutil.disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(DiskError, match="keep_last"):
        downstream(run, chosen("finetune", "labels_per_class=2", "schedule.epochs=3"), catalog=Catalog())


def test_another_encoder_in_the_same_folder_is_refused(run: Path) -> None:
    downstream(run, chosen("probe", "schedule.epochs=1"), catalog=Catalog())
    with pytest.raises(RunError, match="another encoder fingerprint"):
        downstream(run, chosen("probe", "schedule.epochs=1"), catalog=Catalog(), out=run / "probe", from_scratch=True)


def test_two_processes_at_zero_3_measure_what_a_direct_count_gives(run: Path, shards: Path) -> None:
    changes = ["engine.zero=3", "engine.persistence_threshold=0", "engine.precision=fp32", "schedule.epochs=2"]
    changes += [f"data.{change}" for change in SMALL]
    command = [sys.executable, "-m", "mae_pipe", "probe", str(run), "--recipe", "probe_digits", "--nproc", "2"]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "measured on 15 images of 'val'" in done.stdout
    said = json.loads((run / "probe" / "result.json").read_text())
    wanted = measured(run, run / "probe", shards)
    assert {name: said[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_few_labels_are_the_first_of_each_class_in_the_seeds_order() -> None:
    labels = np.array([0, 1, 2] * 6 + [0] * 10, np.int32)
    two = few(labels, chosen("finetune", "labels_per_class=2"), CLASSES)
    three = few(labels, chosen("finetune", "labels_per_class=3"), CLASSES)
    assert np.bincount(labels[two]).tolist() == [2, 2, 2]
    assert set(two) < set(three)  # more labels are more of the same
    assert len(set(two)) == 6
    assert two.tolist() == few(labels, chosen("probe", "labels_per_class=2"), CLASSES).tolist()
    assert two.tolist() != few(labels, chosen("finetune", "labels_per_class=2", "seed=1"), CLASSES).tolist()


def test_a_class_with_too_few_images_is_refused_by_name(run: Path) -> None:
    with pytest.raises(DataError, match="'across' has 8 images in 'train', fewer than labels_per_class 9"):
        downstream(run, chosen("finetune", "labels_per_class=9"), catalog=Catalog())


def test_a_missing_split_or_missing_labels_are_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test', they have train, val; .*eval_split=NAME"):
        downstream(run, chosen("probe", "eval_split=test"), catalog=Catalog())
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        picture(0, np.random.default_rng(0)).save(tmp_path / "images" / split / "0.png")
    build(tmp_path / "images", tmp_path / "bare", catalog=Catalog(), workers=1)
    with pytest.raises(DataError, match=r"the split 'train' of .* has no labels; .*one sub-folder a class"):
        downstream(run, chosen("probe"), catalog=Catalog(), shards=tmp_path / "bare")


def test_pixels_are_the_pretrained_runs_unless_the_recipe_says_otherwise() -> None:
    data = inherit(chosen("probe"), MAE).data
    assert (data.size, data.mean, data.std, data.centre_share) == (16, MAE.data.mean, MAE.data.std, 1.0)
    assert (data.global_batch, data.crop) == (6, "centre")
    data = inherit(chosen("probe", "data.size=32", "data.mean=[0.1, 0.1, 0.1]"), MAE).data
    assert (data.size, data.mean, data.std) == (32, (0.1, 0.1, 0.1), MAE.data.std)
    with pytest.raises(RunError, match=r"data.size 30 is no multiple of the pretrained encoder's patch 4; .*=28"):
        inherit(chosen("probe", "data.size=30"), MAE)


def test_layers_further_down_learn_more_slowly() -> None:
    tuned = inherit(chosen("finetune", "optimizer.layer_decay=0.5", "optimizer.weight_decay=0.1"), MAE)
    task = Classification.from_recipe(tuned, MAE, None, Catalog(), classes=3)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups_of(task, tuned)
        for parameter in group["params"]
    }
    assert set(found) == set(names.values())
    assert found["encoder.pos_embed"] == found["encoder.cls_token"] == (0.125, 0.0)
    assert found["encoder.patch_embed.proj.weight"] == (0.125, 0.1)
    assert found["encoder.blocks.0.attn.qkv.weight"] == (0.25, 0.1)
    assert found["encoder.blocks.1.attn.qkv.bias"] == (0.5, 0.0)
    assert found["encoder.norm.weight"] == (1.0, 0.0)
    assert found["head.classify.weight"] == (1.0, 0.1)


def test_a_frozen_encoder_is_in_no_parameter_group() -> None:
    probe = inherit(chosen("probe"), MAE)
    task = Classification.from_recipe(probe, MAE, None, Catalog(), classes=3)
    grouped = {id(parameter) for group in groups_of(task, probe) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in task.head.parameters()}


def test_runs_that_are_compared_do_not_collide() -> None:
    names = {
        folder_of(Path("R"), chosen(task, *few), from_scratch=scratch).name
        for task in ("probe", "finetune")
        for few in (("labels_per_class=3",), ("labels_per_class=4",))
        for scratch in (True, False)
    }
    assert len(names) == 8
    assert folder_of(Path("R"), chosen("probe"), from_scratch=True) == Path("R/probe-scratch")


@pytest.mark.parametrize("name", [n for n in recipe.names() if recipe.load(n).task in ("probe", "finetune")])
def test_built_in_recipes_leave_size_and_statistics_to_the_pretrained_run(name: str) -> None:
    loaded = recipe.load(name)
    own = {"finetune_vit_huge_448": {"size", "centre_share"}, "finetune_ade20k": {"size"}}.get(name, set())
    assert {"size", "mean", "std", "centre_share"} & loaded.data.model_fields_set == own
    assert isinstance(loaded, recipe.Downstream)


@pytest.mark.parametrize("task", ["probe", "finetune"])
def test_the_commands_pass_on_what_they_are_given(task: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, recipe.Downstream, dict[str, object]]] = []

    def spy(folder: Path, settings: recipe.Downstream, **given: object) -> Result:
        calls.append((folder, settings, given))
        return Result(folder / "x", task, {"auc": 0.5}, 15, "val", True, 4)

    monkeypatch.setattr("mae_pipe.downstream.downstream", spy)
    command = {"probe": probe_command, "finetune": finetune_command}[task]
    arguments = f"{run} --shards S --out O --from-scratch --labels-per-class 4 --set optimizer.clip=2.0".split()
    said = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert said.exit_code == 0
    assert "auc" in said.output
    [(folder, settings, given)] = calls
    assert (folder, settings.task, settings.labels_per_class, settings.optimizer.clip) == (run, task, 4, 2.0)
    assert (given["shards"], given["out"], given["from_scratch"]) == (Path("S"), Path("O"), True)
