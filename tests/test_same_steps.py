"""Real batches of real builds: neither ranks, threads, shards, formats nor where a run stopped change what is seen."""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.sharding import build

IMAGES = 23
GLOBAL = 192  # images of a step, which any of these worlds divides
WORLDS = (1, 2, 3, 8, 64)
PER_SHARD = (3, 7, 100)
FORMS: dict[str, dict[str, object]] = {"webdataset": {}, "files": {"format": "files"}}
if importlib.util.find_spec("ffcv") is not None:
    FORMS |= {"ffcv": {"format": "ffcv"}, "ffcv, half raw": {"format": "ffcv", "raw": 0.5}}
PLANES = "planes"  # other pixels than those of the rest


class Seen(NamedTuple):
    """One place of a stream."""

    key: str
    label: int
    pixels: bytes


@dataclass(frozen=True)
class Way:
    """How a job reads: none of it may change what it sees."""

    form: str
    per_shard: int
    world: int
    micro: int
    workers: int


class Builds:
    """The same images in every form, opened once."""

    def __init__(self, folder: Path) -> None:
        draw = np.random.default_rng(0)
        self.keys = []
        for number in range(IMAGES):
            coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            path = folder / "images" / f"class{number % 3}" / f"{number}.{'png' if number % 5 == 0 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize(tuple(draw.integers(20, 50, 2)), Image.Resampling.BICUBIC).save(path)
            self.keys.append(f"class{number % 3}/{number}")
        self.shelves = {}
        forms: dict[str, dict[str, object]] = {**FORMS, PLANES: {"planes": True}}
        for (form, options), per_shard in itertools.product(forms.items(), PER_SHARD):
            out = folder / f"{form}-{per_shard}"
            given: dict[str, object] = {"catalog": Catalog(), "workers": 1, "per_shard": per_shard, **options}
            build(folder / "images", out, **given)  # type: ignore[arg-type]
            self.shelves[form, per_shard] = Shelf(out, "train", Catalog())

    def places(self, way: Way, start: int, count: int, *, seed: int, **data: object) -> list[Seen]:
        """What all ranks together see from ``start`` on, by position: so many places, which are whole micro-batches."""
        shelf, found = self.shelves[way.form, way.per_shard], {}
        chosen = {"size": 8, "global_batch": GLOBAL, "micro_batch": way.micro, "workers": way.workers, **data}
        made = recipe.Data(**chosen)  # type: ignore[arg-type]
        for rank in range(way.world):
            stream = Stream(shelf, made, seed=seed, share=Share(rank, way.world, way.micro))
            batches = stream.batches(start)
            for batch in itertools.islice(batches, count // (way.world * way.micro)):
                rows = zip(batch.positions.tolist(), batch.numbers.tolist(), batch.labels.tolist(), strict=True)
                for place, (position, number, label) in enumerate(rows):
                    assert position not in found
                    found[position] = Seen(shelf.index.key(number), label, batch.pixels[place].numpy().tobytes())
            batches.close()  # type: ignore[attr-defined]
        assert sorted(found) == list(range(start, start + count))
        return [found[position] for position in sorted(found)]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    made = Builds(tmp_path_factory.mktemp("order"))
    yield made
    for shelf in made.shelves.values():
        shelf.close()


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@st.composite
def ways(draw: st.DrawFn, forms: tuple[str, ...] = tuple(FORMS), per_shard: int | None = None) -> Way:
    world = draw(st.sampled_from(WORLDS))
    micro = draw(st.sampled_from(divisors(GLOBAL // world)))
    shards = per_shard or draw(st.sampled_from(PER_SHARD))
    return Way(draw(st.sampled_from(forms)), shards, world, micro, draw(st.integers(0, 4)))


SEEDS = st.integers(0, 2**31)
ORDERS = st.sampled_from([
    {"order": "full"},
    {"order": "window", "window": 7},
    {"order": "window", "window": 7, "lanes": 2},
    {"order": "window", "window": 1, "lanes": 8},
])  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(way=ways((*FORMS, PLANES)), order=ORDERS, epoch=st.integers(0, 1000), seed=SEEDS, repeats=st.integers(1, 3))
def test_an_epoch_is_the_data_set(
    builds: Builds, way: Way, order: dict[str, object], epoch: int, seed: int, repeats: int
) -> None:
    first, last = epoch * IMAGES * repeats, (epoch + 1) * IMAGES * repeats
    start = first // GLOBAL * GLOBAL
    count = -(-(last - start) // GLOBAL) * GLOBAL
    seen = builds.places(way, start, count, seed=seed, repeats=repeats, **order)[first - start : last - start]
    assert Counter(one.key for one in seen) == dict.fromkeys(builds.keys, repeats)
    assert all(one.key.startswith(f"class{one.label}/") for one in seen)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), step=st.integers(0, 500), seed=SEEDS, repeats=st.integers(1, 2), planes=st.booleans())
def test_a_step_sees_the_same_for_any_ranks_threads_shards_and_formats(
    builds: Builds, data: st.DataObject, step: int, seed: int, repeats: int, planes: bool
) -> None:
    forms = (PLANES,) if planes else tuple(FORMS)
    alone = Way(forms[0], 100, 1, GLOBAL, 0)
    way = data.draw(ways(forms))
    reads = (builds.places(one, step * GLOBAL, GLOBAL, seed=seed, repeats=repeats) for one in (alone, way))
    assert next(reads) == next(reads)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), step=st.integers(0, 500), seed=SEEDS, order=ORDERS, per_shard=st.sampled_from(PER_SHARD))
def test_windows_of_the_same_shards_are_the_same_for_any_ranks_threads_and_formats(
    builds: Builds, data: st.DataObject, step: int, seed: int, order: dict[str, object], per_shard: int
) -> None:
    alone, way = Way("webdataset", per_shard, 1, GLOBAL, 0), data.draw(ways(per_shard=per_shard))
    reads = (builds.places(one, step * GLOBAL, GLOBAL, seed=seed, **order) for one in (alone, way))
    assert next(reads) == next(reads)


@settings(max_examples=20, deadline=None)
@given(legs=st.lists(st.tuples(ways(), st.integers(1, 3)), min_size=1, max_size=3), seed=SEEDS, step=st.integers(0, 99))
def test_a_run_that_stops_and_goes_on_as_another_job_sees_what_a_whole_one_does(
    builds: Builds, legs: list[tuple[Way, int]], seed: int, step: int
) -> None:
    begin = step * GLOBAL
    whole = builds.places(Way("webdataset", 100, 1, GLOBAL, 0), begin, GLOBAL * sum(n for _, n in legs), seed=seed)
    seen: list[Seen] = []
    for way, steps in legs:
        seen += builds.places(way, begin + len(seen), GLOBAL * steps, seed=seed)
    assert seen == whole


@settings(max_examples=25, deadline=None)
@given(way=ways((*FORMS, PLANES)), start=st.integers(0, 5000), seed=SEEDS)
def test_a_stream_may_start_at_any_place(builds: Builds, way: Way, start: int, seed: int) -> None:
    alone = Way(PLANES if way.form == PLANES else "webdataset", 7, 1, 1, 0)
    advance = way.world * way.micro
    lead = start % 50
    before = builds.places(alone, start - lead, lead + advance, seed=seed)
    assert builds.places(way, start, advance, seed=seed) == before[lead:]
