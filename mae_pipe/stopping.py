"""SIGTERM and SIGUSR1: what a process is asked to stop with."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mae_pipe.errors import Stopped

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Outside of the steps nothing has to be finished: end there, with the exit code of a run that goes on."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(
            f"asked to stop by {signal.Signals(number).name} outside of the training steps; the same command goes on"
        )

    with _handled(stop):
        yield


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether one came; the step can be finished and saved first."""
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number)):
        yield lambda: bool(came)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Both signals go to ``handler``; those of before are put back."""
    try:
        old = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # not the main thread, as in a notebook's worker
        old = {}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
