"""`mae-pipe evaluate` and the Python functions on a small run, against numpy, scikit-learn and one process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mae_pipe
from mae_pipe import cli
from mae_pipe.catalog import Catalog
from mae_pipe.errors import DataError, RecipeError, RunError
from mae_pipe.evaluating.judged import Judged
from mae_pipe.evaluating.mapped import numbers_of, read_map
from mae_pipe.evaluating.scores import reliability, scores
from mae_pipe.evaluating.sets import sets_below
from mae_pipe.evaluating.trained import load
from mae_pipe.evaluating.writing import read

CLASSES = ["across", "down", "flat"]
QUICK = {"data.global_batch": 6, "data.micro_batch": 4, "data.workers": 1, "schedule.warmup_epochs": 0.5}
PRETRAIN = {
    **QUICK,
    "data.size": 16,
    "encoder": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "schedule.epochs": 1,
    "engine.precision": "fp32",
}
PROBE = {**QUICK, "schedule.epochs": 6, "engine.precision": "fp32", "optimizer.base_lr": 0.2}


def images(folder: Path, names: list[str], count: int, seed: int) -> Path:
    """Ramps across, down, or none, with noise, in a folder of each name; the first letter says which."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 20)
    kinds = {"a": np.tile(ramp, (20, 1)), "d": np.tile(ramp[:, None], (1, 20)), "f": np.full((20, 20), 100.0)}
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noisy = kinds[name[0]][..., None] + random.normal(0, 60, (20, 20, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pretrainings and a probe in one process, as a notebook would: ``shards``, ``run``, ``again``, ``probe``."""
    folder = tmp_path_factory.mktemp("evaluating")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    images(folder / "images" / "train", CLASSES, 8, 0)
    images(folder / "images" / "val", CLASSES, 7, 1)
    mae_pipe.shard(folder / "images", folder / "shards", workers=1)
    for name in ("run", "again"):
        mae_pipe.pretrain("digits", str(folder / "shards"), folder / name, changes=PRETRAIN)
    mae_pipe.probe(folder / "run", "probe_digits", changes=PROBE, out=folder / "probe")
    return folder


def test_two_pretrainings_in_one_process_are_the_same(home: Path) -> None:
    one, two = (load_file(home / name / "encoder.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_number_is_that_of_independent_formulas(home: Path, tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found = mae_pipe.evaluate(home / "probe", out=tmp_path / "e.json", predictions=tmp_path / "p.csv").only
    assert found.scores is not None
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth, said = ([CLASSES.index(row[name]) for row in rows] for name in ("label", "predicted"))
    assert found.scores.confusion.tolist() == metrics.confusion_matrix(truth, said, labels=range(3)).tolist()
    assert found.scores.top1 == metrics.accuracy_score(truth, said)
    assert found.scores.mean_per_class == pytest.approx(metrics.balanced_accuracy_score(truth, said), abs=1e-12)
    result = json.loads((home / "probe" / "result.json").read_text())
    for name in ("top1", "top5", "loss"):
        assert found.metrics[name] == pytest.approx(result[name], rel=1e-6)
    assert found.scores.nll == pytest.approx(result["loss"], rel=1e-6)
    assert read(tmp_path / "e.json").to_json() == mae_pipe.evaluate(home / "probe", out=tmp_path / "f.json").to_json()
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.width > 1000


def rows_of(count: int, size: int) -> tuple[Judged, np.ndarray]:
    random = np.random.default_rng(5)
    chances = random.dirichlet(np.full(size, 0.3), count)
    labels = random.integers(0, size, count)
    order = np.argsort(-chances, axis=1)
    at = chances[np.arange(count), labels]
    return Judged(
        number=np.arange(count),
        label=labels,
        predicted=order[:, 0],
        probability=chances.max(axis=1),
        top5=(order[:, :5] == labels[:, None]).any(axis=1),
        nll=-np.log(at),
        brier=(chances**2).sum(axis=1) - 2 * at + 1,
        own={},
    ), chances


def test_calibration_is_that_of_guo_and_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rows, chances = rows_of(700, 12)
    found = scores(rows, [str(n) for n in range(12)])
    error = 0.0
    hits = rows.predicted == rows.label
    for number in range(15):  # Guo's loop, image by image
        low, high = number / 15, (number + 1) / 15
        inside = [n for n in range(700) if low < rows.probability[n] <= high]
        if inside:
            gap = sum(hits[n] for n in inside) / len(inside) - sum(rows.probability[n] for n in inside) / len(inside)
            error += abs(gap) * len(inside) / 700
    assert found.calibration_error == pytest.approx(error, abs=1e-9)
    assert found.nll == pytest.approx(metrics.log_loss(rows.label, chances, labels=range(12)), abs=1e-9)
    one_hot = np.eye(12)[rows.label]
    assert found.brier == pytest.approx(((chances - one_hot) ** 2).sum(axis=1).mean(), abs=1e-9)
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(rows.label, chances, k=5, labels=range(12)))
    assert sum(one.images for one in found.bins) == 700
    assert reliability(np.array([1 / 15, 1.0]), np.array([True, False]))[0].images == 1  # (low, high]


@pytest.mark.slow
def test_two_processes_find_what_one_does(home: Path, tmp_path: Path) -> None:
    outs = []
    for nproc in (1, 2):
        out, lines = tmp_path / f"{nproc}.json", tmp_path / f"{nproc}.csv"
        changes = {"data.micro_batch": 4 // nproc}
        mae_pipe.evaluate(home / "probe", nproc=nproc, changes=changes, out=out, predictions=lines)
        with lines.open() as file:
            outs.append((read(out).only, [row[:3] for row in csv.reader(file)]))
    (one, lines_one), (two, lines_two) = outs
    assert one.scores is not None
    assert two.scores is not None
    assert lines_one == lines_two
    assert one.scores.confusion.tolist() == two.scores.confusion.tolist()
    assert (one.scores.top1, one.scores.top5, one.images) == (two.scores.top1, two.scores.top5, 21)
    assert one.scores.nll == pytest.approx(two.scores.nll, rel=1e-6)


def test_a_set_with_fewer_classes_restricts_answers_unless_all_are_wanted(home: Path, tmp_path: Path) -> None:
    part = images(tmp_path / "part", ["across", "dunes", "dawn"], 9, 3)
    with pytest.raises(DataError, match="has the class 'dawn'"):
        mae_pipe.evaluate(home / "probe", part, out=tmp_path / "e.json")
    names = tmp_path / "names.csv"
    names.write_text("dunes,down\ndawn,down\n")
    for every in (False, True):
        found = mae_pipe.evaluate(
            home / "probe", part, class_map=names, all_classes=every, out=tmp_path / "e.json"
        ).only
        assert found.scores is not None
        assert found.allowed == (None if every else [0, 1])
        assert found.scores.confusion.sum(axis=1).tolist() == [9, 18, 0]
        assert found.scores.confusion[:, 2].sum() == 0 or every
    names.write_text("dunes,dwn\ndawn,down\n")
    with pytest.raises(DataError, match=r"calls 'dwn'.*did you mean 'down'"):
        mae_pipe.evaluate(home / "probe", part, class_map=names, out=tmp_path / "e.json")


@pytest.mark.parametrize(
    ("name", "text"), [("m.json", '{"x y": "a"}'), ("m.csv", '"x y",a\n'), ("m.txt", "x y\ta\n\n")]
)
def test_a_map_of_classes_is_read_in_three_shapes(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_map(tmp_path / name) == {"x y": "a"}
    assert numbers_of(["x y", "b"], ["b", "a"], read_map(tmp_path / name), "it") == [1, 0]
    (tmp_path / name).write_text("[1" if name == "m.json" else text + text)
    with pytest.raises(DataError):
        read_map(tmp_path / name)


def test_each_folder_of_corruptions_is_a_set_of_its_own(home: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("blur/1", "blur/2", "snow/1")):
        images(tmp_path / "c" / name, CLASSES, 2, number)
    assert list(sets_below(tmp_path / "c")) == ["blur/1", "blur/2", "snow/1"]
    found = mae_pipe.evaluate(home / "probe", tmp_path / "c", each=True, out=tmp_path / "e.json")
    errors = [1 - one.scores.top1 for one in found.sets if one.scores is not None]
    assert found.mean_error == pytest.approx(np.mean(errors))
    assert found.groups == pytest.approx({"blur": np.mean(errors[:2]), "snow": errors[2]})
    with pytest.raises(DataError, match="leave --each out"):
        sets_below(tmp_path / "c" / "blur" / "1")


def test_another_size_interpolates_positions_as_the_official_code(home: Path) -> None:
    small, large = (load(home / "probe", Catalog(), size=size).task for size in (None, 24))
    table = small.encoder.pos_embed
    grid = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    assert torch.equal(large.encoder.pos_embed[:, 1:], wanted.permute(0, 2, 3, 1).flatten(1, 2))
    assert load(home / "probe", Catalog(), size=228).recipe.data.centre_share == 1.0
    with pytest.raises(RecipeError, match="give 24"):
        load(home / "probe", Catalog(), size=26)
    with pytest.raises(RecipeError, match="only keys of data"):
        load(home / "probe", Catalog(), changes=["seed=3"])


def test_a_model_is_loaded_strictly(home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(home / "probe", tmp_path / "probe")
    weights = load_file(run / "model.safetensors")
    with safe_open(run / "model.safetensors", "pt") as file:
        said = file.metadata()
    weights.pop("head.classify.bias")
    save_file(weights, run / "model.safetensors", said)
    with pytest.raises(RunError, match=r"classify\.bias"):
        load(run, Catalog())
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match="has no model"):
        load(run, Catalog())
    with pytest.raises(RunError, match="is a pretrain run"):
        load(home / "run", Catalog())


WITHOUT = {  # verbs of the command line that are no function, and why
    "order": "prints for people; mae_pipe.api has the stream",
    "bench": "measures this machine, in processes of its own",
    "tune": "runs processes of its own",
    "check": "prints a table for people",
    "tokenizer": "a group of commands; mae_pipe.api.load_tokenizer loads one",
    "slurm": "writes a batch script for the shell",
    "plugins": "a group of commands; mae_pipe.api.Catalog finds them",
    "doctor": "looks at this machine, for people",
    "demo": "runs the other verbs",
}
NAMED = {"import": "import_weights"}  # a keyword of Python
MORE = {"MaePipeError", "sweep", "logistic"}  # no verbs; the last two are options of probe


def test_every_verb_is_a_function_or_has_a_reason_not_to_be() -> None:
    verbs = {NAMED.get(verb, verb) for verb in cli.VERBS if verb not in WITHOUT}
    assert verbs == set(mae_pipe.__all__) - MORE
    for name in mae_pipe.__all__:
        assert (getattr(mae_pipe, name).__doc__ or "").strip()
    homes = Path(mae_pipe.__file__).parent
    assert not [name for name in mae_pipe.__all__ if (homes / f"{name}.py").exists()], "a module would hide it"


def test_functions_take_the_options_of_their_commands() -> None:
    import inspect

    other = {"set": "changes", "plugin": "plugins", "json": "", "dry_run": "", "source": "source_name"}
    other |= {"plain": "cached", "kind": "pool", "form": "to"}
    written = ("reconstruct", "report", "shard", "index", "verify", "export")
    for name in ("pretrain", "probe", "finetune", "evaluate", "embed", *written):
        command = cli._group.get_command(click.Context(cli._group), name)
        assert command is not None
        taken = set(inspect.signature(getattr(mae_pipe, name)).parameters)
        options = {o.name for o in command.params if isinstance(o, click.Option) and o.name}
        free = {"nnodes", "rendezvous", "max_restarts", "dry_run", "labels_per_class"}
        free |= {"sweep", "logistic", "rates", "decays", "aside"}  # of functions of their own
        free |= {"nproc"} if name == "embed" else set()
        renamed = {other.get(option, option) for option in options - free}
        renamed = {
            {"format_name": "format", "changes": "source_options"}.get(o, o) if name == "shard" else o for o in renamed
        }
        renamed = {"format" if name == "embed" and o == "to" else o for o in renamed}
        assert renamed <= taken, (name, renamed - taken)


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, mae_pipe; dir(mae_pipe); print({'torch', 'numpy', 'pydantic', 'rich', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def python_blocks(page: str) -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_session_in_the_docs_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "images", "photos")
    names: dict[str, object] = {"PRETRAIN": PRETRAIN, "PROBE": PROBE}
    for block in python_blocks("python.md"):
        exec(compile(block, "python.md", "exec"), names)  # our own page
    assert (tmp_path / "run" / "report.html").exists()
