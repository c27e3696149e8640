"""Which order a stream's images have: as a run began, or as its recipe says, or by where its shards lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_pipe import recipe
from mae_pipe.data.order import Order
from mae_pipe.data.windows import Windows, blocks_together

Begun = int | dict[str, Any]  # how run.json keeps an order: the rule of a full one, or all that decides one of windows


def arranged(
    blocks: NDArray[np.int64], data: recipe.Data, seed: int, *, far: bool, begun: Begun | None = None
) -> Order | Windows:
    """The order of one split's images, or of some of them.

    Args:
        blocks: images of each shard.
        far: whether shards have to be fetched.
        begun: the order of the run that goes on, as ``as_recorded`` gave it; it stays, wherever shards lie now.
    """
    images = int(blocks.sum())
    if isinstance(begun, dict):
        kept = np.repeat(*np.array(begun["blocks"], np.int64).T)
        if int(kept.sum()) == images:
            return Windows(kept, seed, together=begun["together"], lanes=begun["lanes"], cycle=begun["cycle"])
    windowed = begun is None and (data.order == "window" or (data.order == "auto" and far))
    blocks = blocks[blocks > 0]
    together = blocks_together(blocks, data.window, data.lanes)
    if not windowed or (data.lanes == 1 and together >= len(blocks)):  # one window of all is a full shuffle
        return Order(images, seed)
    return Windows(blocks, seed, together=together, lanes=data.lanes, cycle=max(1, data.global_batch // data.repeats))


def as_recorded(order: Order | Windows) -> Begun:
    """All that decides an order besides the seed and the number of images."""
    if isinstance(order, Order):
        return Order.rule(order.images)
    starts = np.flatnonzero(np.diff(order.blocks, prepend=-1))
    runs = np.diff(np.append(starts, len(order.blocks)))
    blocks = [[int(size), int(times)] for size, times in zip(order.blocks[starts], runs, strict=True)]
    about = {"together": order.together, "lanes": order.lanes, "cycle": int(order.starts[-1])}
    return {"rule": Windows.RULE, "blocks": blocks, **about}


def in_words(order: Order | Windows) -> str:
    """For people."""
    if isinstance(order, Order):
        return "shuffled as a whole"
    window = order.images * order.together * order.lanes / len(order.blocks)
    return f"shuffled in windows of about {round(window):,} images, {order.together * order.lanes} shards"


def classes_in_windows(order: Windows, labels: NDArray[np.int32]) -> tuple[int, int]:
    """Classes in a window, the median of a few; and in as many images drawn from everywhere."""
    size = min(order.images, round(order.images * order.together * order.lanes / len(order.blocks)))
    starts = range(0, order.images - size + 1, size)[:5]
    found = [len(np.unique(labels[order.at(np.arange(start, start + size))])) for start in starts]
    anywhere = np.random.default_rng(0).choice(order.images, size, replace=False)
    return int(np.median(found)), len(np.unique(labels[anywhere]))


def advice(order: Order | Windows, labels: NDArray[np.int32]) -> str:
    """What to say where windows hold far fewer classes than they could; "" where they do not."""
    if isinstance(order, Order) or not len(labels) or int(labels[0]) < 0:
        return ""
    found, possible = classes_in_windows(order, labels)
    if found >= 0.7 * possible:
        return ""
    return (
        f"classes lie together in these shards: images that are shuffled together are of {found} classes, where they "
        f"could be of {possible}; build the shards with mae-pipe shard --shuffle, or raise data.window"
    )
