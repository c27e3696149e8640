"""`mae-pipe bench data`: every format is built and read, nothing is left behind, and the advice follows the figures."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mae_pipe import recipe
from mae_pipe.benching.choice import Figure, fastest, smallest, steps
from mae_pipe.benching.cold import Cold, cold
from mae_pipe.benching.data import AS_STORED, Bench, bench
from mae_pipe.benching.formats import short_side
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.cli.shard import shard
from mae_pipe.cli.verdict import sentences
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError, DiskError
from mae_pipe.sharding import build
from tests.servers import of_folder, serving

COUNT = 20
DATA = recipe.Data(size=32, micro_batch=4)
SMALL = ["--set", "data.size=32", "--set", "data.micro_batch=4", "--seconds", "0.01", "--rounds", "2"]
HAS_FFCV = importlib.util.find_spec("ffcv") is not None
WITH_FFCV = {"--format ffcv", "--format ffcv --raw 1"} if HAS_FFCV else set()
WAYS = {"--short-side 40", "--planes", "--short-side 40 --planes"}


def photos(folder: Path, ending: str = "jpg", mode: str = "RGB", side: int = 64) -> Path:
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = draw.integers(0, 256, (6, 6, 4), dtype=np.uint8)
        picture = Image.fromarray(coarse).convert("RGB").resize((side + number, side + 5), Image.Resampling.BICUBIC)
        path = folder / "ab"[number % 2] / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.convert(mode).save(path)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "shards"
    build(images, out, catalog=Catalog(), workers=1, per_shard=8)
    return out


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR, which has to be empty afterwards, and a cache of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def measured(shards: Path, **options: object) -> Bench:
    given = {"catalog": Catalog(), "workers": [1], "rounds": 1, "seconds": 0.01, **options}
    return bench(shards, "train", DATA, **given)  # type: ignore[arg-type]


def names(found: Bench) -> set[str]:
    assert found.figures[0].name == AS_STORED
    assert all(rate > 0 for figure in found.figures for rates in figure.rates.values() for rate in rates)
    return {figure.name for figure in found.figures[1:]}


def asked(*arguments: str | Path) -> Result:
    return CliRunner().invoke(_group, ["bench", "data", *map(str, arguments), *SMALL])


def test_every_format_is_measured_and_nothing_is_left_behind(shards: Path, temporary: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    done = asked(shards, "--workers", "1", "--workers", "2", "--json", tmp_path / "all.json", "--wanted", "1")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "all.json").read_text())
    assert {one["name"] for one in found["figures"]} >= {AS_STORED, "--no-marks"} | WAYS | WITH_FFCV
    for one in found["figures"]:
        assert [(count, len(rates)) for count, rates in one["rates"].items()] == [("1", 2), ("2", 2)]
        assert f" {one['name']} " in done.output
        assert one["image_bytes"] > 0
        exact = "short" not in one["name"] and "planes" not in one["name"]
        assert (one["exact"], one["decibels"] is None) == (exact, exact)
    sizes = {one["name"]: one["split_bytes"] for one in found["figures"]}
    assert sizes[AS_STORED] == sum(
        path.stat().st_size for path in shards.iterdir() if path.suffix in (".tar", ".marks")
    )
    assert sizes["--short-side 40 --planes"] < sizes["--planes"]
    assert (found["images"], found["taken"], found["split"]) == (COUNT, COUNT, "train")
    assert found["choice"]["format"] in sizes
    assert "For 1 images/s choose" in done.output
    assert list(temporary.iterdir()) == []
    assert {path: path.read_bytes() for path in shards.iterdir()} == before


def test_the_commands_that_are_named_are_commands_and_make_what_was_measured(
    shards: Path, images: Path, tmp_path: Path
) -> None:
    for figure in measured(shards).figures[1:]:
        words = figure.command.split()
        assert words[:4] == ["mae-pipe", "shard", "IMAGES", "OUT"]
        out = tmp_path / figure.name.replace(" ", "")
        with shard.make_context("shard", [str(images), str(out), *words[4:]]) as context:
            shard.invoke(context)
        held = sum(part.bytes for part in Manifest.load(out).split("train").shards)
        assert figure.split_bytes < 1.1 * held  # which has the ends of its files, too


def test_without_a_wanted_rate_it_says_what_each_is_enough_for(shards: Path) -> None:
    done = asked(shards, "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "The smallest format that is fast enough:\n  up to " in done.output
    assert "give it as --wanted" in done.output


@pytest.mark.parametrize("at", [0, 3, 12])
def test_a_bench_that_is_stopped_leaves_nothing(shards: Path, temporary: Path, at: int) -> None:
    def stop(done: int, total: int, note: str) -> None:
        assert any(temporary.iterdir())
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(shards, progress=stop)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "mode", "channels", "expected"),
    [
        ("png", "RGB", None, WAYS | {"--quality 95", "--short-side 40 --quality 95"} | WITH_FFCV),
        ("jpg", "L", 1, {"--channels 1 --no-marks", "--channels 1 --short-side 40"}),
        ("png", "RGBA", 4, {"--channels 4 --short-side 40"}),
    ],
)
def test_images_of_all_kinds_are_measured(
    tmp_path: Path, ending: str, mode: str, channels: int | None, expected: set[str]
) -> None:
    build(photos(tmp_path / "in", ending, mode), tmp_path / "out", catalog=Catalog(), workers=1, channels=channels)
    found = measured(tmp_path / "out")
    assert {name.replace("--quality 95 --short-side 40", "--short-side 40 --quality 95") for name in names(found)} >= (
        expected
    )
    assert ("--planes" in names(found)) == (channels is None)
    assert any("are for 3 channels" in note for note in found.notes) == (channels is not None)


def test_arrays_of_many_channels_are_measured(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(COUNT):
        np.save(tmp_path / "in" / f"{number}.npy", draw.integers(0, 256, (48, 50, 5), dtype=np.uint8))
    build(tmp_path / "in", tmp_path / "out", catalog=Catalog(), workers=1, channels=5)
    assert "--channels 5 --short-side 40" in names(measured(tmp_path / "out"))


def test_lists_of_classes_and_maps_are_no_obstacle_and_maps_count(images: Path, tmp_path: Path) -> None:
    lines = [f"{path.relative_to(images)},x;y" for path in sorted(images.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *lines]))
    for path in images.rglob("*.jpg"):
        with Image.open(path) as picture:
            map_ = Image.new("L", picture.size)
        (tmp_path / "maps" / path.parent.name).mkdir(parents=True, exist_ok=True)
        map_.save(tmp_path / "maps" / path.parent.name / f"{path.stem}.png")
    options = {"labels": tmp_path / "labels.csv", "maps": tmp_path / "maps"}
    build(images, tmp_path / "out", catalog=Catalog(), workers=1, **options)  # type: ignore[arg-type]
    found = measured(tmp_path / "out")
    assert names(found) >= WAYS
    assert any("maps of classes count" in note for note in found.notes)


@pytest.mark.skipif(not HAS_FFCV, reason="ffcv is not installed")
def test_betons_are_measured_and_tars_are_tried_instead(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "out", format="ffcv", catalog=Catalog(), workers=1)
    found = names(measured(tmp_path / "out"))
    assert found >= WAYS | {"--format webdataset", "--format ffcv --raw 1"}
    assert "--format ffcv" not in found


def test_images_in_no_shards_are_measured_too(images: Path) -> None:
    done = asked(images, "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "--format webdataset" in done.output
    assert "Disk: not measured, as the images do not lie in the shards themselves." in done.output


def test_of_pixels_only_formats_of_pixels_are_tried(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "out", catalog=Catalog(), workers=1, planes=True)
    found = measured(tmp_path / "out")
    assert names(found) == {"--short-side 40 --planes"} | (WITH_FFCV - {"--format ffcv"})
    assert any("hold pixels" in note for note in found.notes)


def test_options_of_the_given_shards_are_in_the_commands(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "out", catalog=Catalog(), workers=1, short_side=36, quality=80)
    found = measured(tmp_path / "out")
    assert names(found) >= {"--short-side 36 --planes", "--short-side 36 --quality 80 --no-marks"}
    assert not any("--short-side 40" in name for name in names(found))
    assert found.figures[0].decibels is not None
    assert math.isfinite(found.figures[0].decibels)


def test_what_was_converted_and_never_compared_is_not_called_exact(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "out", catalog=Catalog(), workers=1, short_side=36)
    manifest = tmp_path / "out" / "manifest.json"
    said = json.loads(manifest.read_text())
    said["splits"]["train"] |= {"compared": 0, "squared_error": 0.0}
    manifest.write_text(json.dumps(said))
    assert {figure.decibels for figure in measured(tmp_path / "out").figures} == {None}


def test_of_shards_at_a_url_the_first_ones_are_fetched_and_measured(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE", str(tmp_path / "mirror"))
    with serving(of_folder(shards)) as (url, plan):
        done = asked(url, "--workers", "1", "--images", "16")
    assert done.exit_code == 0, done.output
    assert f"Disk: not measured, as the shards are fetched from {url}." in done.output
    fetched = {path for path in plan.requests if path.endswith(".tar")}
    assert fetched == {"/train-000000.tar", "/train-000001.tar"}  # of three, with 8 images each


def test_a_machine_without_ffcv_is_told_what_was_left_out(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ffcv" else find(name, *rest))
    found = measured(shards)
    assert names(found) == {"--no-marks", *WAYS}
    assert [note for note in found.notes if note.startswith("--format ffcv was left out: ffcv is not installed")]


def test_a_split_that_is_not_there_and_too_few_images_are_sentences(shards: Path, tmp_path: Path) -> None:
    done = asked(shards, "--split", "trian")
    assert "no split 'trian' (did you mean 'train'?)" in str(done.exception)
    with pytest.raises(DataError, match="--images is 3, which is too few to measure anything; at least 16 are needed"):
        measured(shards, images=3)
    few = photos(tmp_path / "few")
    shutil.rmtree(few / "a")
    build(few, tmp_path / "out", catalog=Catalog(), workers=1)
    with pytest.raises(DataError, match=r"'train' of .*out has 10 images, which is too few"):
        measured(tmp_path / "out")


def test_a_disk_without_room_is_said_before_anything_is_built(
    shards: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 4096, 4096))
    with pytest.raises(
        DiskError, match=r"temporary has room for 4.1 kB, and 20 images in \d formats need about .*TMPDIR"
    ):
        measured(shards)
    assert list(temporary.iterdir()) == []


def test_a_place_for_json_that_is_not_there_is_said_at_once(shards: Path, tmp_path: Path) -> None:
    done = asked(shards, "--json", tmp_path / "nowhere" / "x.json")
    assert isinstance(done.exception, DiskError)


def test_the_disk_is_measured_or_it_is_said_why_not(shards: Path) -> None:
    shelf = Shelf(shards, "train", Catalog())
    found = cold(shelf, threads=2, seconds=0.5)
    shelf.close()
    assert found.why or found.threads == 2
    assert bool(found.why) != (found.read == COUNT and found.images > 0 and found.bytes > found.images)


@pytest.mark.parametrize(("size", "side"), [(224, 256), (96, 112), (32, 40), ((16, 24), 24), (1, 8)])
def test_stored_images_are_somewhat_larger_than_crops(size: int | tuple[int, int], side: int) -> None:
    assert short_side(recipe.Data(size=size).sides) == side


def figure(name: str, size: int, one: float, two: float, decibels: float | None = math.inf) -> Figure:
    command = "" if name == AS_STORED else f"mae-pipe shard IMAGES OUT {name}"
    return Figure(name, command, size, size * 100, decibels, {1: [one - 1, one, one + 1], 2: [two - 1, two, two + 1]})


FIGURES = [
    figure(AS_STORED, 100, 1000, 1900),
    figure("marks", 99, 1100, 2000),
    figure("small", 50, 1500, 3000, 35.0),
    figure("planes", 300, 4000, 7000, 42.0),
    figure("raw", 700, 3000, 5000),
]


@pytest.mark.parametrize(
    ("wanted", "name", "workers"),
    [(10, "small", 1), (1500, "small", 1), (1501, "small", 2), (3001, "planes", 1), (4001, "planes", 2)],
)
def test_the_smallest_that_is_fast_enough_is_chosen_with_the_fewest_workers(
    wanted: float, name: str, workers: int
) -> None:
    choice = smallest(FIGURES, wanted)
    assert choice is not None
    assert (choice.figure.name, choice.workers) == (name, workers)


def test_of_equal_sizes_what_is_there_is_chosen_or_else_the_fastest() -> None:
    alike = FIGURES[:2]
    assert smallest(alike, 1000) == (FIGURES[0], 1)
    assert smallest(alike, 1950) == (FIGURES[1], 2)
    assert smallest([figure("a", 100, 5, 9), figure("b", 101, 6, 8)], 1).figure.name == "a"  # type: ignore[union-attr]


def test_no_format_is_an_answer_too() -> None:
    assert smallest(FIGURES, 7001) is None
    assert fastest(FIGURES) == (FIGURES[3], 2)


def test_steps_lead_from_the_smallest_to_the_fastest() -> None:
    assert [(step.figure.name, step.workers) for step in steps(FIGURES)] == [("small", 2), ("planes", 2)]
    assert [step.figure.name for step in steps([FIGURES[0], FIGURES[4]])] == [AS_STORED, "raw"]


def found(disk: Cold = Cold(why="it is a test")) -> Bench:  # noqa: B008
    return Bench(FIGURES, disk, [], 100, 100, [1, 2], "a processor", 2, "a decoder")


def test_the_advice_is_in_words() -> None:
    said = "\n".join(sentences(found(), 2500))
    assert "For 2,500 images/s choose small (5.0 kB, 35.0 dB) with 2 workers" in said
    assert "Build it with: mae-pipe shard IMAGES OUT small" in said
    assert "--set data.workers=2" in said
    said = "\n".join(sentences(found(), 14000))
    assert "For 14,000 images/s no format is fast enough on this machine with 2 workers." in said
    assert "The fastest is planes (30.0 kB, 42.0 dB) with 2 workers: 7,000 images/s, 50% of that." in said
    assert "It is close" in "\n".join(sentences(found(), 3000))
    said = "\n".join(sentences(found(), None))
    assert "  up to 3,000 images/s: small (5.0 kB, 35.0 dB) with 2 workers\n  up to 7,000 images/s: planes" in said
    assert "Of those that change no pixel:\n  up to 1,900 images/s: as stored (10.0 kB) with 2 workers" in said


@pytest.mark.parametrize(("speed", "words"), [(1e9, "enough."), (1e3, "too little in the first epoch")])
def test_a_disk_that_is_too_slow_is_named(speed: float, words: str) -> None:
    said = sentences(found(Cold(images=speed / 100, bytes=speed, threads=2, read=100)), 2500)
    assert said[-1].startswith("It reads 125.0 kB/s, and the disk gave 1.0")
    assert words in said[-1]


def test_bench_is_a_group_that_explains_itself() -> None:
    command = _group.get_command(click.Context(_group), "bench")
    assert isinstance(command, click.Group)
    assert "SHARDS" in CliRunner().invoke(command, ["data", "--help"]).output
