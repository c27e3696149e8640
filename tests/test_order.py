"""The order of images is the same for any number of ranks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mae_pipe.data.order import Order, Share
from mae_pipe.data.shuffle import WHOLE, Shuffle


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    world=st.sampled_from([1, 2, 3, 8, 64]),
    micro=st.integers(1, 5),
    batches=st.integers(1, 6),
)
def test_a_global_batch_holds_the_same_images_for_any_number_of_ranks(
    images: int, seed: int, world: int, micro: int, batches: int
) -> None:
    order = Order(images, seed)
    total = world * micro * batches
    alone = order.at(np.arange(total))
    shares = [Share(rank, world, micro) for rank in range(world)]
    together = np.concatenate(
        [order.at(share.positions(b * share.advance)) for b in range(batches) for share in shares]
    )
    assert np.array_equal(alone, together)


@settings(max_examples=30, deadline=None)
@given(images=st.integers(1, 200), epochs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_every_image_comes_exactly_once_an_epoch(images: int, epochs: int, seed: int) -> None:
    numbers = Order(images, seed).at(np.arange(images * epochs)).reshape(epochs, images)
    assert (np.sort(numbers, axis=1) == np.arange(images)).all()


def test_epochs_and_seeds_differ_and_do_not_collide() -> None:
    first, second = Order(1000, 0), Order(1000, 1)
    assert not np.array_equal(first.epoch(0), first.epoch(1))
    assert not np.array_equal(first.epoch(1), second.epoch(0))  # as seed + epoch would


def test_the_order_can_start_anywhere() -> None:
    order = Order(37, 5)
    assert np.array_equal(order.at(np.arange(500))[123:], Order(37, 5).at(np.arange(123, 500)))


@pytest.mark.parametrize("size", [WHOLE + 1, 70_001, 1 << 17, (1 << 17) + 1, 200_003])
def test_a_large_shuffle_is_a_permutation_wherever_it_is_asked(size: int) -> None:
    shuffle = Shuffle(11, size)
    whole = shuffle.at(np.arange(size))
    assert np.array_equal(np.sort(whole), np.arange(size))
    some = np.random.default_rng(0).integers(0, size, (7, 5))
    assert np.array_equal(shuffle.at(some), whole[some])


def test_large_shuffles_are_as_random_as_numpys() -> None:
    """Chi-square of where a place goes over 4,000 keys, of its neighbour's distance, and of two keys' agreement."""
    size, keys, bins = 100_003, 4000, 20
    found = np.array([Shuffle(1000 + key, size).at(np.array([0, 1, 2, size // 2, size - 1])) for key in range(keys)])
    draws = np.random.default_rng(1)
    numpys = np.array([draws.choice(size, 5, replace=False) for _ in range(keys)])
    for drawn in (found, numpys):  # the second shows that the limits are fair
        for column in (*drawn.T, (drawn[:, 1] - drawn[:, 0]) % size, (drawn[:, 4] - drawn[:, 3]) % size):
            counts = np.bincount(column * bins // size, minlength=bins)
            assert chisquare(counts).pvalue > 1e-4
    one, two = (Shuffle(key, size).at(np.arange(size)) for key in (1, 2))
    assert (one == np.arange(size)).sum() < 12  # fixed points: Poisson of mean 1
    assert (one == two).sum() < 12
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02
    lags = np.abs(np.diff(one[np.argsort(two)]))
    assert abs(lags.mean() / size - 1 / 3) < 0.01


def test_epochs_of_many_images_cost_no_memory() -> None:
    order = Order(14_000_000, 3)
    tracemalloc.start()
    numbers = order.at(700 * 14_000_000 + 5_000_000 + np.arange(4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(numbers)) == 4096
    assert numbers.max() > 13_000_000
    assert peak < 5 << 20
