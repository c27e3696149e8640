"""Batches of streams, and whether two streams give the same ones."""

from __future__ import annotations

import itertools
from contextlib import closing

import torch

from mae_pipe.data.batch import Batch
from mae_pipe.data.stream import Stream


def first(stream: Stream, count: int, start: int = 0) -> list[Batch]:
    """The first batches of a stream from a place on; the stream is closed."""
    with closing(stream), closing(stream.batches(start)) as batches:  # type: ignore[type-var]
        return list(itertools.islice(batches, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    """To the last bit: pixels, labels, numbers and positions."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for one, other in zip(a.tensors, b.tensors, strict=True):
            assert torch.equal(one, other)
