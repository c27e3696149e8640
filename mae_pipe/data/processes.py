"""Batches are filled ahead of their use, by processes: for images whose decoder holds Python's lock.

Each is a fresh interpreter and not a fork, as this process has threads; nor is it one of ``multiprocessing``, whose
workers run a user's script again and whose server a signal to the whole job would end.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection

import numpy as np

from mae_pipe import errors
from mae_pipe.data.ahead import AHEAD
from mae_pipe.data.batch import Batch
from mae_pipe.data.fill import Wanted
from mae_pipe.data.form import Form
from mae_pipe.data.layout import Numbers
from mae_pipe.data.slots import Slot, Slots
from mae_pipe.data.worker import Answer
from mae_pipe.errors import MaePipeError, TrainingError

HELD = 4  # batches that may be in their reader's hands without being copied
SLOTS = AHEAD + HELD
LOOK = 0.5  # seconds between looks at processes that say nothing
PARENTS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}  # may come to a whole job; the parent decides what they mean
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class _UnderWay:
    """A batch that is being filled."""

    slot: Slot
    numbers: Numbers
    positions: Numbers
    left: int  # parts
    failed: dict[int, tuple[Worker, Answer]] = field(default_factory=dict)  # by part


class Worker:
    """One process, as its parent sees it.

    Args:
        name: of it, for people.
        slots: descriptors of the memory that it fills.
    """

    def __init__(self, name: str, slots: list[int]) -> None:
        self.name = name
        self.jobs: deque[tuple[_UnderWay, int]] = deque()  # and which part of it
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "mae_pipe.data.worker", *map(str, [theirs.fileno(), *slots])]
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)  # noqa: PTH109 (a string)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)  # it inherits that
        try:
            self._process = subprocess.Popen(  # noqa: S603 (ours)
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
                pass_fds=(theirs.fileno(), *slots),
            )
        except OSError as error:
            ours.close()
            raise TrainingError(
                f'{name} cannot be started ({error.strerror}); lower data.workers, or set data.worker_kind = "thread"'
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.channel: connection.Connection = connection.Connection(ours.detach())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, message: object) -> None:
        """Tell it something."""
        try:
            self.channel.send(message)
        except OSError:
            raise self.lost() from None

    def hear(self) -> None:
        """Take one answer: to the first of its jobs."""
        try:
            answer: Answer = self.channel.recv()
        except (EOFError, OSError):
            raise self.lost() from None
        batch, part = self.jobs.popleft()
        batch.left -= 1
        if answer is not None:
            batch.failed[part] = self, answer

    def lost(self) -> TrainingError:
        """What there is to say when it has ended."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed its channel, and lives
            code = 0
        name = f"{self.name} (process {self._process.pid})"
        again = "the same command goes on from the last checkpoint"
        if code >= 0:
            return TrainingError(f"{name} ended by itself with code {code}; see what it printed: {again}")
        known = {number.value: number.name for number in signal.Signals}
        why = f"{name} was ended by {known.get(-code, f'signal {-code}')}"
        if -code == signal.SIGKILL:
            return TrainingError(
                f"{why}, most often for lack of memory; lower data.workers or data.micro_batch: {again}"
            )
        if -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
            return TrainingError(
                f"{why}, a crash in what decodes images or reads shards; look for damage with mae-pipe verify, or set "
                f"MAE_PIPE_DECODER=pillow: {again}"
            )
        return TrainingError(f"{why}, by somebody or something else; {again}")

    def end(self) -> None:
        """End it, whatever it does: nothing is lost with it."""
        self.channel.close()
        self._process.kill()
        self._process.wait()


def run(
    plan: Iterator[tuple[Numbers, Numbers]], wanted: Wanted, form: Form, workers: int, *, count: int
) -> Iterator[Batch]:
    """Fill the batches of a plan (rows, positions) in its order, ``AHEAD`` of them under way in ``workers`` processes.

    Args:
        count: images in every batch.
    """
    layout = form.layout(count)
    slots = Slots(layout, SLOTS)
    crew: list[Worker] = []
    under_way: deque[_UnderWay] = deque()
    bounds = np.linspace(0, count, min(workers, count) + 1).astype(int).tolist()
    turn = itertools.cycle(range(workers))  # small batches have fewer parts than there are workers

    def begin() -> bool:
        step = next(plan, None)
        if step is None:
            return False
        batch = _UnderWay(slots.take(), *step, left=len(bounds) - 1)
        arrays = batch.slot.arrays()
        arrays.numbers[:], arrays.positions[:] = step
        under_way.append(batch)
        for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
            worker = crew[next(turn)]
            worker.jobs.append((batch, part))
            worker.send((batch.slot.number, start, stop))
        return True

    try:
        with slots.shared() as descriptors:
            for number in range(workers):
                crew.append(Worker(f"worker process {number + 1} of {workers}", descriptors))
        for worker in crew:
            worker.send((wanted, layout))
        while len(under_way) < AHEAD and begin():
            pass
        while under_way:
            batch = under_way.popleft()
            _wait(crew, batch)
            _check(batch)
            made = form.batch(batch.numbers, batch.positions, *slots.lend(batch.slot))
            begin()
            yield made
            del made
    finally:
        for worker in crew:
            worker.end()
        slots.close()


def _wait(crew: list[Worker], batch: _UnderWay) -> None:
    """Take answers until a batch is filled, and all that are there: a lost worker is told as soon as it is known."""
    channels = {worker.channel: worker for worker in crew}
    while True:
        ready = connection.wait(channels, timeout=LOOK if batch.left else 0)
        if not ready and not batch.left:
            return
        for channel in ready:
            channels[channel].hear()  # type: ignore[index]
        for worker in crew if not ready else ():
            if worker.ended:
                raise worker.lost()


def _check(batch: _UnderWay) -> None:
    """Raise what failed in the first part that did."""
    if not batch.failed:
        return
    worker, answer = batch.failed[min(batch.failed)]
    assert answer is not None
    kind, text, trace = answer
    known = getattr(errors, kind, None)
    if not trace and isinstance(known, type) and issubclass(known, MaePipeError):
        raise known(text)
    error = RuntimeError(f"{worker.name} failed: {kind}: {text}")
    error.add_note(trace)
    raise error
