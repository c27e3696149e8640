"""The processes that make the parts of a build."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any

from mae_pipe.data.parts import Stopped, make
from mae_pipe.data.plan import Plan, Run
from mae_pipe.errors import MaePipeError

Report = Callable[[int, int], None]  # images done, of which refused


class _Here:
    """The tally of a build in this process."""

    def __init__(self, report: Report) -> None:
        self._report, self._done, self._refused = report, 0, 0

    def add(self, done: int, refused: int) -> None:
        self._done += done
        self._refused += refused
        self._report(self._done, self._refused)


class _Shared:
    """The tally of all workers together."""

    def __init__(self, counts: Any, stop: Any) -> None:
        self._counts, self._stop = counts, stop

    def add(self, done: int, refused: int) -> None:
        if self._stop.is_set():
            raise Stopped
        with self._counts.get_lock():
            self._counts[0] += done
            self._counts[1] += refused


def make_all(plan: Plan, runs: Iterator[Run], workers: int, imports: Sequence[str], report: Report) -> None:
    """Make every part; how many processes do it changes no byte. ``imports`` are shared by all of them."""
    if workers <= 1:
        here = _Here(report)
        for run in runs:
            make(plan, run, here)
        return
    # Not fork, as the parent may have threads. From a server that has imported what the format needs,
    # workers start at once and hold one copy of it between them.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, *imports])

    counts, stop = context.Array("q", 2), context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (counts, stop)) as pool:
        pending: set[Future[None]] = set()
        try:
            while True:
                for next_run in itertools.islice(runs, 2 * workers - len(pending)):
                    pending.add(pool.submit(_work, plan, next_run))
                if not pending:
                    break
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                report(counts[0], counts[1])
        except BrokenProcessPool as error:
            raise MaePipeError(
                f"one of the {workers} worker processes was killed, most often for lack of memory; "
                f"finished shards are kept: run the same command again, with fewer --workers"
            ) from error
        except BaseException:
            stop.set()
            for future in pending:
                future.cancel()
            raise


_tally: _Shared | None = None


def _begin(counts: Any, stop: Any) -> None:
    """A worker's first act."""
    global _tally  # noqa: PLW0603 (a process pool has no other way to hand over shared memory)
    _tally = _Shared(counts, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides what it means
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(plan: Plan, run: Run) -> None:
    assert _tally is not None
    make(plan, run, _tally)
