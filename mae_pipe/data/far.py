"""Shards that lie elsewhere: a few threads fetch them into the cache, those that are waited for before others."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mae_pipe.data.address import Address
from mae_pipe.data.cache import Cache, Held
from mae_pipe.data.fetch import Abandoned
from mae_pipe.data.manifest import Shard

FETCHERS = 4  # shards at a time
_READER = threading.local()


def reads_until(end: threading.Event | None) -> None:
    """From now on, this thread waits for no shard once ``end`` is set, and then ``Far.abandon`` is called."""
    _READER.end = end


@dataclass(eq=False)
class _Job:
    """One shard that is wanted: it waits for a thread, is fetched, and is then ``held`` or has an ``error``."""

    number: int
    urgent: bool = False
    begun: bool = False
    held: Held | None = None
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class Far:
    """The shard files of a split that lie at a URL, as a ``Depot``."""

    far = True

    def __init__(self, shards: list[Shard], base: Address, cache: Cache | None = None) -> None:
        self._shards, self.place = shards, str(base)
        self.cache = cache or Cache()
        self.room = self.cache.size // 2  # training and evaluation read at the same time
        kept = self.cache
        self._jobs = _Jobs(lambda number, stop: kept.hold(shards[number], base / shards[number].name, stop))
        self.close: Callable[[], object] = weakref.finalize(self, self._jobs.close)

    def bytes_of(self, number: int) -> int:
        """Of a shard."""
        return self._shards[number].bytes

    def ahead(self, number: int) -> None:
        """Begin to fetch a shard that will be needed; if that fails, whoever needs it is told."""
        self._jobs.want(number)

    def path(self, number: int) -> Path:
        return self._jobs.wait(number).path

    def release(self, number: int) -> None:
        self._jobs.drop(number)

    def renew(self, number: int) -> bool:
        self._jobs.drop(number)
        self.cache.drop(self._shards[number])
        return True

    def abandon(self) -> None:
        self._jobs.drop_unfinished()


class _Jobs:
    """The shards that are wanted, and the threads that fetch them; they know this, not ``Far``, so that it can go."""

    def __init__(self, fetch: Callable[[int, threading.Event], Held]) -> None:
        self._fetch = fetch
        self._jobs: dict[int, _Job] = {}  # in the order that they were wanted in
        self._changed = threading.Condition()
        self._threads, self._closed = 0, False

    def want(self, number: int, *, urgent: bool = False) -> _Job:
        with self._changed:
            job = self._jobs.get(number)
            if job is None or (urgent and job.error and not job.urgent):  # what failed ahead of its need is tried again
                job = self._jobs[number] = _Job(number)
                if self._threads < FETCHERS:
                    self._threads += 1
                    threading.Thread(target=self._work, daemon=True, name="fetch").start()
            job.urgent |= urgent
            self._changed.notify_all()
        return job

    def wait(self, number: int) -> Held:
        """A file that is here; its failure is said once, and who asks again tries again."""
        end: threading.Event = getattr(_READER, "end", None) or threading.Event()
        while not end.is_set() and not self._closed:  # a job that another reader has dropped is wanted again
            job = self.want(number, urgent=True)
            with self._changed:
                while not (job.held or job.error or job.stop.is_set() or end.is_set()):
                    self._changed.wait()
                if job.held and not job.stop.is_set():
                    return job.held
                if job.error and self._jobs.get(number) is job:
                    del self._jobs[number]
            if job.error and not isinstance(job.error, Abandoned):
                raise job.error
        raise Abandoned

    def drop(self, number: int) -> None:
        with self._changed:
            self._drop(self._jobs.get(number))

    def drop_unfinished(self) -> None:
        with self._changed:
            self._changed.notify_all()
            for job in list(self._jobs.values()):
                if not job.held:
                    self._drop(job)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for job in list(self._jobs.values()):
                self._drop(job)
            self._changed.notify_all()

    def _drop(self, job: _Job | None) -> None:
        if job is None:
            return
        del self._jobs[job.number]
        job.stop.set()
        if job.held:
            job.held.close()
        self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The job to do now, waiting for one; None: there will be no more."""
        with self._changed:
            while not self._closed:
                waiting = [job for job in self._jobs.values() if not job.begun]
                if waiting:
                    job = next((job for job in waiting if job.urgent), waiting[0])
                    job.begun = True
                    return job
                self._changed.wait()
        return None

    def _work(self) -> None:
        while job := self._next():
            held, error = None, None
            try:
                held = self._fetch(job.number, job.stop)
            except BaseException as raised:
                error = raised
            with self._changed:
                if job.stop.is_set() and held:
                    held.close()
                else:
                    job.held, job.error = held, error
                self._changed.notify_all()
