"""The order is what it says for any ranks, workers, shards, formats, kinds of order, epochs and places to start."""

from __future__ import annotations

import importlib.util
import itertools
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.sharding import build

IMAGES = 29
FORMATS = ["webdataset", "files"] + (["ffcv"] if importlib.util.find_spec("ffcv") else [])
PER_SHARD = (4, 7, 100)
Built = dict[tuple[str, int], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same images in every format, parted in several ways."""
    root, draw = tmp_path_factory.mktemp("built"), np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / "images" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((int(draw.integers(20, 40)), 24), Image.Resampling.BICUBIC).save(path)
    for name, per_shard in itertools.product(FORMATS, PER_SHARD):
        build(
            root / "images",
            root / f"{name}-{per_shard}",
            format=name,
            catalog=Catalog(),
            workers=1,
            per_shard=per_shard,
        )
    return {pair: root / f"{pair[0]}-{pair[1]}" for pair in itertools.product(FORMATS, PER_SHARD)}


class Case(NamedTuple):
    """A stream, and how it is read."""

    form: str
    per_shard: int
    world: int
    micro: int
    workers: int


CASES = st.builds(
    Case,
    form=st.sampled_from(FORMATS),
    per_shard=st.sampled_from(PER_SHARD),
    world=st.sampled_from([1, 2, 3, 8]),
    micro=st.integers(1, 4),
    workers=st.integers(0, 4),
)
ORDERS = st.sampled_from(
    [{"order": "full"}, {"order": "window", "window": 8}, {"order": "window", "window": 9, "lanes": 2}]
)
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(built: Built, case: Case, rank: int, seed: int, order: dict[str, Any], begun: Any = None) -> Stream:
    data = recipe.Data(size=8, workers=case.workers, global_batch=24, **order)
    return open_stream(
        built[case.form, case.per_shard], "train", data, seed=seed, share=Share(rank, case.world, case.micro),
        catalog=Catalog(), begun=begun,
    )  # fmt: skip


def read(stream: Stream, start: int, images: int) -> dict[int, tuple[Any, ...]]:
    """What stands at each position of a rank: key, label and pixels."""
    found: dict[int, tuple[Any, ...]] = {}
    with closing(stream), closing(stream.batches(start)) as batches:  # type: ignore[type-var]
        batch: Batch
        for batch in itertools.islice(batches, -(-images // stream.share.advance)):
            for place, position in enumerate(batch.positions.tolist()):
                number = int(batch.numbers[place])
                found[position] = stream.index.key(number), int(batch.labels[place]), batch.pixels[place].clone()
    return found


def equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[:2] == other[:2] and torch.equal(one[2], other[2])


@SETTINGS
@given(one=CASES, other=CASES, seed=st.integers(0, 99), order=ORDERS, start=st.integers(0, 3), steps=st.integers(1, 4))
def test_global_batches_are_equal_across_ranks_workers_shards_and_formats(
    built: Built, one: Case, other: Case, seed: int, order: dict[str, Any], start: int, steps: int
) -> None:
    """Where the order is one of windows, the second stream goes on with the first one's, as a run does."""
    from mae_pipe.data.arrange import as_recorded

    with closing(opened(built, one, 0, seed, order)) as first:
        begun = as_recorded(first.order)
    both = []
    for case in (one, other):
        size = case.world * case.micro
        several = size * (24 // size if 24 % size == 0 else 1)  # whole global batches, where they divide
        begin, images = start * 24 // several * several, 24 * steps
        parts = [
            read(opened(built, case, rank, seed, order, begun), begin, images + several) for rank in range(case.world)
        ]
        both.append({position: seen for part in parts for position, seen in part.items()})
    shared = both[0].keys() & both[1].keys()
    assert len(shared) >= 24 * (steps - 1) + 1
    assert all(equal(both[0][position], both[1][position]) for position in shared)


@SETTINGS
@given(case=CASES, seed=st.integers(0, 99), order=ORDERS, epoch=st.integers(0, 3))
def test_the_images_of_an_epoch_are_the_data_set(
    built: Built, case: Case, seed: int, order: dict[str, Any], epoch: int
) -> None:
    size = case.world * case.micro
    first = epoch * IMAGES
    begin = first // 24 * 24 // size * size if 24 % size else first // 24 * 24
    seen: dict[int, tuple[Any, ...]] = {}
    for rank in range(case.world):
        seen |= read(opened(built, case, rank, seed, order), begin, IMAGES + 48 + size)
    keys = [seen[position][0] for position in range(first, first + IMAGES)]
    assert sorted(keys) == sorted(f"class{number % 3}/{number}" for number in range(IMAGES))


@SETTINGS
@given(case=CASES, seed=st.integers(0, 99), order=ORDERS, start=st.integers(0, 5))
def test_a_stream_goes_on_from_anywhere(built: Built, case: Case, seed: int, order: dict[str, Any], start: int) -> None:
    whole = read(opened(built, case, 0, seed, order), 0, start * 24 + 24)
    later = read(opened(built, case, 0, seed, order), start * 24, 24)
    shared = whole.keys() & later.keys()
    if 24 % (case.world * case.micro) == 0:
        assert shared == later.keys()
    assert all(equal(whole[position], later[position]) for position in shared)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    order=ORDERS,
    micro=st.integers(1, 3),
    blocks=st.lists(st.integers(1, 50), min_size=1, max_size=12),
)
def test_64_ranks_share_what_one_has(seed: int, order: dict[str, Any], micro: int, blocks: list[int]) -> None:
    from mae_pipe.data.arrange import arranged

    data = recipe.Data(size=8, global_batch=64 * micro, **order)
    made = arranged(np.array(blocks, np.int64), data, seed, far=False)
    alone = made.at(np.arange(64 * micro * 3))
    shares = [Share(rank, 64, micro) for rank in range(64)]
    parts = [made.at(share.positions(at)) for at in range(0, len(alone), 64 * micro) for share in shares]
    assert np.array_equal(alone, np.concatenate(parts))
