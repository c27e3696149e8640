"""Batches are a function of where to start, whoever reads them and however they are stored."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import descriptors
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from tests.batches import assert_same

IMAGES = 23


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 photos-like JPEG and PNG files in three classes."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = (int(n) for n in draw.integers(24, 60, 2))
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / f"class{i % 3}" / f"{i}.{'png' if i % 5 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module", params=["webdataset", "ffcv"])
def shards(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    out = tmp_path_factory.mktemp(request.param) / "shards"
    build(images, out, format=request.param, catalog=Catalog(), workers=1, per_shard=5)
    return out


def data(**changes: object) -> recipe.Data:
    return recipe.Data(**{"size": 16, "workers": 2, **changes})  # type: ignore[arg-type]


def opened(shards: Path, share: Share = Share(micro_batch=4), **kwargs: object) -> Stream:  # noqa: B008
    given: dict[str, object] = {"data": data(), "seed": 0, "catalog": Catalog(), **kwargs}
    return open_stream(shards, "train", share=share, **given)  # type: ignore[arg-type]


def first(stream: Stream, count: int, start: int = 0) -> list[Batch]:
    batches = stream.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def test_a_stream_started_later_gives_the_same_batches(shards: Path) -> None:
    stream = opened(shards)
    assert_same(first(stream, 15)[9:], first(stream, 6, start=36))


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_the_number_of_threads_changes_nothing(shards: Path, workers: int) -> None:
    assert_same(first(opened(shards), 8), first(opened(shards, data=data(workers=workers)), 8))


def test_ranks_share_the_batches_of_one(shards: Path) -> None:
    alone = first(opened(shards, Share(micro_batch=6)), 5)
    ranks = [first(opened(shards, Share(rank, 3, 2)), 5) for rank in range(3)]
    for batch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        for whole, *several in zip(batch.tensors, *(part.tensors for part in parts), strict=True):
            assert torch.equal(whole, torch.cat(several))


def test_an_epoch_holds_every_image_once_and_crops_differ_between_epochs(shards: Path) -> None:
    batches = first(opened(shards, Share(micro_batch=1)), 2 * IMAGES)
    numbers = [int(batch.numbers) for batch in batches]
    assert sorted(numbers[:IMAGES]) == sorted(numbers[IMAGES:]) == list(range(IMAGES))
    again = numbers.index(numbers[0], IMAGES)
    assert not torch.equal(batches[0].pixels, batches[again].pixels)


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 3), (3, 8), (8, 1)])
def test_evaluation_sees_every_image_once_and_ranks_give_equally_many_batches(
    shards: Path, world: int, micro: int
) -> None:
    ranks = [list(opened(shards, Share(rank, world, micro), training=False).once()) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    numbers = torch.cat([batch.numbers for batches in ranks for batch in batches])
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(IMAGES))


def test_rows_restrict_the_stream(shards: Path) -> None:
    rows = np.array([3, 7, 11])
    seen = {int(n) for batch in first(opened(shards, rows=rows), 5) for n in batch.numbers}
    assert seen == {3, 7, 11}


def test_labels_are_those_of_the_folders(shards: Path) -> None:
    stream = opened(shards)
    for batch in first(stream, 6):
        for number, label in zip(batch.numbers.tolist(), batch.labels.tolist(), strict=True):
            assert stream.index.key(number).startswith(f"class{label}/")


def test_both_formats_give_the_same_pixels(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    streams = []
    for name in ("webdataset", "ffcv"):
        build(images, tmp_path / name, format=name, catalog=Catalog(), workers=1, per_shard=9)
        streams.append(opened(tmp_path / name))
    assert_same(first(streams[0], 12), first(streams[1], 12))


def test_a_flipped_byte_is_named_and_not_trained_on(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "s", format="webdataset", catalog=Catalog(), workers=1, per_shard=100)
    stream = opened(tmp_path / "s")
    shard = tmp_path / "s" / stream.shelf.split.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(stream.index.offset[5]) + 40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        first(opened(tmp_path / "s"), 8)
    assert stream.index.key(5) in str(caught.value)
    assert "mae-pipe verify" in str(caught.value)


def test_a_missing_or_cut_shard_is_named(images: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "s", format="webdataset", catalog=Catalog(), workers=1, per_shard=5)
    shard = tmp_path / "s" / opened(tmp_path / "s").shelf.split.shards[2].name
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=shard.name):
        first(opened(tmp_path / "s"), 8)
    shard.unlink()
    with pytest.raises(DataError, match=shard.name):
        opened(tmp_path / "s")


def test_a_closed_stream_leaves_no_thread(shards: Path) -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    first(opened(shards), 3)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("crop", ["random", "fixed", "centre", "none"])
def test_every_crop_gives_views_of_the_size_whoever_reads_them(shards: Path, crop: str) -> None:
    chosen = data(crop=crop, size=(24, 16), jitter=(0.0,) * 4 if crop == "none" else (0.4, 0.4, 0.4, 0.1))
    batches = first(opened(shards, data=chosen), 8)
    assert batches[0].pixels.shape == (4, 3, 24, 16)
    assert_same(batches[5:], first(opened(shards, data=chosen), 3, start=20))
    ranks = [first(opened(shards, Share(rank, 2, 2), data=chosen), 8) for rank in range(2)]
    assert torch.equal(batches[3].pixels, torch.cat([ranks[0][3].pixels, ranks[1][3].pixels]))


def test_none_is_what_evaluation_sees_and_each_augmentation_changes_it(shards: Path) -> None:
    def epoch(**changes: object) -> dict[int, torch.Tensor]:
        batches = first(opened(shards, Share(micro_batch=1), data=data(**{"size": 16, **changes})), IMAGES)
        return {int(batch.numbers): batch.pixels[0] for batch in batches}

    seen = next(opened(shards, Share(micro_batch=IMAGES), training=False).once())
    plain = dict(zip(seen.numbers.tolist(), seen.pixels, strict=True))
    assert all(torch.equal(view, plain[number]) for number, view in epoch(crop="none").items())
    centre = epoch(crop="centre", flip=1.0)
    assert all(torch.equal(view.flip(2), plain[number]) for number, view in centre.items())
    for changes in ({"crop": "fixed"}, {"crop": "centre", "flip": 0.0, "jitter": (0.4, 0.4, 0.4, 0.1)}):
        changed = [not torch.equal(view, plain[number]) for number, view in epoch(**changes).items()]
        assert sum(changed) > IMAGES // 2
    assert any(not torch.equal(v, plain[n]) for n, v in epoch(crop="none", interpolation="nearest").items())


def test_a_recipe_for_other_channels_is_a_sentence_that_says_what_to_set(shards: Path) -> None:
    with pytest.raises(DataError, match=r"have 3 channels, but data.mean and data.std have 1 number; set data.mean=\["):
        opened(shards, data=data(mean=(0.5,), std=(0.2,)))


@pytest.mark.parametrize(("labels", "way"), [("multi", "--labels FILE.csv"), ("map", "--maps FOLDER")])
def test_labels_that_the_shards_lack_are_a_sentence_that_says_how_to_get_them(
    shards: Path, labels: str, way: str
) -> None:
    with pytest.raises(DataError, match=way):
        opened(shards, labels=labels)


def test_more_shards_than_may_be_open_are_opened_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batch.pixels for batch in first(opened(shards), 12)]
    monkeypatch.setattr(descriptors, "allowed", lambda: 2)
    stream = opened(shards)
    before = len(list(Path("/proc/self/fd").iterdir()))
    batches = stream.batches()
    for pixels in expected:
        assert next(batches).pixels.equal(pixels)
        assert len(stream.shelf._readers) <= 2
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # two, and those that its threads read meanwhile
    batches.close()  # type: ignore[attr-defined]


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    code = (
        "import resource; from mae_pipe.data.descriptors import allowed; hard = resource.getrlimit(7)[1];"
        "resource.setrlimit(7, (300, 400)); print(allowed(), resource.getrlimit(7))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "144 (400, 400)\n"
