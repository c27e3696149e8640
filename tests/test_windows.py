"""The order of images that are fetched shard by shard: exact, the same for any ranks, few shards at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mae_pipe import recipe
from mae_pipe.data.arrange import advice, arranged, as_recorded, classes_in_windows, in_words
from mae_pipe.data.order import Order, Share
from mae_pipe.data.windows import Windows

BLOCKS = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(lambda sizes: np.array(sizes, np.int64))
SHAPES = {
    "blocks": BLOCKS,
    "seed": st.integers(0, 2**31),
    "together": st.integers(1, 8),
    "lanes": st.integers(1, 9),
    "cycle": st.integers(1, 100),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_every_image_comes_exactly_once_an_epoch(
    blocks: np.ndarray, seed: int, together: int, lanes: int, cycle: int
) -> None:
    order = Windows(blocks, seed, together=together, lanes=lanes, cycle=cycle)
    numbers = order.at(np.arange(4 * order.images)).reshape(4, order.images)
    assert (np.sort(numbers, axis=1) == np.arange(order.images)).all()


@settings(max_examples=60, deadline=None)
@given(**SHAPES, world=st.sampled_from([1, 2, 3, 8, 64]), micro=st.integers(1, 5), start=st.integers(0, 3000))
def test_a_global_batch_holds_the_same_images_for_any_number_of_ranks_from_anywhere(
    blocks: np.ndarray, seed: int, together: int, lanes: int, cycle: int, world: int, micro: int, start: int
) -> None:
    order = Windows(blocks, seed, together=together, lanes=lanes, cycle=cycle)
    again = Windows(blocks, seed, together=together, lanes=lanes, cycle=cycle)
    alone = order.at(np.arange(start + 3 * world * micro))[start:]
    shares = [Share(rank, world, micro) for rank in range(world)]
    parts = [again.at(share.positions(start + b * share.advance)) for b in range(3) for share in shares]
    assert np.array_equal(alone, np.concatenate(parts))


@pytest.mark.parametrize(("lanes", "nodes"), [(1, 1), (1, 4), (4, 4), (8, 4), (8, 2), (8, 1), (3, 3)])
def test_a_node_reads_a_shard_once_an_epoch_and_only_a_few_at_a_time(lanes: int, nodes: int) -> None:
    """Of 64 shards and nodes of two ranks: between its first and its last image of an epoch, a shard stays wanted."""
    blocks, together, micro = np.full(64, 50, np.int64), 2, 4
    world = 2 * nodes
    cycle = world * micro * 3  # a global batch of three micro-batches
    order = Windows(blocks, 7, together=together, lanes=lanes, cycle=cycle)
    owner = np.repeat(np.arange(64), 50)
    needed = []
    for node in range(nodes):
        positions = np.concatenate(
            [
                Share(rank, world, micro, together=3).positions(at)
                for at in range(0, order.images, world * micro)
                for rank in (2 * node, 2 * node + 1)
            ]
        )
        positions = positions[positions < order.images]  # the first epoch
        shards = owner[order.at(positions)]
        first = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in np.unique(shards)}
        last = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in first}
        open_at = [sum(first[s] <= at <= last[s] for s in first) for at in range(0, len(shards), 7)]
        mine = max(1, lanes // nodes) if lanes > 1 else 1
        assert max(open_at) <= 3 * together * mine + 2 * mine, "at the edges of windows, those of two"
        needed.append(len(first))
    if lanes >= nodes > 1 and lanes % nodes == 0:
        assert sum(needed) <= 64 + lanes  # all nodes together read little more than the data set
    else:
        assert max(needed) <= 64


def test_windows_are_as_random_as_they_say() -> None:
    """Over 3,000 seeds: where an image comes, which shard comes first, and which image in its window."""
    blocks = np.full(20, 10, np.int64)
    places, firsts, inside = [], [], []
    for seed in range(3000):
        numbers = Windows(blocks, seed, together=4).at(np.arange(200))
        places.append(int(np.flatnonzero(numbers == 17)[0]))
        firsts.append(int(numbers[0]) // 10)
        inside.append(places[-1] % 40)
    for found, bins in ((places, 20), (firsts, 20), (inside, 40)):
        counts = np.bincount(np.array(found) * bins // (200 if found is places else bins), minlength=bins)
        assert chisquare(counts).pvalue > 1e-4


def test_a_window_of_all_is_the_order_of_local_shards() -> None:
    blocks = np.array([5, 5, 3], np.int64)
    assert isinstance(arranged(blocks, recipe.Data(), 3, far=True), Order)
    assert isinstance(arranged(blocks, recipe.Data(window=5), 3, far=False), Order)
    assert isinstance(arranged(blocks, recipe.Data(window=5), 3, far=True), Windows)
    assert isinstance(arranged(blocks, recipe.Data(window=5, order="full"), 3, far=True), Order)
    assert isinstance(arranged(blocks, recipe.Data(window=5, order="window"), 3, far=False), Windows)


def test_a_run_keeps_the_order_that_it_began_with() -> None:
    data, blocks = recipe.Data(window=12, lanes=2, global_batch=8), np.array([5, 5, 3, 5, 0, 5], np.int64)
    began = arranged(blocks, data, 3, far=True)
    told = as_recorded(began)
    assert told == {"rule": 3, "blocks": [[5, 2], [3, 1], [5, 2]], "together": 2, "lanes": 2, "cycle": 8}
    other = np.array([23], np.int64)  # the same images in one local file
    goes_on = arranged(other, data, 3, far=False, begun=told)
    assert np.array_equal(began.at(np.arange(100)), goes_on.at(np.arange(100)))
    full = arranged(other, data, 3, far=False)
    assert np.array_equal(
        full.at(np.arange(100)), arranged(blocks, data, 3, far=True, begun=as_recorded(full)).at(np.arange(100))
    )
    assert in_words(began) == "shuffled in windows of about 18 images, 4 shards"


def test_any_place_of_a_large_epoch_is_there_at_once() -> None:
    order = Windows(np.full(7000, 2000, np.int64), 0, together=17)
    numbers = order.at(700 * order.images + 5_000_000 + np.arange(4096))
    assert len(np.unique(numbers)) == 4096
    assert len(np.unique(numbers // 2000)) == 17


@settings(max_examples=60, deadline=None)
@given(world=st.integers(1, 9), micro=st.integers(1, 6), together=st.integers(1, 7), step=st.integers(0, 50))
def test_ranks_share_out_a_global_batch_whether_in_one_or_in_parts(
    world: int, micro: int, together: int, step: int
) -> None:
    size = world * micro * together
    starts = range(step * size, (step + 1) * size, world * micro)
    parts = [[Share(rank, world, micro, together).positions(at) for at in starts] for rank in range(world)]
    assert np.array_equal(
        np.concatenate([p for rank in parts for p in rank]), np.arange(step * size, (step + 1) * size)
    )


def test_windows_of_few_classes_are_told_and_mixed_ones_are_not() -> None:
    labels = np.repeat(np.arange(100, dtype=np.int32), 50)  # shards in the order of folders
    order = Windows(np.full(50, 100, np.int64), 3, together=4)
    assert classes_in_windows(order, labels) == (8, 97)
    assert "images that are shuffled together are of 8 classes, where they could be of 97" in advice(order, labels)
    mixed = np.random.default_rng(0).permutation(labels)
    assert classes_in_windows(order, mixed)[0] > 90
    assert advice(order, mixed) == ""
    assert advice(order, np.full(5000, -1, np.int32)) == ""
    assert advice(Order(5000, 0), labels) == ""
