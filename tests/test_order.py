"""The order of images is the same for any number of ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_pipe.data.order import Order, Share


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
