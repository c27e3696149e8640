"""Batches on the device that works on them, the next one copied meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from mae_pipe import watchdog
from mae_pipe.data.batch import Batch


class Placed(NamedTuple):
    """A batch where it was made, and on the device; on a CPU both are one."""

    here: Batch
    there: Batch


def placed(batches: Iterator[Batch], device: torch.device) -> Iterator[Placed]:
    """Every batch, in order, on ``device``.

    On a GPU the next batch is taken from ``batches`` before one is given, and copied on a stream of its own while
    the GPU works. An error that taking it raises comes after the batch before it.
    """
    if device.type == "cuda":
        found = _copied_ahead(batches, device)
    else:
        found = (Placed(batch, batch.to(device)) for batch in batches)
    return watchdog.watched(found)


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Placed]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    trouble: list[Exception] = []

    def begin() -> tuple[Placed, torch.cuda.Event] | None:
        try:
            here = next(batches, None)
        except Exception as error:
            trouble.append(error)
            return None
        if here is None:
            return None
        with torch.cuda.stream(side):
            there = here.each(lambda tensor: tensor.to(device, non_blocking=True))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(side)
        return Placed(here, there), copied

    following = begin()
    try:
        while following is not None:
            (here, there), copied = following
            following = begin()
            work = torch.cuda.current_stream(device)
            work.wait_event(copied)  # of this copy only: the next one is under way on the same stream
            for tensor in there.tensors:
                tensor.record_stream(work)  # its memory is the side stream's, which may not use it again before
            yield Placed(here, there)
            copied.synchronize()  # as a rule long past; ``here`` may be let go now, and its memory filled anew
    finally:
        side.synchronize()
    if trouble:
        raise trouble[0]
