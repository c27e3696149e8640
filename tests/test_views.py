"""Views of several sizes and scales come from one decode of an image, and depend on its position alone."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import crops, decode, region
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.errors import RecipeError
from mae_pipe.seeding import key
from mae_pipe.sharding import build
from mae_pipe.views import Crop
from tests.batches import assert_same, first

WIDE, SMALL = (0.4, 1.0), (0.05, 0.25)
VIEWS = (
    Crop(scale=WIDE),
    Crop(scale=WIDE),
    Crop(size=16, scale=SMALL),
    Crop(size=16, scale=SMALL),
    Crop(size=16, scale=SMALL),
    Crop(size=(24, 8)),
)
SIZES = [(32, 32)] * 2 + [(16, 16)] * 3 + [(24, 8)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six JPEGs and a PNG."""
    folder, draw = tmp_path_factory.mktemp("images") / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(7):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = coarse.resize((90 + 7 * number, 120 - 5 * number), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.{'png' if number == 3 else 'jpg'}")
    return folder


@pytest.fixture(scope="module", params=["jpeg", "planes"])
def shards(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    build(images, out, catalog=Catalog(), workers=1, per_shard=4, planes=request.param == "planes")
    return out


def opened(shards: Path, share: Share | None = None, views: int | tuple[Crop, ...] = VIEWS, **changes: Any) -> Stream:
    training = changes.pop("training", True)
    data = recipe.Data(**{"size": 32, "workers": 2} | changes)
    chosen = share or Share(micro_batch=6)
    return open_stream(shards, "train", data, seed=5, share=chosen, catalog=Catalog(), views=views, training=training)


def every_view(batch: Batch) -> list[torch.Tensor]:
    """Each [B, C, h, w]."""
    return [view for group in (batch.pixels, *batch.others) for view in group.unbind(1)]


def test_each_view_is_a_crop_of_its_own_size_and_scale(shards: Path) -> None:
    """Drawn and cut one by one here, from the whole image."""
    stream = opened(shards)
    for batch in first(stream, 3):
        assert batch.pixels.shape == (6, 2, 3, 32, 32)
        assert [group.shape for group in batch.others] == [(6, 3, 3, 16, 16), (6, 1, 3, 24, 8)]
        positions = batch.positions.numpy()
        numbers = batch.numbers.numpy()
        for number, (view, size) in enumerate(zip(every_view(batch), SIZES, strict=True)):
            suffix = f"/{number}" if number else ""
            widths, heights = stream.index.width[numbers], stream.index.height[numbers]
            scale = VIEWS[number].scale or (0.2, 1.0)
            boxes = crops.random_boxes(key(5, f"crop{suffix}"), positions, widths, heights, scale, (3 / 4, 4 / 3))
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (widths * heights)
            assert ((areas > 0.95 * scale[0]) & (areas < 1.05 * scale[1])).all()
            flipped = crops.flips(key(5, f"flip{suffix}"), positions, 0.5)
            for seen, row, box, flip in zip(view, numbers, boxes.tolist(), flipped, strict=True):
                expected = np.empty((1, 3, *size), np.uint8)
                cut = crops.Cut((*box,), None, bool(flip))
                decode.views(stream.shelf.read(int(row)), [cut], [expected], Image.Resampling.BICUBIC)
                assert np.array_equal(seen.numpy(), expected[0])


def test_the_first_view_is_what_it_would_be_alone(shards: Path) -> None:
    for changes in ({"jitter": (0.4, 0.4, 0.2, 0.1)}, {"repeats": 3}):
        alone = first(opened(shards, views=VIEWS[:1], **changes), 3)
        for one, several in zip(alone, first(opened(shards, **changes), 3), strict=True):
            assert one.pixels.equal(several.pixels[:, 0])
            assert len({view.numpy().tobytes() for group in every_view(several) for view in group}) == 36
    (large_and_small,) = first(opened(shards, views=VIEWS[1:3]), 1)
    assert large_and_small.pixels.shape == (6, 3, 32, 32), "one view has no axis of views"
    assert [group.shape for group in large_and_small.others] == [(6, 1, 3, 16, 16)]
    same = first(opened(shards, views=2), 2)
    assert_same(same, first(opened(shards, views=(Crop(), Crop(size=32, scale=(0.2, 1.0)))), 2))


def test_views_depend_on_positions_alone(shards: Path) -> None:
    """On no thread, process, rank, batch, repetition or place to start at."""
    whole = first(opened(shards, Share(micro_batch=12), workers=0), 2)
    for kind, workers in (("thread", 3), ("process", 2)):
        parts = [first(opened(shards, Share(rank, 2, 4), workers=workers, worker_kind=kind), 3) for rank in range(2)]
        for number, view in enumerate(zip(*map(every_view, whole), strict=True)):
            seen = {
                int(place): one
                for batch in itertools.chain(*parts)
                for place, one in zip(batch.positions, every_view(batch)[number], strict=True)
            }
            for place, one in enumerate(torch.cat(view)):
                assert one.equal(seen[place])
    assert_same(whole[1:], first(opened(shards, Share(micro_batch=12)), 1, start=12))


def test_evaluation_gives_centre_views_of_each_size(shards: Path) -> None:
    with_padding = list(opened(shards, Share(micro_batch=4), training=False).once())
    alone = list(opened(shards, Share(micro_batch=4), views=1, size=16, training=False).once())
    for several, one in zip(with_padding, alone, strict=True):
        assert all(group.equal(one.pixels) for group in several.others[0].unbind(1))
        assert (several.others[1][several.numbers < 0] == 0).all()


@pytest.fixture(params=["regions", "pillow"])
def decodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often the file of every image was decoded, by which decoder."""
    counted: Counter[bytes] = Counter()
    if request.param == "regions":
        native = pytest.importorskip("mae_pipe.data._native", reason="the C extension could not be built here")

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(native, name)

            def view_jpeg(self, data: Any, *rest: Any) -> Any:
                counted[bytes(data)] += 1
                return native.view_jpeg(data, *rest)

        monkeypatch.setattr(region, "_native", Counting())
    else:
        monkeypatch.setattr(region, "_native", None)
        opened_by_pillow = decode.picture

        def picture(stored: Any, channels: int) -> Any:
            counted[bytes(stored.data)] += 1
            return opened_by_pillow(stored, channels)

        monkeypatch.setattr(decode, "picture", picture)
    return counted


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_image_is_decoded_once(
    images: Path, tmp_path: Path, decodes: Counter[bytes], monkeypatch: pytest.MonkeyPatch, repeats: int
) -> None:
    jpegs = tmp_path / "jpegs"
    jpegs.mkdir()
    for path in images.glob("*.jpg"):
        (jpegs / path.name).write_bytes(path.read_bytes())
    build(jpegs, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=4)
    decodes.clear()
    first(opened(tmp_path / "shards", Share(micro_batch=6 * repeats), workers=0, repeats=repeats), 1)
    assert sorted(decodes.values()) == [1] * 6


def test_parts_of_an_image_are_no_centre_views(shards: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.crop is 'centre', and the views are of parts of an image; set data"):
        opened(shards, crop="centre")


def test_the_memory_of_all_views_is_told(shards: Path) -> None:
    each = 600 * (3 * (2 * 32 * 32 + 3 * 16 * 16 + 24 * 8) + 2 * 8)  # and numbers and positions
    assert f"up to {4 * each / 1e6:,.1f} MB of batches under way" in opened(shards, Share(micro_batch=600)).about
