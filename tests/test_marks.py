"""Shards know where rows of JPEG blocks begin; a stream that uses it gives the same pixels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli.shard import shard
from mae_pipe.data import decode, planar, region
from mae_pipe.data.batch import Batch
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify

pytest.importorskip("mae_pipe.data._native", reason="the C extension could not be built here")
IMAGES = 14


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve JPEGs of several kinds, a progressive one and a PNG, in two classes."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(3)
    for i in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        image = coarse.resize((50 + 9 * i, 120 - 5 * i), Image.Resampling.BICUBIC)
        image = image.convert("L") if i == 5 else image
        path = folder / f"class{i % 2}" / f"{i:02d}.{'png' if i == 7 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        options: dict[str, Any] = {} if i == 7 else {"subsampling": i % 3, "progressive": i == 9, "quality": 70 + i}
        image.save(path, **options)
    return folder


def built(images: Path, out: Path, **options: object) -> Path:
    build(images, out, catalog=Catalog(), workers=1, per_shard=5, **options)  # type: ignore[arg-type]
    return out


def batches(shards: Path, crop: str = "random", training: bool = True) -> list[Batch]:
    data = recipe.Data(size=32, workers=2, crop=crop)  # type: ignore[arg-type]
    stream = open_stream(
        shards, "train", data, seed=1, share=Share(micro_batch=4), catalog=Catalog(), training=training
    )
    taken = list(itertools.islice(stream.batches() if training else stream.once(), 6))
    stream.close()
    return taken


def test_a_stream_with_marks_gives_the_same_pixels_as_one_without_and_as_pillow(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_marks, without = built(images, tmp_path / "with"), built(images, tmp_path / "without", marks=False)
    for crop, training in (("random", True), ("fixed", True), ("random", False)):
        ours, plain = batches(with_marks, crop, training), batches(without, crop, training)
        with monkeypatch.context() as patch:
            patch.setattr(region, "_native", None)
            pillows = batches(without, crop, training)
        for one, two, three in zip(ours, plain, pillows, strict=True):
            assert one.pixels.equal(two.pixels)
            assert one.pixels.equal(three.pixels)


def test_marks_are_of_every_jpeg_that_regions_are_read_of(images: Path, tmp_path: Path) -> None:
    shelf = Shelf(built(images, tmp_path / "shards"), "train", Catalog())
    lengths = {shelf.index.key(row): len(shelf.marks(row) or b"") for row in range(IMAGES)}
    assert [key for key, length in lengths.items() if not length] == ["class1/07", "class1/09"]
    split = shelf.split
    assert split.marks is not None
    assert sum(lengths.values()) == split.marks.bytes
    for row in range(IMAGES):
        stored = shelf.read(row)
        if stored.encoding == "jpeg":
            assert shelf.marks(row) == region.marks_of(bytes(stored.data))
    shelf.close()


def test_the_same_images_give_the_same_marks_however_many_workers_there_are(images: Path, tmp_path: Path) -> None:
    one = built(images, tmp_path / "one")
    build(images, tmp_path / "two", catalog=Catalog(), workers=2, per_shard=5)
    files = sorted(path.name for path in one.iterdir())
    assert "train.marks" in files
    for name in files:
        assert (one / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_damaged_marks_are_named(images: Path, tmp_path: Path) -> None:
    shards = built(images, tmp_path / "shards")
    path = shards / "train.marks"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert verify(shards) == ["train.marks has other bytes than it was built with"]
    with pytest.raises(DataError, match="the marks of 'class0/00' are damaged"):
        batches(shards)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match="missing or cut short"):
        batches(shards)
    path.unlink()
    assert verify(shards) == ["train.marks is missing"]


def test_a_build_that_lost_its_marks_goes_on_and_makes_them_again(images: Path, tmp_path: Path) -> None:
    whole = built(images, tmp_path / "whole")
    out = tmp_path / "killed"

    class Killed(BaseException):
        pass

    def kill(done: int, refused: int, total: int) -> None:
        if done > 11:
            raise Killed

    with pytest.raises(Killed):
        built(images, out, progress=kill)
    marks = sorted((out / ".parts").glob("*.marks"))
    assert marks
    marks[0].unlink()
    built(images, out)
    assert (out / "train.marks").read_bytes() == (whole / "train.marks").read_bytes()
    assert verify(out) == []


def test_planes_are_read_as_their_reference(images: Path, tmp_path: Path) -> None:
    shards = built(images, tmp_path / "planes", planes=True)
    assert verify(shards) == []
    shelf = Shelf(shards, "train", Catalog())
    assert shelf.split.marks is None
    assert shelf.split.converted["to planes"] == IMAGES
    for row in range(IMAGES):
        stored = shelf.read(row)
        assert stored.encoding == "yuv420"
        folder, name = shelf.index.key(row).split("/")
        source = next((images / folder).glob(f"{name}.*"))
        with Image.open(source) as image:
            assert bytes(stored.data) == planar.stored(image)
            original = np.asarray(image.convert("RGB")).astype(float)
        assert np.abs(np.asarray(decode.picture(stored)) - original).mean() < 4
    shelf.close()
    assert len(batches(shards)) == 6


def test_planes_that_nothing_can_hold_are_refused(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    for options, said in (
        (["--format", "ffcv"], "--planes is not for ffcv shards"),
        (["--channels", "1"], "leave out --quality and --channels"),
    ):
        ended = CliRunner().invoke(shard, [str(images), str(tmp_path / "out"), "--planes", *options])
        assert ended.exit_code != 0
        assert said in str(ended.exception)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_raw_pixels_in_betons_are_what_pillow_makes_of_the_files(images: Path, tmp_path: Path, share: float) -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    files = built(images, tmp_path / "files")
    raw = built(images, tmp_path / "raw", format="ffcv", raw=share)
    assert verify(raw) == []
    shelf = Shelf(raw, "train", Catalog())
    encodings = [shelf.read(row).encoding for row in range(IMAGES)]
    assert set(encodings) == ({"raw"} if share == 1 else {"raw", "jpeg"})
    shelf.close()
    for one, two in zip(batches(raw), batches(files), strict=True):
        assert one.pixels.equal(two.pixels)
    with pytest.raises(DataError, match="--raw is for --format ffcv"):
        built(images, tmp_path / "tar", raw=1.0)


def test_shards_of_before_there_were_marks_are_read(images: Path, tmp_path: Path) -> None:
    shards = built(images, tmp_path / "shards", marks=False)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["version"] = 2
    del manifest["splits"]["train"]["marks"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert Manifest.load(shards).split("train").marks is None
    assert len(batches(shards)) == 6


def test_repeats_are_crops_of_one_image_in_a_row(images: Path, tmp_path: Path) -> None:
    shards = built(images, tmp_path / "shards")

    def first(repeats: int, micro_batch: int, start: int = 0) -> list[Batch]:
        data = recipe.Data(size=32, workers=2, repeats=repeats)
        stream = open_stream(shards, "train", data, seed=1, share=Share(micro_batch=micro_batch), catalog=Catalog())
        taken = list(itertools.islice(stream.batches(start), 24 // micro_batch))
        stream.close()
        return taken

    once, thrice = first(1, 8), first(3, 24)
    numbers = thrice[0].numbers.reshape(8, 3)
    assert numbers.equal(once[0].numbers[:, None].expand(8, 3))
    assert len({crop.numpy().tobytes() for crop in thrice[0].pixels}) == 24
    # A crop depends on its place alone: on no other of its image, and on no border between batches.
    halves = torch.cat([batch.pixels for batch in first(3, 4)])
    assert halves.equal(thrice[0].pixels)
    assert first(3, 8, start=8)[0].pixels.equal(thrice[0].pixels[8:16])


def test_several_views_are_drawn_apart_and_the_first_is_what_one_would_be(images: Path, tmp_path: Path) -> None:
    shards = built(images, tmp_path / "shards")

    def first(views: int, **changes: object) -> Batch:
        data = recipe.Data(**{"size": 32, "workers": 2, **changes})  # type: ignore[arg-type]
        share = Share(micro_batch=8)
        stream = open_stream(shards, "train", data, seed=1, share=share, catalog=Catalog(), views=views)
        batch = next(stream.batches())
        stream.close()
        return batch

    for changes in ({}, {"jitter": (0.4, 0.4, 0.2, 0.1)}, {"repeats": 2}, {"crop": "fixed"}):
        one, three = first(1, **changes), first(3, **changes)
        assert one.pixels.shape == (8, 3, 32, 32)
        assert three.pixels.shape == (8, 3, 3, 32, 32)
        assert three.pixels[:, 0].equal(one.pixels)
        assert three.numbers.equal(one.numbers)
        assert len({view.numpy().tobytes() for image in three.pixels for view in image}) == 24
